"""Published data sets as sets of prompts: images with what is asked about them, and the true answer where there is one.

`turns` reads data sets that have questions of their own, `annotated` those that have images alone, `draw` draws from
either by a seed. `KINDS` names them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row, iterate
from mmfast.data.problems import BadRow
from mmfast.feedback.published import annotated, turns
from mmfast.feedback.published.base import Found, Kind, Taking

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*turns.KINDS, *annotated.KINDS, turns.ROWS)}


def kind_of(source: Path, name: str = "auto") -> Kind:
    """The kind that the first row of a file is of, or the named one, if that row has its columns."""
    if name not in ("auto", *KINDS):
        raise ValueError(f"--kind: unknown kind {name!r}; choose auto, {', '.join(KINDS)}")
    first = next((row.value for row in islice(iterate(source), 20) if not isinstance(row.value, BadRow)), None)
    if first is None:
        raise ValueError(f"{source}: none of its first 20 rows can be read")
    found = next((kind for kind in KINDS.values() if kind.accepts(first)), None)
    has = f"its first row has {_columns(first)}"
    if name == "auto":
        if found is None:
            listed = "; ".join(f"{kind.name}: {kind.looks_for}" for kind in KINDS.values())
            raise ValueError(f"{source} is no data set of a known kind: {has}. Looked for {listed}")
        return found
    if not KINDS[name].accepts(first):
        like = f" (it looks like {found.name})" if found else ""
        raise ValueError(f"{source} is no {name} file: {has}, and {name} is told by {KINDS[name].looks_for}{like}")
    return KINDS[name]


def found_in(source: Path, kind: Kind, taking: Taking) -> Iterator[Found]:
    """What the rows of a file give, in their order; bad rows as `taking` has it."""
    return kind.read(source, iterate(source), taking)


def _columns(value: dict[str, Any]) -> str:
    names = [str(name) for name in value]
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "") if names else "nothing"


__all__ = ["KINDS", "Found", "Kind", "Row", "Taking", "found_in", "kind_of"]
