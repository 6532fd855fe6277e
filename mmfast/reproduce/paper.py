"""recipes/papers/NAME.toml: whose paper, which models and files, what was published, and where we differ.

What nobody knows is written down as "unknown", so that a missing word is a mistake and not a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mmfast.config.schema import Section
from mmfast.config.toml import read_tree
from mmfast.training.recipes import FOLDER

HOME = FOLDER / "papers"
UNKNOWN = "unknown"
Unknown = Literal["unknown"]


class Work(Section):
    """How much a round does, for hours and disk: from the papers and their scripts, not measured."""

    pairs: int | Unknown
    tokens_per_pair: int | Unknown
    prompts: int | Unknown
    tokens_per_prompt: int | Unknown
    """With all answers to it, what they share once."""


class Weights(Section):
    what: str
    id: str
    """On the hub."""
    revision: str
    """A commit of the hub, or "unknown": then the newest is fetched."""
    layout: Literal["hf", "llava", "tower", "published"]
    """transformers' own, LLaVA's native, an image tower, or "published": what `mmfast import` reads."""
    folder: str
    """Below the root."""
    imported: str = ""
    """Where `mmfast import` leaves it, below the root."""
    like: str = ""
    """The id by which the memory estimate knows its sizes."""
    hidden: int = 0
    layers: int = 0
    vocab: int = 0
    parameters: float = 0
    gib: float | Unknown
    licence: str

    @model_validator(mode="after")
    def _sized(self) -> Weights:
        if self.layout != "tower" and not (self.hidden and self.layers and self.vocab and self.parameters):
            raise ValueError("hidden, layers, vocab and parameters are needed of a language model")
        if (self.layout == "published") != bool(self.imported):
            raise ValueError('imported belongs to layout = "published", and to no other')
        return self

    @property
    def used(self) -> str:
        return self.imported or self.folder


class Input(Section):
    what: str
    path: str
    """Below the root: a file, or a folder."""
    source: str
    hub: str = ""
    """The data set's id, where it is on the hub."""
    licence: str
    gib: float | Unknown
    rows: int | Unknown
    header: tuple[str, ...] = ()
    """Columns that its rows must have; none of a folder of pictures."""
    images: str = ""
    """Below the root: the folder with the pictures that its rows name."""
    commands: tuple[str, ...] = ()
    """By which it is fetched, or made of what its source has; {root} stands for the folder that the user names."""


class Service(Section):
    stage: str
    what: str


class Figure(Section):
    of: Literal["base", "aligned"]
    metric: str
    """benchmark.metric, as mmfast has it."""
    value: float | Unknown
    times: float = 1.0
    """What our figure is multiplied by to be in the paper's unit."""
    table: str
    source: str


class Difference(Section):
    what: str
    theirs: str
    here: str
    effect: str
    as_theirs: tuple[str, ...] = ()
    """Overrides that do as they do."""


class Paper(Section):
    title: str
    paper: str
    code: str
    recipe: str
    overrides: list[str]
    """Of the recipe; {root} stands for the folder that the user names."""
    prompts: str
    evaluation: str
    work: Work
    models: list[Weights] = Field(min_length=1)
    """The first is the base."""
    inputs: list[Input] = Field(min_length=1)
    services: tuple[Service, ...] = ()
    published: list[Figure] = Field(min_length=1)
    differs: list[Difference] = Field(min_length=1)

    @property
    def recipe_file(self) -> Path:
        return FOLDER / f"{self.recipe}.toml"

    def overrides_at(self, root: Path) -> list[str]:
        return [text.replace("{root}", str(root)) for text in self.overrides]


def names() -> list[str]:
    return [path.stem for path in sorted(HOME.glob("*.toml"))]


def load_paper(name: str) -> Paper:
    if name not in names():
        raise ValueError(f"there is no paper {name!r}: choose one of {', '.join(names())}")
    return read_paper(HOME / f"{name}.toml")


def read_paper(path: Path) -> Paper:
    try:
        return Paper.model_validate(read_tree(path))
    except ValidationError as error:
        told = [f"{'.'.join(map(str, item['loc']))}: {_said(item)}" for item in error.errors()]
        raise ValueError(f"{path.name}: {'; '.join(told)}") from None


def _said(item: Any) -> str:
    return f"is missing (write {UNKNOWN!r} where nobody knows)" if item["type"] == "missing" else str(item["msg"])
