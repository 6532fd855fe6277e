"""Into the folders of stages from files of elsewhere: answers as of generate, decompositions as of decompose.

Stages read most files of answers as they are. A folder is for those that are joined with their questions, that hold
images inside their rows, or whose images lie under another root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import iterate
from mmfast.data.formats import dgpref as pickles
from mmfast.data.images.index import is_path
from mmfast.data.problems import BadRow
from mmfast.engines.asked import Pictures, plain
from mmfast.engines.base import canonical
from mmfast.feedback.answer import Answer
from mmfast.feedback.answers import read_answers
from mmfast.feedback.computed import Done, write_folder
from mmfast.feedback.expert_scores import parse_decomposition
from mmfast.feedback.items import Item, item_of, quoted
from mmfast.feedback.reading import manifest_of
from mmfast.feedback.seeds import rlaifv
from mmfast.feedback.spans import span_of
from mmfast.job.runtime import Runtime

DECOMPOSE, GENERATE, VERSION = "decompose", "generate", 1
IMPORTED = "imported"  # in a template's place: rows of stages say which wording made them
DIGEST = hashlib.sha256(IMPORTED.encode()).hexdigest()


def enter(
    source: Path,
    out: Path,
    runtime: Runtime,
    *,
    answers: Path | None = None,
    questions: Path | None = None,
    answer: str = "",
    images: str = "",
    options: dict[str, Any] | None = None,
) -> Done:
    """RLAIF-V's facts, or DGPref's decompositions with their captions (`answers`), as a folder of decompose; any other
    answers as one of generate."""
    # Which file it is, and what belongs to it
    first: Any = next((row.value for row in iterate(source) if not isinstance(row.value, BadRow)), {})
    facts = rlaifv.kind_of(first) == "facts"
    table = pickles.kind_of(first["value"]) == "decomposition" if set(first) == {"key", "value"} else False
    if table and not answers:
        raise ValueError(f"{source} holds decompositions: give the captions that they are of with --answers")
    idle = {
        "--answers": answers and not table,
        "--questions": questions and (facts or table),
        "--answer": answer and (facts or table),
    }
    if unused := [name for name, given in idle.items() if given]:
        raise ValueError(f"{unused[0]} has no effect on {source}")
    # Its answers, and their items
    done = Done()
    if manifest_of(source) is not None:
        raise ValueError(f"{source} is a folder of rows already")
    found = read_answers(
        answers or source, images=images, options=options, questions=questions, answer=answer, notes=done.notes
    )
    stage = DECOMPOSE if facts or table else GENERATE
    if stage == GENERATE:
        rows = _answers(found, Pictures(Path("/"), out), done)
    else:
        rows = _rows(found, _facts(done) if facts else _decompositions(source, done), done)
    made_by: dict[str, Any] = {
        "stage": stage,
        "version": VERSION,
        "imported": source.name,
        "input": (answers or source).name,
    }
    if stage == DECOMPOSE:
        made_by |= {"template": {IMPORTED: {"name": IMPORTED, "version": VERSION, "digest": DIGEST}}}
    runtime.hold(out, "--out")
    runtime.from_main(lambda: write_folder(out, made_by, rows, done))
    if not done.counts["answers"]:
        raise ValueError(f"{source} holds no {'items of these answers' if stage == DECOMPOSE else 'answer'}")
    return done


def _answers(answers: Iterator[Answer], pictures: Pictures, done: Done) -> Iterator[dict[str, Any]]:
    """Rows of generate. Images that lie in the rows are kept in the folder; one that cannot be read is told where it is
    looked at."""
    for one in answers:
        done.counts["answers"] += 1
        claims = None if one.claims is None else [claim.as_row() for claim in one.claims]
        yield {
            "key": one.key, "group": one.group, "prompt_id": one.prompt_id,
            "images": [image if is_path(image) else pictures.look_up(image)[1] for image in one.images],
            "prompt": list(one.prompt), "answer": one.text, "decode": one.decode, "sample": one.sample,
            "finish": one.finish, "scores": one.scores, "claims": claims, "meta": plain(one.meta), "row": one.row,
        }  # fmt: skip


def _rows(answers: Iterator[Answer], items: Any, done: Done) -> Iterator[dict[str, Any]]:
    for one in answers:
        own = items(one)
        if own is None:
            done.counts["answers without items of theirs"] += 1
            continue
        done.counts["answers"] += 1
        done.counts["items"] += len(own)
        key = hashlib.sha256(canonical([DECOMPOSE, one.key, own]).encode()).hexdigest()
        yield {
            "key": key, "answer_key": one.key, "images": list(one.images), "items": own, "raw": "",
            "problem": "", "template": f"{IMPORTED}:{DIGEST[:16]}", "row": one.row,
        }  # fmt: skip


def _laid(items: Iterable[Item], one: Answer, done: Done) -> list[dict[str, Any]]:
    """Each on the characters that it came from, as decompose lays its own."""
    laid = [replace(item, span=span_of(one.text, item.claim)).row() for item in items]
    done.counts["items without words of their own in the answer (span null)"] += sum(not row["span"] for row in laid)
    return laid


def _facts(done: Done) -> Any:
    def of(one: Answer) -> list[dict[str, Any]] | None:
        facts, asked = [claim.text for claim in one.claims or ()], one.meta.get("changed_facts") or []
        if len(facts) != len(asked):
            done.counts["answers whose facts and questions differ in number: without questions"] += 1
            asked = [""] * len(facts)
        pairs = zip(facts, map(str, asked), strict=True)
        return _laid([Item(kind="claim", claim=fact, question=question) for fact, question in pairs], one, done)

    return of


def _decompositions(source: Path, done: Done) -> Any:
    """By the caption's name: "{idx}_{k}". Kinds and questions are those of our own decompositions, and what a caption
    quotes is a text, as DGPref finds it."""
    table: dict[str, list[Item]] = {}
    for row in iterate(source):
        if isinstance(row.value, BadRow) or pickles.kind_of(row.value["value"]) != "decomposition":
            raise ValueError(f"{row.source} is no decomposition")
        table[row.value["key"]] = [
            item_of(aspect, parts)
            for aspect, some in parse_decomposition(row.value["value"]).items()
            for parts in dict.fromkeys(some)
        ]

    def of(one: Answer) -> list[dict[str, Any]] | None:
        if one.prompt_id not in table:
            return None
        return _laid([*table[one.prompt_id], *(item_of("text", (said,)) for said in quoted(one.text))], one, done)

    return of
