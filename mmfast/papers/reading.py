"""papers.json as an object: every method made so far, its score, what it is compared with, and what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from mmfast.evals.world import TALLY, Score, changes, of_counted

FILE, BASE = "papers.json", "base"
SYSTEMS = {
    "base": "Base model",
    "mllm-dpo": "mllm-dpo",
    "sima": "SIMA",
    "dgpref": "DGPref",
    "rlhf-v": "RLHF-V",
    "rlaif-v": "RLAIF-V",
}
CHIEFS = ("mllm-dpo-dpo", "sima-self-2", "dgpref-average", "rlhfv-average-5", "rlaifv-2")  # of each system one is shown
ROUND = re.compile(r",?\s*\bround (\d+)\b", re.IGNORECASE)
Changes = dict[str, tuple[float, float, float]]


class Method(BaseModel):
    label: str
    system: str
    blind: bool = False
    control: str = ""
    pairs: int = 0
    made: dict[str, Any] = {}
    start: str = ""  # the method whose model it starts from, if it is not the base
    seconds: float = 0
    processor_seconds: float = 0
    settings: dict[str, Any] = {}
    words_chosen: float | None = None
    words_rejected: float | None = None
    counted: list[list[int]] | str  # or the .npy file that holds it

    def objective(self, name: str, default: Any) -> Any:
        """A setting of the objective, whether the settings are whole or align_settings' own."""
        return (self.settings | (self.settings.get("objective") or {})).get(name, default)


class Step(BaseModel):
    seconds: float = 0
    processor_seconds: float = 0
    made: dict[str, Any] = {}


class Papers(BaseModel):
    seed: int
    world_commit: str = ""
    machine: dict[str, Any] = {}
    seconds: float = 0
    processor_seconds: float = 0
    complete: bool = False
    steps: dict[str, Step] = {}
    planned: dict[str, str] = {}  # labels of all methods of the seed, by name
    methods: dict[str, Method]
    without: dict[str, str] = {}  # what could not be made, and why


@dataclass(frozen=True)
class Curve:
    """Methods that differ in one number alone."""

    system: str
    label: str
    of: str  # "gamma" or "round"
    points: dict[float, str]  # that number: the method


