"""The embedded world's own: captions of its held-out pictures, judged exactly by the annotation (evals/world.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.world import SHARES, TALLY, tally
from mmfast.world.grammar import CAPTION_PROMPTS, CLAIMS
from mmfast.world.scenes import Scene

SOURCE = "mmfast's own (mmfast.world.dataset.write_world)"


class World(Benchmark):
    name = "world"
    less_is_better = ("chair_i", "chair_s", *(f"wrong.{name}" for name in CLAIMS))
    about = "captions of the embedded world: objects that are not there, recall, length, wrong claims of each kind"
    wordings: ClassVar = {
        "world": Wording(decode=Decode(max_tokens=96), about="the world's first caption prompt: greedy")
    }
    files: ClassVar = {
        "annotation": File(
            names=("annotation.jsonl",), what="a world's annotation", source=SOURCE, licence="Apache-2.0"
        )
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        found = False
        for number, line in enumerate(data.read("annotation").decode().splitlines(), 1):
            try:
                scene = Scene.from_annotation(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{data.path('annotation')}, line {number}, is no scene of a world: {error!r}"
                ) from None
            if scene.name.startswith("test-"):
                found = True
                yield Question(
                    id=scene.name,
                    turns=(CAPTION_PROMPTS[0] + wording.suffix,),
                    images=(data.picture(f"images/{scene.name}.png"),),
                    unit=scene.name,
                    truth={"scene": scene},
                )
        if not found:
            raise ValueError(f"{data.path('annotation')} has no held-out pictures (names that begin with test-)")

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for question in questions:
            numbers = tally(answers[question.id].text.strip(), question.truth["scene"])
            sums = dict(zip(TALLY, map(float, numbers), strict=True))
            yield Mark(id=question.id, unit=question.unit, sums=sums)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        shares = {name: ratio(sums[above], sums[below]) for name, (above, below) in SHARES.items()}
        return shares | {f"wrong.{name}": ratio(sums[f"{name}:wrong"], sums[f"{name}:claimed"]) for name in CLAIMS}


BENCHES = (World(),)
