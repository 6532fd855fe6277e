"""Answers out of the folders of stages, and the pairs that critics and people have made of them.

Only what stands in a row's `scores` ranks answers: its number, seed, tokens and log-prob never do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmfast.data.problems import BadRow
from mmfast.data.text.segments import without_blanks
from mmfast.engines.stage import rows
from mmfast.feedback.answer import Answer, read_claims
from mmfast.feedback.compared import Verdict, paired
from mmfast.feedback.reading import Reading, manifest_of

Base = Callable[[], Iterator[Answer]]
Pair = tuple[Answer, Answer, dict[str, Any]]  # better, worse, and what else `pair_record` is told


def answers(folder: Path, manifest: dict[str, Any], reading: Reading, base: Base) -> Iterator[Answer]:
    """`base`: the answers that rows name by their keys."""
    stage = str(manifest.get("stage", ""))
    if stage not in STAGES:
        known = f"answers are read from folders of {', '.join(STAGES)}"
        raise ValueError(f"{folder} is a folder of {stage}: {INSTEAD.get(stage, known)}")
    _told(folder, manifest, reading)
    return STAGES[stage](folder, manifest, reading, base)


def _told(folder: Path, manifest: dict[str, Any], reading: Reading) -> None:
    if manifest.get("complete") is not True:
        failed = (manifest.get("counts") or {}).get("failed")
        why = f"{failed} of its requests failed" if failed else "it was limited, or stopped before its end"
        reading.notes.append(f"{folder} is not complete ({why}): what it holds is read")


def current(folder: Path, manifest: dict[str, Any], notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows that the wordings of the folder's last start made: those of earlier ones stay in it, and are told."""
    named = manifest.get("template")
    if not isinstance(named, dict):
        yield from rows(folder)
        return
    wordings, left = {f"{name}:{key['digest'][:16]}" for name, key in named.items()}, 0
    for row in rows(folder):
        if row.get("template") in wordings:
            yield row
        else:
            left += 1
    if left:
        notes.append(f"{folder}: {left} rows of an earlier wording are passed over")


def whole_rows(rows: Iterable[dict[str, Any]], folder: Path, **fields: type) -> Iterator[dict[str, Any]]:
    """The rows, each with these fields; one that lacks a field, or has another thing in it, raises and is named."""
    for row in rows:
        for name, kind in fields.items():
            if not isinstance(row.get(name), kind):
                told = f"its {name} is {json.dumps(row[name])[:60]}" if name in row else f"it has no {name}"
                raise ValueError(f"{folder}:{row['key'][:12]} is no row of this stage: {told}")
        yield row


