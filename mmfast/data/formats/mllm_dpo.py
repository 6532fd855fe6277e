"""mllm-dpo's pairs: question, chosen and rejected as {"from", "value"} dicts, lists of them, or a dict's repr.

The six ref_* log-probs of its with_logp files are kept in meta, by their names; training takes them only on request
(mmfast.reference.exchange) and after re-scoring rows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import (
    ONE_SIDED,
    Format,
    Losses,
    common_prefix,
    from_value,
    image_list,
    need,
    record_id,
    to_value,
)
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

METRICS = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")
KNOWN = ("id", "question_id", "image", "question", "chosen", "rejected")
LOGPS = tuple(f"ref_{side}{kind}_logp" for side in ("win", "rej") for kind in ("", "_avg", "_per_token"))
SUFFIX = {"chosen": "gpt4v", "rejected": "candidate"}  # the file's names for the two sides

SCORED = tuple(f"{metric}_{suffix}" for metric in METRICS for suffix in SUFFIX.values())


def _turns(value: Any, name: str) -> list[dict]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise BadRow("format", f"{name} is a text but not the repr of a {{from, value}} dict") from None
    return from_value([value] if isinstance(value, dict) else value)


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    need(value, "chosen", "rejected")
    chosen, rejected = _turns(value["chosen"], "chosen"), _turns(value["rejected"], "rejected")
    if chosen[0]["role"] == "assistant":
        (question,) = need(value, "question")
        prompt = _turns(question, "question")
    else:  # whole conversations: the question is not used
        n = common_prefix(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    scores = {
        f"{side}/{metric}": float(value[f"{metric}_{suffix}"])
        for side, suffix in SUFFIX.items()
        for metric in METRICS
        if value.get(f"{metric}_{suffix}") is not None
    }
    yield Record(
        id=record_id(row, "id", "question_id"),
        source=row.source,
        images=image_list(value.get("image")),
        prompt=tuple(prompt),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        scores=scores or None,
        meta={k: v for k, v in value.items() if k not in KNOWN and k not in SCORED},
    )


def write(record: Record) -> tuple[dict | None, list[str]]:
    if record.rejected is None:
        return None, [ONE_SIDED]
    lost = Losses()
    lost.unless(record.chosen_prompt is None and record.rejected_prompt is None, "chosen_prompt and rejected_prompt")
    lost.unless(record.weight == 1.0, "weight")
    lost.unless(not record.segments, "segments")
    lost.unless(len(record.images) <= 1, "images after the first")
    row: dict[str, Any] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0]
    prompt, chosen, rejected = (to_value(m or ()) for m in (record.prompt, record.chosen, record.rejected))
    if len(prompt) == 1 and len(chosen) == 1 and len(rejected) == 1:
        row |= {"question": prompt[0], "chosen": chosen[0], "rejected": rejected[0]}
    else:
        row |= {"chosen": prompt + chosen, "rejected": prompt + rejected}
    for name, score in (record.scores or {}).items():
        side, _, metric = name.partition("/")
        carried = side in SUFFIX and metric in METRICS
        lost.unless(carried, f"scores[{name}]")
        if carried:
            row[f"{metric}_{SUFFIX[side]}"] = score
    return {**row, **{k: v for k, v in record.meta.items() if k not in row}}, lost.names


def _accepts(row: dict) -> bool:
    def turn(value: Any) -> bool:
        if isinstance(value, str):
            return value.lstrip().startswith("{") and "'value'" in value
        first = value[0] if isinstance(value, list) and value else value
        return isinstance(first, dict) and "from" in first and "value" in first

    return turn(row.get("chosen")) and turn(row.get("rejected")) and "conversations" not in row


FORMAT = Format(
    name="mllm_dpo",
    columns=frozenset((*KNOWN, *SCORED, *LOGPS)),
    looks_for="question, chosen and rejected as {from, value} turns (dicts, lists or their repr)",
    accepts=_accepts,
    read=read,
    write=write,
)
