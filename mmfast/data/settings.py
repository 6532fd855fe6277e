"""What examples are built by: the [data] section of a config, and what they need of other sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mmfast.config.schema import Config, Data, Source
from mmfast.data.containers.hub import same_data_set
from mmfast.data.containers.read import Shards, located, shards


class DataSettings(Data):
    segments: Literal["none", "clean", "compat", "record"] = "none"
    insertions: Literal["ignore", "own", "both"] = "ignore"  # clean segments: tokens that one side alone has
    min_pixels: int = 0
    max_pixels: int = 0
    seed: int = 0  # of a fractional mixing weight
    found: tuple[Shards, ...] = ()  # what `path` stands for, once `here` has looked

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = (f"data.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
            raise ValueError("\n".join(lines)) from None

    @classmethod
    def of(cls, config: Config, held_out: bool = False) -> DataSettings:
        """The one place where they are taken from a config. `held_out`: those of data.eval_path, read the same way."""
        o, m = config.objective, config.model
        changes: dict[str, Any] = {}
        if held_out:
            d = config.data
            changes = {"path": d.eval_path, "split": d.eval_split, "limit": 0}
            if not same_data_set(d.path, d.eval_path):  # the others are said of data.path
                changes |= {"subset": "", "revision": ""}
        return cls(
            **dict(config.data) | changes,
            segments=o.segments if o.segments == "record" or o.gamma != 1.0 else "none",
            min_pixels=m.min_pixels,
            max_pixels=m.max_pixels,
            seed=config.seed,
        )

    def here(self, notes: str | Path = "", tell: Callable[[str], None] = print) -> DataSettings:
        """The same with the files that the path stands for; those of a hub are fetched (hub.py, also on `notes`)."""
        if self.found:
            return self
        kept = Path(notes) / "hub" if notes else None
        found = located(self._given(), self.split, self.subset, self.revision, kept, tell)
        return self.model_copy(update={"found": tuple(found)})

    def pinned_path(self) -> str | list[Source]:
        """`path` as it is written beside a run: hub ids at their commits."""
        if not self.found:
            return self.path
        names = [f.told if f.pinned else str(p) for f, p in zip(self.found, self._given(), strict=True)]
        if isinstance(self.path, str):
            return names[0]
        return [Source(path=name, weight=s.weight) for name, s in zip(names, self.path, strict=True)]

    def _given(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else [s.path for s in self.path]

    def files(self) -> list[tuple[str | Shards, float]]:
        """(path, mixing weight) of each source."""
        weights = [1.0] if isinstance(self.path, str) else [source.weight for source in self.path]
        paths: Sequence[str | Shards] = self.found or self._given()
        return list(zip(paths, weights, strict=True))

    def roots(self) -> list[Path]:
        """Of each source: where its relative image paths start. The path as given: a linked file has the pictures that
        lie beside the link."""
        return [Path(self.images) if self.images else shards(path).folder for path, _ in self.files()]

    def of_examples(self) -> dict[str, Any]:
        """What a row's tokens, spans and flags depend on, beside template and tokenizer."""
        names = ("turns", "max_length", "max_words", "truncate", "segments", "insertions")
        return {name: getattr(self, name) for name in names}
