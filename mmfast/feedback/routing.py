"""Which expert checks which kind of item is data: a TOML file.

[experts.eyes]                  # a name of one's own
use = "owl"                     # what it is: a name of EXPERTS or FILTERS
model = "google/owlvit-large-patch14"
threshold = 0.25                # its options
[experts.asked]
use = "yesno"                   # by an engine: the command's --engine and --model, or its own
engine = "plain"
model = "Salesforce/blip2-flan-t5-xl"
prompt = "yes_no_short"
[route]
object = "eyes"                 # kind of item -> expert
relation = "skip"               # known, and not checked: verdict 0
[route.attribute]
expert = "asked"
subjects = "eyes"               # where this one does not find what the item is about, the verdict is -2
filter = "grammar"              # a question that this one does not pass is not asked: verdict 0
[skip]
whole = ["image", "scene"]      # words for the picture itself: not things in it
attributes = ["several"]        # words that say nothing that can be seen
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from mmfast.engines.base import Engine
from mmfast.feedback.expert_scores import NUMBERS, WHOLE_IMAGE
from mmfast.feedback.items import KINDS, PLACES
from mmfast.feedback.prompts import prompt
from mmfast.packages import tomllib

FOLDER = Path(__file__).with_name("experts")
# What an expert can be -> its class; those of ENGINES stand on an engine
EXPERTS = {
    "owl": "owl:Owl",
    "dino": "dino:Dino",
    "graph": "graph:Graph",
    "ocr": "ocr:Ocr",
    "yesno": "yesno:YesNo",
    "world": "world:Annotation",
    "likely": "grammar:Likely",
    "cola": "grammar:Cola",
}
ENGINES = {"yesno": "yes_no", "likely": "question_check", "world": ""}  # -> the prompt that it asks with
PARSERS = {"yesno": "labels", "likely": "logp"}  # of their prompts: how a reply is read
FINDERS, FILTERS = ("owl", "dino", "graph", "world"), ("likely", "cola")
OF_ENGINE = {
    "engine": "str",
    "model": "str",
    "adapter": "str",
    "dtype": "str",
    "remote_code": "bool",
    "concurrency": "int",
    "noise": "float",
}
TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
SKIP = "skip"
_VAGUE = ("multiple", "several", "various", "numerous", "middle", "surrounded")
UNSEEN_ATTRIBUTES = (*_VAGUE, *NUMBERS, *map(str, NUMBERS.values()), *PLACES)


class Route(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    expert: str
    subjects: str = ""
    filter: str = ""


class Skip(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    whole: tuple[str, ...] = tuple(sorted(WHOLE_IMAGE))
    attributes: tuple[str, ...] = UNSEEN_ATTRIBUTES


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    experts: dict[str, dict[str, Any]] = {}
    route: dict[str, Route]
    skip: Skip = Skip()

    @field_validator("route", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {kind: {"expert": told} if isinstance(told, str) else told for kind, told in value.items()}
        return value


@dataclass(frozen=True)
class Routing:
    name: str
    digest: str
    content: Content

    @property
    def used(self) -> list[str]:
        """The experts that some kind needs, in the table's order."""
        needed = {
            name for route in self.content.route.values() for name in (route.expert, route.subjects, route.filter)
        }
        return [name for name in self.content.experts if name in needed]

    @property
    def asks(self) -> bool:
        """Does an expert ask the command's own engine?"""
        return any(
            own["use"] in ENGINES and not own.get("engine")
            for own in (self.content.experts[name] for name in self.used)
        )


