"""What a format is: how its rows are recognised, read into records, and written again."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.problems import BadRow
from mmfast.data.records import Record


@dataclass(frozen=True, kw_only=True)
class Format:
    name: str
    looks_for: str  # shown when detection fails
    columns: frozenset[str]  # that have a meaning here; what else a row holds is kept in meta and reported
    accepts: Callable[[dict], bool]
    read: Callable[[Row, dict[str, Any]], Iterator[Record]]  # the row, and the reader's options
    options: tuple[str, ...] = ()  # of the reader, beside those that every format has
    write: Callable[[Record], Written]
    pairs_only: bool = False  # it has no place for a record without a rejected side

    def to_row(self, record: Record) -> Written:
        if self.pairs_only and record.rejected is None:
            return None, [ONE_SIDED]
        return self.write(record)


Written = tuple[dict | None, list[str]]  # a row (None: there is no place for the record), and what it does not carry
ONE_SIDED = "the whole record: it has no rejected side"
# What a format may have no place for -> whether a record leaves that place empty.
PLACES: dict[str, Callable[[Record], bool]] = {
    "weight": lambda r: r.weight == 1.0,
    "segments": lambda r: not r.segments,
    "scores": lambda r: not r.scores,
    "rejected": lambda r: r.rejected is None,
    "chosen_prompt and rejected_prompt": lambda r: r.chosen_prompt is None and r.rejected_prompt is None,
    "images after the first": lambda r: len(r.images) <= 1,
}


class Uncarried:
    """Names the fields of a record that a written row does not hold: weight and segments for all formats but ours."""

    def __init__(self, record: Record, *places: str) -> None:
        self.names = [name for name in ("weight", "segments", *places) if not PLACES[name](record)]

    def unless(self, carried: bool, name: str) -> None:
        if not carried:
            self.names.append(name)


def record_of(
    row: Row,
    known: Container[str],
    *,
    ids: tuple[str, ...] = ("id",),
    prompt: Iterable[dict] = (),
    chosen: Iterable[dict],
    rejected: Iterable[dict] | None = None,
    meta: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """The record of a row. Its `known` columns have become what is given here; the others are kept in meta."""
    return Record(
        **{"id": record_id(row, *ids), "source": row.source} | fields,
        prompt=tuple(prompt),
        chosen=tuple(chosen),
        rejected=None if rejected is None else tuple(rejected),
        meta={k: v for k, v in row.value.items() if k not in known} | (meta or {}),
    )


def with_meta(row: dict[str, Any], record: Record) -> dict[str, Any]:
    """A written row with the record's further columns, which do not replace its own."""
    return row | {k: v for k, v in record.meta.items() if k not in row}


def need(row: dict, *names: str) -> list[Any]:
    missing = [n for n in names if row.get(n) is None]
    if missing:
        raise BadRow(
            "format", f"the row has no {' and no '.join(missing)} (it has {', '.join(sorted(row)) or 'nothing'})"
        )
    return [row[n] for n in names]


LABEL = ("label", "kto_tag")  # TRL's and ms-swift's; LLaMA-Factory's


def not_unpaired(value: dict) -> None:
    """Raises where answers are judged one by one: all would become targets, the bad ones too."""
    for name in LABEL:
        if isinstance(value.get(name), bool):
            raise BadRow(
                "unpaired",
                f"an answer with a boolean {name} and no rejected side is unpaired feedback (KTO), which nothing here "
                "trains on: pair good and bad answers of a prompt as chosen and rejected, or keep only the good ones, "
                f"without the column {name}, as SFT data",
            )


def record_id(row: Row, *names: str) -> str:
    """The first of the named columns that holds a name or number, or else the row's place."""
    values = (row.value.get(name) for name in names)
    return next((str(v) for v in values if isinstance(v, str | int) and str(v)), f"{row.file.stem}:{row.number}")
