"""Formats of preference and SFT files, one module each; which one a file has is told from its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row, Source, iterate, shards
from mmfast.data.formats import alpaca, dgpref, hh, llava, mllm_dpo, rlaifv, rlhfv, sima, swift, trl
from mmfast.data.formats.base import Format, not_unpaired
from mmfast.data.problems import BadRow, Problem, check_texts, pass_over
from mmfast.data.records import Record
from mmfast.data.text.segments import judged_segments
from mmfast.data.text.templates import text_of

TEXTS = ("id", "images", "prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt")
MODULES = (trl, llava, mllm_dpo, sima, rlhfv, rlaifv, dgpref, swift, alpaca, hh)
FORMATS: dict[str, Format] = {m.FORMAT.name: m.FORMAT for m in MODULES}

SYSTEM = "system"
MEDIA = ("video", "videos", "audio", "audios")


def detect(path: Source, look: int = 20) -> Format:
    """The one format that the first rows fit. Broken rows do not vote; no fit, or two, is an error that says so."""
    first = list(islice(iterate(path), look))
    if not first:
        raise ValueError(f"{path} holds no row")
    rows = [r.value for r in first if not isinstance(r.value, BadRow)]
    if not rows:
        reason = f" (the first, {first[0].source}: {first[0].value})"
        raise ValueError(f"{path}: none of the first {look} rows can be read{reason}, so the format cannot be told")
    votes = {name: sum(bool(f.accepts(row)) for row in rows) for name, f in FORMATS.items()}
    best = max(votes.values())
    winners = [name for name, n in votes.items() if n == best]
    if best * 2 > len(rows) and len(winners) == 1:
        return FORMATS[winners[0]]
    listed = "\n".join(f"  {name}: {f.looks_for}" for name, f in FORMATS.items())
    state = f"fits {' and '.join(winners)} alike" if best * 2 > len(rows) else "fits no known format"
    raise ValueError(
        f"{path}: {state}. Its first row has the columns {', '.join(sorted(rows[0]))}. Looked for:\n{listed}\n"
        "Name the format with data.format, or convert the file"
    )


def format_of(path: Source, name: str = "auto") -> Format:
    if name == "auto":
        return detect(path)
    if name not in FORMATS:
        raise ValueError(f"data.format: unknown format {name!r}; choose auto, {', '.join(FORMATS)}")
    return FORMATS[name]


def known_options(formats: Iterable[Format], options: dict[str, Any]) -> None:
    """Raises at the first option that none of the formats has."""
    formats = list(formats)
    known = {"claims", *(name for f in formats for name in f.options)}
    for name in options:
        if name not in known:
            read = " and ".join(sorted({f.name for f in formats}))
            listed = ", ".join(sorted(known))
            raise ValueError(f"data.options: {read} has no option {name!r}; known is {listed} (docs/formats.md)")


def read_row(fmt: Format, row: Row, options: dict[str, Any]) -> Iterator[Record]:
    """The records of one row. Anything a hand-made row can get wrong surfaces as a BadRow."""
    if isinstance(row.value, BadRow):
        raise row.value
    try:
        _readable(row.value)
        for record in fmt.read(row, options):
            check_texts({name: getattr(record, name) for name in TEXTS})  # also those a column held as JSON
            if record.rejected is None:
                not_unpaired(row.value)
            record = _instructed(record, row.value)
            yield _weighed(record, float(options["claims"])) if "claims" in options else record
    except BadRow:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise BadRow("format", f"not a {fmt.name} row ({kind}{error}); it has {fmt.looks_for}") from error


def unused(fmt: Format, value: Any) -> list[str]:
    """The columns of a row that nothing is made of: they are kept in meta, and reports name them."""
    if isinstance(value, BadRow):
        return []
    return [k for k, v in value.items() if k not in fmt.columns and k != SYSTEM and v is not None]


def _readable(value: dict) -> None:
    for name in MEDIA:
        if value.get(name):
            raise BadRow("media", f"the row has {name}; only images and text are read")


def _instructed(record: Record, value: dict) -> Record:
    """A column `system` becomes the first message."""
    text = value.get(SYSTEM)
    if not text:
        return record
    if not isinstance(text, str):
        raise BadRow("format", f"the column system is a {type(text).__name__}, not a text")
    message = {"role": "system", "content": text}

    def opened(prompt: tuple[dict, ...]) -> tuple[dict, ...]:
        if prompt and prompt[0]["role"] == "system" and prompt[0] != message:
            raise BadRow("format", "the row has a column system and another system message in its prompt")
        return prompt if prompt and prompt[0] == message else (message, *prompt)

    sides: dict[str, Any] = {
        s: opened(p) for s in ("chosen_prompt", "rejected_prompt") if (p := getattr(record, s)) is not None
    }
    if record.prompt or not sides:
        sides["prompt"] = opened(record.prompt)
    return replace(record, meta={k: v for k, v in record.meta.items() if k != SYSTEM}, **sides)


def _weighed(record: Record, wrong: float) -> Record:
    """The option `claims`: judged claims in meta become weighted spans, `wrong` for what was rejected. Spans with
    weights of their own stay; those without mark what the claims say, and get this weight."""
    claims = record.meta.get("claims")
    own = [span for spans in (record.segments or {}).values() for span in spans]
    if claims is None or any(len(span) > 2 and span[2] is not None for span in own):
        return record
    out = {}
    for side, messages in (("chosen", record.chosen), ("rejected", record.rejected)):
        if messages and claims.get(side):
            out[side] = judged_segments(text_of(messages[-1]), claims[side], wrong=wrong)
    return replace(record, segments={side: spans for side, spans in out.items() if spans} or None)


def read_records(
    path: Source,
    name: str = "auto",
    options: dict[str, Any] | None = None,
    problems: list[Problem] | None = None,
    *,
    root: Path | None = None,
    columns: Counter[str] | None = None,
) -> Iterator[Record]:
    """The records of a file. A broken row raises, or, where `problems` is given, is listed there and passed over.

    `root`: where its relative image paths start, beside the file by default. Columns that are kept in meta and not used
    are counted in `columns`.
    """
    fmt = format_of(path, name)
    known_options([fmt], options or {})
    reader = {"root": root or shards(path).folder, **(options or {})}

    def records() -> Iterator[Record]:
        for row in iterate(path):
            try:
                yield from read_row(fmt, row, reader)
                if columns is not None:
                    columns.update(unused(fmt, row.value))
            except BadRow as error:
                pass_over(row.source, error, problems)

    return records()