def known() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_routing(name: str) -> Routing:
    """A table of ours by its name, or a file; everything that can be said to be wrong with it is said here."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"--experts: there is no table {name} (there are {', '.join(known())}, or a path of a .toml file)"
        )
    data = path.read_bytes()
    try:
        content = Content(**tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _check(path, content)
    return Routing(path.stem, hashlib.sha256(data).hexdigest(), content)


def _check(path: Path, content: Content) -> None:
    # Each expert is one that there is, with options that it takes
    for name, own in content.experts.items():
        use = own.get("use")
        if use not in EXPERTS:
            near = get_close_matches(str(use), EXPERTS, 1)
            hint = f": did you mean {near[0]}?" if near else f" (there are {', '.join(EXPERTS)})"
            raise ValueError(f"{path}: experts.{name}: there is no expert {use!r}{hint}")
        _options(path, name, own)
    # Each kind goes to an expert that can check it
    for kind, route in content.route.items():
        if kind not in KINDS:
            raise ValueError(f"{path}: route.{kind}: there is no such kind of item (there are {', '.join(KINDS)})")
        for part, names in (("expert", ()), ("subjects", FINDERS), ("filter", FILTERS)):
            name = getattr(route, part)
            if not name or (part == "expert" and name == SKIP):
                continue
            if name not in content.experts:
                raise ValueError(f"{path}: route.{kind}.{part}: {name!r} is not among its experts")
            use = content.experts[name]["use"]
            if names and use not in names:
                raise ValueError(f"{path}: route.{kind}.{part}: {name} is a {use}, not one of {', '.join(names)}")
            if part == "expert" and (use in FILTERS or kind not in _class(use).kinds):
                raise ValueError(f"{path}: route.{kind}: {name} is a {use}, which cannot check this kind")


def _options(path: Path, name: str, own: dict[str, Any]) -> None:
    """Options that an expert does not take, or needs and has not, are refused before anything is opened."""
    use = own["use"]
    made = _class(use)
    parameters = inspect.signature(made).parameters
    takes = {key: str(p.annotation) for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    takes = {key: kind for key, kind in takes.items() if key not in ("engine", "device")}
    if "sizes" in parameters:
        from mmfast.feedback.experts.boxes import Sizes

        takes |= {name: str(own.type) for name, own in Sizes.__dataclass_fields__.items()}
    takes |= OF_ENGINE if use in ENGINES else {}
    takes |= {"prompt": "str"} if "prompt" in takes else {}
    if unknown := sorted(own.keys() - takes - {"use"}):
        raise ValueError(
            f"{path}: experts.{name}: {use} has no option {unknown[0]} (it has {', '.join(sorted(takes))})"
        )
    for key in own.keys() - {"use"}:
        types = TYPES.get(takes[key], (object,))
        if not isinstance(own[key], types) or (isinstance(own[key], bool) and types in ((int,), (int, float))):
            raise ValueError(f"{path}: experts.{name}.{key}: {own[key]!r} is no {takes[key]}")
    needs = [key for key, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing := [key for key in needs if key not in own and key not in ("engine", "prompt")]:
        raise ValueError(f"{path}: experts.{name}: {use} needs the option {missing[0]}")
    if own.get("engine") and not own.get("model"):
        raise ValueError(f"{path}: experts.{name}: its engine {own['engine']} has no model: add model")
    if own.get("model") and use in ENGINES and not own.get("engine"):
        raise ValueError(f'{path}: experts.{name}: it has a model and no engine: add engine = "local" or another')


def _has_weights(own: dict[str, Any]) -> bool:
    return "model" in own or own["use"] in ENGINES


def _class(use: str) -> Any:
    home, _, name = EXPERTS[use].partition(":")
    return getattr(importlib.import_module(f"mmfast.feedback.experts.{home}"), name)


@dataclass
class Opened:
    """The experts of a table, with the engines that were opened for them."""

    routing: Routing
    experts: dict[str, Any] = field(default_factory=dict)
    engines: list[Any] = field(default_factory=list)

    def close(self) -> None:
        for engine in self.engines:
            if close := getattr(engine, "close", None):
                close()


def open_experts(routing: Routing, engine: Callable[[Mapping[str, Any]], Engine], device: Any = "cpu") -> Opened:
    """`engine`: opens the engine that an expert's options name, the command's own where they name none."""
    opened, shared = Opened(routing), {}
    # Those without weights first: a package or a file that is missing is told at once
    for name in sorted(routing.used, key=lambda name: _has_weights(routing.content.experts[name])):
        own = dict(routing.content.experts[name])
        use = own.pop("use")
        made = _class(use)
        arguments: dict[str, Any] = {key: own[key] for key in own if use not in ENGINES or key not in OF_ENGINE}
        if "device" in inspect.signature(made).parameters:
            arguments["device"] = device
        if use in ENGINES:
            options = {key: own[key] for key in OF_ENGINE if key in own}
            key = repr(sorted(options.items()))
            if key not in shared:
                shared[key] = engine(options)
                opened.engines.append(shared[key])
            arguments["engine"] = shared[key]
            if ENGINES[use]:
                arguments["prompt"] = prompt(own.get("prompt") or ENGINES[use], parsers=[PARSERS[use]])
        try:
            opened.experts[name] = made(**arguments)
        except ValueError as error:
            raise ValueError(f"experts.{name}: {error}") from None
    return opened
