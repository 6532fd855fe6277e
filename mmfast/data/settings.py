"""What examples are built by: the [data] section of a config, and what they need of other sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mmfast.config.schema import Config, Data


class DataSettings(Data):
    segments: Literal["none", "clean", "compat", "record"] = "none"
    insertions: Literal["ignore", "own", "both"] = "ignore"  # clean segments: tokens that one side alone has
    min_pixels: int = 0
    max_pixels: int = 0
    seed: int = 0  # of a fractional mixing weight

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
        changes = {"path": config.data.eval_path, "limit": 0} if held_out else {}
        return cls(
            **dict(config.data) | changes,
            segments=o.segments if o.segments == "record" or o.gamma != 1.0 else "none",
            min_pixels=m.min_pixels,
            max_pixels=m.max_pixels,
            seed=config.seed,
        )

    def files(self) -> list[tuple[str, float]]:
        """(path, mixing weight) of each source."""
        return [(self.path, 1.0)] if isinstance(self.path, str) else [(s.path, s.weight) for s in self.path]

    def roots(self) -> list[Path]:
        """Of each source: where its relative image paths start. The path as given: a linked file has the pictures that
        lie beside the link."""
        given = [Path(path) for path, _ in self.files()]
        return [Path(self.images) if self.images else p if p.is_dir() else p.parent for p in given]

    def of_examples(self) -> dict[str, Any]:
        """What a row's tokens, spans and flags depend on, beside template and tokenizer."""
        names = ("turns", "max_length", "max_words", "truncate", "segments", "insertions")
        return {name: getattr(self, name) for name in names}