@dataclass(frozen=True)
class Seed:
    """One seed's folder, read."""

    folder: Path
    told: Papers
    scores: dict[str, Score]

    @property
    def methods(self) -> dict[str, Method]:
        return self.told.methods

    @cached_property
    def systems(self) -> dict[str, list[str]]:
        """The methods of each system, each followed by its blind control. No method is left out: not one of a system
        that this file does not know, nor a control that nobody names."""
        known = [*SYSTEMS, *dict.fromkeys(m.system for m in self.methods.values() if m.system not in SYSTEMS)]
        found = {}
        for system in known:
            own = {name: one for name, one in self.methods.items() if one.system == system}
            seeing = [name for name, one in own.items() if not one.blind]
            pairs = [n for name in seeing for n in (name, own[name].control) if n in own]
            found[system] = list(dict.fromkeys([*pairs, *own]))
        return {system: names for system, names in found.items() if names}

    @cached_property
    def changed(self) -> dict[str, Changes]:
        """Of each method, against the base."""
        return {
            name: changes(self.scores[BASE], score)
            for name, score in self.scores.items()
            if BASE in self.scores and name != BASE
        }

    @cached_property
    def beyond(self) -> dict[str, Changes]:
        """Of each method whose blind control has been made, against that: what it learnt from the picture."""
        return {
            name: changes(self.scores[one.control], self.scores[name])
            for name, one in self.methods.items()
            if one.control in self.scores
        }

    @cached_property
    def missing(self) -> list[str]:
        """What is still to be made, by label where one is known; not what could not be made."""
        wanted = {BASE: "the base model"} | self.told.planned
        for one in self.methods.values():
            if one.control:
                wanted.setdefault(one.control, f"the blind control of {one.label}")
        return [label for name, label in wanted.items() if name not in self.methods and name not in self.told.without]

    @cached_property
    def curves(self) -> list[Curve]:
        """Over gamma: methods whose settings differ in nothing else, three at least. Over rounds: methods whose labels
        say "round 1", "round 2" and are alike otherwise, two at least; the base is round 0."""
        gammas: dict[tuple[str, ...], dict[float, str]] = {}
        rounds: dict[tuple[str, str], dict[float, str]] = {}
        for name, one in self.methods.items():
            if one.blind or name == BASE:
                continue
            if found := ROUND.search(one.label):
                key = (one.system, ROUND.sub("", one.label).strip())
                rounds.setdefault(key, {0: BASE} if BASE in self.methods else {})[int(found[1])] = name
            elif one.objective("kind", "dpo") != "sft":
                rest = json.dumps(_without(one.settings, "gamma"), sort_keys=True)
                gammas.setdefault((one.system, rest, str(one.pairs)), {})[float(one.objective("gamma", 1))] = name
        made = [
            Curve(system, self._shared(points.values()), "gamma", dict(sorted(points.items())))
            for (system, *_), points in gammas.items()
            if len(points) >= 3
        ]
        for (system, label), points in rounds.items():
            if len(set(points) - {0}) >= 2:
                made.append(Curve(system, label, "round", dict(sorted(points.items()))))
        return made

    def _shared(self, names: Iterable[str]) -> str:
        """The parts that all labels have, as "summed, SFT term" of "DPO, summed, SFT term" and others."""
        first, *others = [self.methods[name].label.split(", ") for name in names]
        return ", ".join(part for part in first if all(part in other for other in others)) or first[0]

    @cached_property
    def chiefs(self) -> dict[str, str]:
        """The method of each system whose words and captions are shown: its paper's own, and while that is not made yet
        the first that is. What came out has no say in it."""
        seeing = {
            system: [name for name in names if not self.methods[name].blind and name != BASE]
            for system, names in self.systems.items()
        }
        return {s: next((n for n in names if n in CHIEFS), names[0]) for s, names in seeing.items() if names}

    def listed(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each with its label; a control that follows its method needs no name of its own."""
        for before, name in zip((None, *names), names, strict=False):
            follows = before is not None and self.methods[before].control == name
            yield name, "  its blind control" if follows else self.methods[name].label

    def label(self, name: str) -> str:
        """With its system."""
        one = self.methods[name]
        return one.label if name == BASE else f"{system_label(one.system)}: {one.label}"


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: _without(v, name) if isinstance(v, Mapping) else v for k, v in settings.items() if k != name}


def system_label(system: str) -> str:
    return SYSTEMS.get(system, system)


def read(folder: str | Path) -> Seed:
    """The seed in `folder`, finished or not."""
    folder = Path(folder)
    path = folder / FILE
    if not path.exists():
        raise ValueError(f"{path} is not there: `mmfast demo --papers` makes it")
    try:
        told = Papers.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} cannot be read: {place + ': ' if place else ''}{first['msg']}") from None
    scores = {name: of_counted(_counted(folder, name, one)) for name, one in told.methods.items()}
    sizes = {name: score.captions for name, score in scores.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{path}: methods cannot be compared, they captioned different numbers of pictures: {sizes}")
    return Seed(folder, told, scores)


def _counted(folder: Path, name: str, one: Method) -> np.ndarray:
    if isinstance(one.counted, str) and not (folder / one.counted).exists():
        raise ValueError(f"{folder / FILE}: {name}'s counts are to be in {one.counted}, but {one.counted} is not there")
    counted = np.load(folder / one.counted) if isinstance(one.counted, str) else np.array(one.counted)
    if counted.ndim != 2 or counted.shape[1] != len(TALLY) or not len(counted):
        raise ValueError(
            f"{folder / FILE}: {name}'s counts are {counted.shape}, {len(TALLY)} columns a picture are expected: "
            "captions judged by another version of mmfast must be judged again"
        )
    return counted
