"""Into the folders of stages from the files of a seed's own pipeline: what was decomposed there is checked here.

Answers, scores and verdicts need no folder: the stages, and `mmfast data`, read those files as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import iterate
from mmfast.data.formats import dgpref as pickles
from mmfast.data.problems import BadRow
from mmfast.engines.base import canonical
from mmfast.feedback.answer import Answer
from mmfast.feedback.answers import read_answers
from mmfast.feedback.computed import Done, write_folder
from mmfast.feedback.expert_scores import parse_decomposition
from mmfast.feedback.seeds import rlaifv
from mmfast.job.runtime import Runtime

NAME, VERSION = "decompose", 1
KINDS = {"entity": "object", "attribute": "attribute", "count": "count", "relation": "relation"}
ASKED = {
    "object": "Is there a {0}?", "attribute": "Is the {1} {0}?", "count": "Are there {0} {1}?",
    "relation": "Is the {0} {1} the {2}?",
}  # fmt: skip


def enter(
    source: Path,
    out: Path,
    runtime: Runtime,
    *,
    answers: Path | None = None,
    images: str = "",
    options: dict[str, Any] | None = None,
) -> Done:
    """The items of RLAIF-V's file of facts, or of DGPref's decompositions with their captions (`answers`), as a folder
    of decompose."""
    # Which file it is
    first: Any = next((row.value for row in iterate(source) if not isinstance(row.value, BadRow)), {})
    facts, told = rlaifv.kind_of(first) == "facts", set(first) == {"key", "value"}
    kind = pickles.kind_of(first["value"]) if told else ""
    if not facts and kind != "decomposition":
        raise ValueError(f"{source} holds no items: RLAIF-V's facts and DGPref's decompositions are read")
    if facts and answers:
        raise ValueError("--answers has no effect on RLAIF-V's facts: the answers stand in the same rows")
    if not facts and not answers:
        raise ValueError(f"{source} holds decompositions: give the captions that they are of with --answers")
    # Its answers, and their items
    done = Done()
    found = read_answers(answers or source, images=images, options=options, notes=done.notes)
    items = _facts(done) if facts else _decompositions(source, done)
    made_by = {"stage": NAME, "version": VERSION, "imported": source.name, "input": (answers or source).name}
    runtime.hold(out, "--out")
    runtime.from_main(lambda: write_folder(out, made_by, _rows(found, items, done), done))
    if not done.counts["answers"]:
        raise ValueError(f"{source} holds no items of these answers")
    return done


def _rows(answers: Iterator[Answer], items: Any, done: Done) -> Iterator[dict[str, Any]]:
    for one in answers:
        own = items(one)
        if own is None:
            done.counts["answers without items of theirs"] += 1
            continue
        done.counts["answers"] += 1
        done.counts["items"] += len(own)
        key = hashlib.sha256(canonical([NAME, one.key, own]).encode()).hexdigest()
        yield {
            "key": key, "answer_key": one.key, "images": list(one.images), "items": own, "raw": {}, "row": one.row,
        }  # fmt: skip


def _item(kind: str, args: tuple[str, ...], claim: str, question: str) -> dict[str, Any]:
    told = {"kind": kind, "args": list(args), "claim": claim, "question": question}
    return {**told, "negated": False, "span": None}


def _facts(done: Done) -> Any:
    def of(one: Answer) -> list[dict[str, Any]] | None:
        facts, asked = [claim.text for claim in one.claims or ()], one.meta.get("changed_facts") or []
        if len(facts) != len(asked):
            done.counts["answers whose facts and questions differ in number: without questions"] += 1
            asked = [""] * len(facts)
        return [_item("claim", (), fact, str(question)) for fact, question in zip(facts, asked, strict=True)]

    return of


def _decompositions(source: Path, done: Done) -> Any:
    """By the caption's name: "{idx}_{k}"."""
    table: dict[str, list[dict[str, Any]]] = {}
    for row in iterate(source):
        if isinstance(row.value, BadRow) or pickles.kind_of(row.value["value"]) != "decomposition":
            raise ValueError(f"{row.source} is no decomposition")
        table[row.value["key"]] = [
            _item(KINDS[aspect], parts, " ".join(parts), ASKED[KINDS[aspect]].format(*parts))
            for aspect, some in parse_decomposition(row.value["value"]).items()
            for parts in dict.fromkeys(some)
        ]
    return lambda one: table.get(one.prompt_id)
