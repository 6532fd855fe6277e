"""How answers are drawn: by settings of one's own, or as the published pipelines draw theirs (docs/engines.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mmfast.engines.base import Decode

# DGPref asks eight times for a description of an image. The wordings are ours.
EIGHT = (
    "Describe this image thoroughly.",
    "What is this picture about? Explain it fully.",
    "Give a complete account of what the picture shows.",
    "Tell the story of this picture: what is there, and what is happening?",
    "Describe the image in detail, with the colours and shapes of what can be seen.",
    "Name every object in the picture, and say where each stands and what it looks like.",
    "Describe the people, animals and things in the image, their number and what they do.",
    "Write a detailed description of the image: its surroundings, its objects, their materials and textures.",
)
ONLY_DRAWN = ("temperature", "top_p", "top_k", "min_p", "samples")  # settings that a greedy decode has no use for


@dataclass(frozen=True, kw_only=True)
class Draw:
    """So many answers by one decode. Rows call it by its name, the manifest says what the name means."""

    name: Literal["greedy", "sample", "beam"]
    decode: Decode
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    draws: tuple[Draw, ...]
    group: Literal["prompt", "image"] = "prompt"  # answers of one group compete: of an image and prompt, or an image
    wordings: tuple[str, ...] = ()  # what is asked about each image instead of the input's prompt

    @property
    def needs(self) -> set[str]:
        return {name for draw in self.draws for name in draw.decode.needs}

    def made_by(self) -> dict[str, Any]:
        """For the manifest. More samples, or another wording, add rows to those that stand."""
        return {
            "decodes": {draw.name: asdict(draw.decode) for draw in self.draws},
            "group": self.group,
            "samples": {draw.name: draw.samples for draw in self.draws},
            "template": hashlib.sha256("\n".join(self.wordings).encode()).hexdigest() if self.wordings else "",
        }


def _drawn(samples: int = 1, **settings: Any) -> Draw:
    return Draw(name="sample", decode=Decode(**settings), samples=samples)


PRESETS = {
    # SIMA's critic compares a greedy answer with a sampled one
    "sima": Plan(
        draws=(
            Draw(name="greedy", decode=Decode(max_tokens=1024)),
            _drawn(temperature=0.8, top_p=0.9, max_tokens=1024),
        )
    ),
    "mllm_dpo": Plan(draws=(_drawn(4, temperature=1.2, max_tokens=1024),)),
    "dgpref": Plan(draws=(_drawn(temperature=0.7, max_tokens=1024),), group="image", wordings=EIGHT),
    "rlaifv": Plan(draws=(_drawn(10, temperature=0.7, max_tokens=512),)),
}


def planned(preset: str = "", ask: Sequence[str] = (), **changes: Any) -> Plan:
    """A preset, or one decode of one's own, with `changes`: `samples` and fields of Decode. What only a sampled decode
    can use does not change a preset's greedy one. `ask`: what is asked about each image, instead of the input's prompts
    or the preset's wordings."""
    if ask:
        if not all(text.strip() for text in ask) or len(set(ask)) < len(ask):
            raise ValueError("--ask: each is a text, and no two are the same")
        return replace(planned(preset, **changes), wordings=tuple(ask))
    if preset:
        if preset not in PRESETS:
            raise ValueError(f"--preset: unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
        plan = PRESETS[preset]
        return replace(plan, draws=tuple(_changed(draw, changes) for draw in plan.draws))
    samples = changes.pop("samples", 1)
    decode = Decode(**changes)
    if samples > 1 and not decode.temperature:
        raise ValueError(f"--n {samples}: greedy answers are all the same: give a --temperature")
    name: Any = "sample" if decode.temperature else "beam" if decode.beams > 1 else "greedy"
    return Plan(draws=(Draw(name=name, decode=decode, samples=samples),))


def _changed(draw: Draw, changes: dict[str, Any]) -> Draw:
    changes = {k: v for k, v in changes.items() if draw.name == "sample" or k not in ONLY_DRAWN}
    samples = changes.pop("samples", draw.samples)
    changed = replace(draw, decode=replace(draw.decode, **changes), samples=samples)
    if draw.name == "sample" and not changed.decode.temperature:
        raise ValueError("--temperature 0: this preset samples; leave the preset out for greedy answers")
    return changed
