"""RLAIF-V's files: answers, facts (llama3_8b_inference.py), yes/no questions, autocheck rows, and pairs.

An autocheck row is one judged fact; those of a question_id are one answer. A fact holds where P(yes) + P(Yes) is above
P(no) + P(No), and an answer whose facts were not all judged is left out, as there. Differently from there, two facts
with the same question are two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.messages import image_list
from mmfast.data.formats.rlaifv import ASKING
from mmfast.data.problems import BadRow
from mmfast.feedback.answer import Answer, Claim, false_claims

if TYPE_CHECKING:
    from mmfast.feedback.tables import Table

YES, NO = ("yes", "Yes"), ("no", "No")
ORIGIN = ("origin_question", "origin_answer", "origin_fact")


def kind_of(row: dict[str, Any]) -> str:
    """Which of the pipeline's files a row stands in; "" for none, and for plain answers."""
    if isinstance(row.get("facts"), list) and ("raw_facts" in row or "changed_facts" in row):
        return "facts"
    if not any(name in _origin(row) for name in ORIGIN):
        return ""
    scores = row.get("scores")
    return "autocheck" if isinstance(scores, dict) and {*YES, *NO} & scores.keys() else "questions"


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    """Where the answer's own fields stand: metainfos of a question, metainfos in metainfos once it was answered."""
    infos = row.get("metainfos")
    if not isinstance(infos, dict):
        return {}
    return infos["metainfos"] if isinstance(infos.get("metainfos"), dict) else infos


def answers(rows: Iterable[Row], kind: str, table: Table) -> Iterator[Answer]:
    if kind == "questions":
        raise ValueError("these are RLAIF-V's questions about facts, without replies: its labeler answers them first")
    if kind == "facts":
        yield from table.each(rows, lambda row: (_with_facts(one) for one in table.plain(row)))
        return
    # Autocheck rows of an answer may stand apart: each rank wrote its own
    found: dict[str, list[Row]] = {}
    for row in rows:
        try:
            found.setdefault(_answer_id(row), []).append(row)
        except BadRow as error:
            table.reading.bad(row.source, error)
    yield from table.each((some[0] for some in found.values()), lambda row: [_judged(found[_answer_id(row)], table)])


def _with_facts(one: Answer) -> Answer:
    """Facts are claims that were not judged yet; their questions stay in meta."""
    facts = one.meta.get("facts") or []
    return replace(one, claims=tuple(Claim(str(fact), None) for fact in facts), scores={})


def _answer_id(row: Row) -> str:
    if isinstance(row.value, BadRow):
        raise row.value
    if kind_of(row.value) != "autocheck" or row.value.get("question_id") is None:
        raise BadRow("format", f"no autocheck row: it needs question_id, scores of {', '.join((*YES, *NO))}, metainfos")
    return str(row.value["question_id"])


def _judged(rows: list[Row], table: Table) -> Answer:
    """The answer of its autocheck rows."""
    value, origin = rows[0].value, _origin(rows[0].value)
    if missing := [name for name in ORIGIN if not isinstance(origin.get(name), str)]:
        raise BadRow("format", f"its metainfos have no {missing[0]}")
    claims = tuple(_claim(row) for row in rows)
    facts = [fact for fact in origin.get("origin_all_facts") or [] if fact != ""]
    if facts and len(facts) != len(claims):
        raise BadRow("claims", f"{len(claims)} judged claims for {len(facts)} facts")
    infos = value["metainfos"]
    ds_id = value.get("ds_question_id", infos.get("ds_question_id"))
    asked, image = origin["origin_question"], infos.get("image_path", origin.get("image_path"))
    keep = {"question_id": value["question_id"], "ds_question_id": ds_id, "metainfos": infos}
    told = [str(row.value.get("raw_question") or row.value.get("question")).removesuffix(ASKING) for row in rows]
    return table.answer(
        rows[0], asked, origin["origin_answer"], image_list(image),
        group=None if ds_id is None else f"{ds_id}@{asked}",
        prompt_id=str(ds_id if ds_id is not None else value["question_id"]),
        scores={"claims": -float(false_claims(claims))}, claims=claims, meta=keep | {"changed_facts": told},
    )  # fmt: skip


def _claim(row: Row) -> Claim:
    scores = row.value["scores"]
    try:
        yes, no = (sum(float(scores.get(name) or 0) for name in names) for names in (YES, NO))
    except (TypeError, ValueError):
        raise BadRow("score", f"scores are no numbers: {str(scores)[:80]}") from None
    return Claim(str(_origin(row.value)["origin_fact"]), yes > no, None, yes / (yes + no) if yes + no else None)
