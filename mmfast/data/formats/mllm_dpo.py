"""mllm-dpo's pairs: question, chosen and rejected as {"from", "value"} dicts, lists of them, or a dict's repr.

The six ref_* log-probs of its with_logp files are kept in meta, by their names; training takes them only on request
(mmfast.reference.exchange) and after re-scoring rows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, need, record_of, with_meta
from mmfast.data.formats.messages import from_value, image_list, split_pair, to_value
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
        prompt, chosen, rejected = split_pair(chosen, rejected)
    scores = {
        f"{side}/{metric}": float(value[f"{metric}_{suffix}"])
        for side, suffix in SUFFIX.items()
        for metric in METRICS
        if value.get(f"{metric}_{suffix}") is not None
    }
    sides: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    images, known = image_list(value.get("image")), (*KNOWN, *SCORED)
    yield record_of(row, known, ids=("id", "question_id"), images=images, scores=scores or None, **sides)


def write(record: Record) -> Written:
    lost = Uncarried(record, "chosen_prompt and rejected_prompt", "images after the first")
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
    return with_meta(row, record), lost.names


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
    pairs_only=True,
)