def _whole(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The fields that rows of answers have in common."""
    source = f"{folder}:{row['key'][:12]}"
    last = row["prompt"][-1] if row["prompt"] else None
    if not isinstance(last, dict) or last.get("role") != "user" or not all(isinstance(i, str) for i in row["images"]):
        raise ValueError(
            f"{source} is no row of an answer: its prompt ends with no question, or its images are no paths"
        )
    return {
        "key": row["key"],
        "row": row["row"],
        "source": source,
        "group": row["group"],
        "prompt_id": row.get("prompt_id", ""),
        "images": tuple(os.path.abspath(folder / name) for name in row["images"]),
        "prompt": tuple(row["prompt"]),
        "text": row["answer"],
        "sample": row.get("sample", 0),
        "decode": row.get("decode", ""),
        "finish": row.get("finish", "stop"),
        "meta": row.get("meta") or {},
    }


def _answered(folder: Path, manifest: dict[str, Any], reading: Reading, base: Base) -> Iterator[Answer]:
    for row in whole_rows(rows(folder), folder, group=str, images=list, prompt=list, answer=str):
        fields = _whole(folder, row)
        meta = {name: row[name] for name in ("tokens", "logp") if row.get(name) is not None} | fields["meta"]
        if row.get("questions"):  # that the claims were checked by: RLAIF-V's files have them beside the facts
            meta["changed_facts"] = row["questions"]
        try:
            claims = read_claims(row.get("claims"), fields["text"])
        except BadRow as error:
            reading.bad(fields["source"], error)
        else:
            yield Answer(**fields | {"meta": meta}, scores=row.get("scores") or {}, claims=claims)


def _judged(folder: Path, manifest: dict[str, Any], reading: Reading, base: Base) -> Iterator[Answer]:
    """Every judged answer with its numbers and the judge's own answer. One that the judge said nothing of has no
    scores: who asks for them is told why. Where answers were shown in several orders, numbers are means of these, and a
    metric counts that has a number in each."""
    known = {one.key: one for one in base()}
    orders = 2 if manifest.get("order") == "both" else 1
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in whole_rows(current(folder, manifest, reading.notes), folder, answers=list, scores=dict):
        found.setdefault(tuple(map(str, row["answers"])), []).append(row)
    for keys, some in found.items():
        source, alone = f"{folder}:{some[0]['key'][:12]}", len(some[0].get("shown") or ()) == 1
        reference = next(({"reference": row["reference"]} for row in some if row.get("reference")), {})
        for key in keys:
            if key not in known:
                reading.bad(source, BadRow("answers", _unknown(folder, key)))
                continue
            numbers = _means([row["scores"].get(key) or {} for row in some], 1 if alone else orders)
            yield replace(known[key], source=source, scores=numbers, meta={**known[key].meta, **reference})


def _means(scores: list[dict[str, Any]], orders: int) -> dict[str, float]:
    """Of the metrics that so many orders have a number for."""
    found: dict[str, list[float]] = {}
    for one in scores:
        for name, value in one.items():
            if _is_number(value):
                found.setdefault(name, []).append(value)
    return {
        name: sum(numbers) / orders if orders > 1 else numbers[0]
        for name, numbers in found.items()
        if len(numbers) >= orders
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(folder: Path, key: str) -> str:
    return f"the answer {key[:12]} is not among the answers that {folder} is read with: give it its own with --answers"


STAGES: dict[str, Callable[[Path, dict[str, Any], Reading, Base], Iterator[Answer]]] = {
    "generate": _answered,
    "judge": _judged,
    "grade": _answered,
}
INSTEAD = {
    "critique": "its verdicts are on pairs of answers (mmfast data pairs --rule sima)",
    "correct": "it holds corrections (mmfast data pairs --rule rlhfv)",
    "decompose": "its items are no scores yet (mmfast check, then mmfast grade)",
    "check": "its verdicts are no scores yet (mmfast grade)",
    "logprobs": "its log-probs are no scores yet (mmfast grade --beta)",
}


# pairs that need no rule


def compared(folder: Path, reading: Reading) -> Iterator[Verdict]:
    """Every pair of a folder of critique once."""
    manifest = _manifest(folder, "critique", "mmfast critique")
    _told(folder, manifest, reading)
    orders = {"both": ("ab", "ba"), "random": ()}.get(str(manifest.get("order")), ("ab",))
    yield from paired(whole_rows(current(folder, manifest, reading.notes), folder, a=str, b=str), orders)


def verdicts(folder: Path, reading: Reading, base: Base) -> tuple[Iterator[Pair], dict[str, int]]:
    """A critic's verdicts as pairs, and counts of the others, which are full once all pairs are taken."""
    counts = {"pairs compared": 0, "ties": 0, "orders disagree": 0, "without a verdict": 0}
    found = list(compared(folder, reading))
    known = {one.key: one for one in base()}

    def pairs() -> Iterator[Pair]:
        for one in found:
            counts["pairs compared"] += 1
            if one.outcome in counts:
                counts[one.outcome] += 1
            elif missing := [key for key in (one.a, one.b) if key not in known]:
                reading.bad(f"{folder}:{one.rows[0]['key'][:12]}", BadRow("answers", _unknown(folder, missing[0])))
            else:
                better, worse = (known[key] for key in ((one.a, one.b) if one.outcome == "a" else (one.b, one.a)))
                yield better, worse, {"meta": _told_of(one.rows, one.outcome)}

    return pairs(), counts


def _told_of(rows: Sequence[dict[str, Any]], verdict: str) -> dict[str, Any]:
    """The critic's reason, and where it was read as labels P that the chosen answer is better."""
    chances = [row["p"] if verdict == "a" else 1 - row["p"] for row in rows if row.get("p") is not None]
    reason = next((row["reason"] for row in rows if row.get("reason")), "")
    return ({"p": sum(chances) / len(chances)} if chances else {}) | ({"reason": reason} if reason else {})


def corrections(folder: Path, reading: Reading, base: Base) -> tuple[Iterator[Pair], dict[str, int]]:
    """Answers as people corrected them (chosen) and as they were (rejected), with the spans that were marked and
    rewritten. An answer that was right makes no pair, and one that several people corrected alike makes one."""
    manifest = _manifest(folder, "correct", "mmfast correct")
    if (task := manifest.get("task", "correct")) != "correct":
        raise ValueError(f"{folder} is of the task {task}: mmfast corrected makes files of it")
    # The answers that were corrected
    _told(folder, manifest, reading)
    known = {one.key: one for one in base()}
    counts, made = {"corrections": 0, "right as they are": 0, "corrected alike by another": 0}, set()

    def pairs() -> Iterator[Pair]:
        for row in whole_rows(rows(folder), folder, answer_key=str, corrected=str, segments=list):
            counts["corrections"] += 1
            text, one = row["corrected"], known.get(row["answer_key"])
            if one is None:
                reading.bad(f"{folder}:{row['key'][:12]}", BadRow("answers", _unknown(folder, row["answer_key"])))
            elif text == one.text:
                counts["right as they are"] += 1
            elif (one.key, text) in made:
                counts["corrected alike by another"] += 1
            else:
                made.add((one.key, text))
                meta = {name: row[name] for name in ("segments", "annotator") if row.get(name)}
                yield (
                    replace(one, text=text, claims=None),
                    replace(one, claims=None),
                    {
                        "spans": _marked(row["segments"]),
                        "meta": meta,
                    },
                )

    return pairs(), counts


def _marked(segments: list[dict[str, Any]]) -> dict[str, list[tuple[int, int]]]:
    """What was marked, and what stands for it in the corrected answer; without blanks at the ends, which belong to the
    tokens of the words behind them. Added words have no place in what was."""
    new: list[tuple[int, int]] = []
    old: list[tuple[int, int]] = []
    shift = 0
    for one in sorted(segments, key=lambda one: one["span"]):
        first, end = one["span"]
        for side, said, at in ((old, one["from"], first), (new, one["to"], first + shift)):
            a, b = without_blanks(said, 0, len(said))
            side.append((at + a, at + b))
        shift += len(one["to"]) - (end - first)
    return {"chosen": new, "rejected": old}


def _manifest(folder: Path, stage: str, command: str) -> dict[str, Any]:
    manifest = manifest_of(folder)
    if manifest is None or manifest.get("stage") != stage:
        is_ = "is no folder of rows" if manifest is None else f"is a folder of {manifest.get('stage')}"
        raise ValueError(f"{folder} {is_}: a folder of {command} is needed")
    return manifest
