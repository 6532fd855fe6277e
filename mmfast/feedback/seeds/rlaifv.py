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
from mmfast.feedback.seeds.leaving import Leaf, Leaving

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
        scores={"claims": 0.0 - false_claims(claims)}, claims=claims, meta=keep | {"changed_facts": told},
    )  # fmt: skip


def _claim(row: Row) -> Claim:
    scores = row.value["scores"]
    try:
        yes, no = (sum(float(scores.get(name) or 0) for name in names) for names in (YES, NO))
    except (TypeError, ValueError):
        raise BadRow("score", f"scores are no numbers: {str(scores)[:80]}") from None
    return Claim(str(_origin(row.value)["origin_fact"]), yes > no, None, yes / (yes + no) if yes + no else None)


# written


def _named(leaving: Leaving) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """The answers with the fields that all files have. Ids are the rows' own where they came from such files, else a
    running number and the prompt's id."""
    for number, one in enumerate(leaving.answers):
        own = one.meta.get("metainfos")
        infos = dict(own) if isinstance(own, dict) and "origin_answer" not in _origin(one.meta) else {}
        infos["image_path"] = leaving.image(one)
        if one.reference:
            infos["reference"] = one.reference
        yield (
            one,
            {
                "question_id": one.meta.get("question_id", number),
                "ds_question_id": str(one.meta.get("ds_question_id") or one.prompt_id or one.group),
                "raw_question": leaving.question(one),
                "answer": one.text,
                "metainfos": infos,
                "model_path": one.meta.get("model_path", ""),
            },
        )


def write_answers(leaving: Leaving) -> Iterator[dict[str, Any]]:
    yield from (row for _, row in _named(leaving))


def write_facts(leaving: Leaving) -> Iterator[dict[str, Any]]:
    for one, row in _named(leaving):
        facts, asked = _facts(leaving, one)
        if facts is None:
            leaving.lost["answers that were not decomposed"] += 1
            continue
        yield row | {
            "raw_facts": "\n".join(["### Facts:", *(f"- {fact}" for fact in facts)]),
            "facts": facts,
            "raw_changed_facts": "\n".join(["### Modified sentences:", *(f"- {question}" for question in asked)]),
            "changed_facts": asked,
        }


def _facts(leaving: Leaving, one: Answer) -> tuple[list[str] | None, list[str]]:
    """Facts and their questions: of decompose's items, or as the answer came with them."""
    if one.key in leaving.items:
        items = leaving.items[one.key]
        leaving.lost["spans of claims"] += sum(item.get("span") is not None for item in items)
        return [_line(item["claim"]) for item in items], [question_of(item) for item in items]
    if one.claims is None:
        return None, []
    facts = [_line(claim.text) for claim in one.claims]
    asked = one.meta.get("changed_facts")
    if isinstance(asked, list) and len(asked) == len(facts):
        return facts, list(map(str, asked))
    return facts, list(map(_asked_whether, facts))


def question_of(item: dict[str, Any]) -> str:
    """A question whose yes makes the claim true: RLAIF-V has no other."""
    asked = _line(str(item.get("question") or ""))
    return _asked_whether(item["claim"]) if item.get("negated") or not asked else asked


def _asked_whether(claim: str) -> str:
    return f"Is it right to say: {_line(claim).rstrip('.')}?"


def _line(text: str) -> str:
    return " ".join(text.split())


def write_questions(leaving: Leaving) -> Iterator[dict[str, Any]]:
    for one, row in _named(leaving):
        facts, asked = _facts(leaving, one)
        if facts is None:
            leaving.lost["answers that were not decomposed"] += 1
        for fact, question in zip(facts or [], asked, strict=True):
            yield _asked_of(row, facts or [], asked, fact, question)


def _asked_of(row: dict[str, Any], facts: list[str], asked: list[str], fact: str, question: str) -> dict[str, Any]:
    origin = {
        "origin_question": row["raw_question"], "origin_answer": row["answer"], "origin_fact": fact,
        "origin_changed_fact": question, "origin_all_facts": facts, "origin_changed_all_facts": asked,
    }  # fmt: skip
    return {
        "question_id": row["question_id"],
        "ds_question_id": row["ds_question_id"],
        "image_path": row["metainfos"]["image_path"],
        "question": question + ASKING,
        "metainfos": row["metainfos"] | origin,
    }


def write_autocheck(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """A row a judged claim. An answer with a claim that was not judged has fewer rows than facts, and RLAIF-V's pairs
    leave it out."""
    for one, row in _named(leaving):
        facts, asked = _facts(leaving, one)
        if one.claims is None or facts is None or len(facts) != len(one.claims):
            leaving.lost["answers without judged claims"] += 1
            continue
        leaving.lost["spans of claims"] += sum(claim.span is not None for claim in one.claims)
        for claim, fact, question in zip(one.claims, facts, asked, strict=True):
            if claim.holds is None:
                leaving.lost["claims that were not judged"] += 1
                continue
            whole = _asked_of(row, facts, asked, fact, question)
            p = claim.p if claim.p is not None and (claim.p > 0.5) == claim.holds else float(claim.holds)
            yield {
                "question_id": whole["question_id"],
                "ds_question_id": whole["ds_question_id"],
                "raw_question": whole["question"],
                "answer": "yes" if claim.holds else "no",
                "scores": {"yes": p, "Yes": 0.0, "no": 1 - p, "No": 0.0},
                "metainfos": {
                    name: whole[name] for name in ("question_id", "ds_question_id", "image_path", "metainfos")
                },
                "model_path": row["model_path"],
            }


WRITES = {
    "answers": Leaf(suffixes=(".jsonl",), about="answers, for the split", write=write_answers),
    "facts": Leaf(suffixes=(".jsonl",), about="answers with facts and their questions", write=write_facts),
    "questions": Leaf(suffixes=(".jsonl",), about="yes/no questions, for the labeler", write=write_questions),
    "autocheck": Leaf(suffixes=(".jsonl",), about="judged facts, for the pairs", write=write_autocheck),
}
