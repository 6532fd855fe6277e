"""SIMA's files: responses (a sampled and a greedy answer), critic prompts made of them, and the critic's results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import need
from mmfast.data.formats.messages import image_list
from mmfast.data.formats.sima import GREEDY, SAMPLE, asked_in, verdict
from mmfast.data.formats.sima import kind_of as kind_of_row
from mmfast.data.problems import BadRow
from mmfast.feedback.answer import Answer, grouped
from mmfast.feedback.seeds.leaving import Leaf, Leaving

if TYPE_CHECKING:
    from mmfast.feedback.tables import Table

DECODES = {SAMPLE: "sample", GREEDY: "greedy"}  # response 1 and response 2 of a critic prompt


def kind_of(row: dict[str, Any]) -> str:
    kind = kind_of_row(row)
    return "" if kind == "pairs" else kind


def answers(rows: Iterable[Row], kind: str, table: Table) -> Iterator[Answer]:
    """Two answers a row. After the critic the better one's score `critic` is 1 and the other's 0; a reply without a
    verdict gives no scores."""
    if kind == "prompts":
        raise ValueError("these are SIMA's prompts, without answers: mmfast generate FILE --preset sima answers them")
    yield from table.each(rows, lambda row: _both(row, table))


def _both(row: Row, table: Table) -> Iterator[Answer]:
    value = row.value
    kind = kind_of_row(value)
    if kind not in ("responses", "critic"):
        raise BadRow("format", f"no row of SIMA's responses or critic (it has {', '.join(sorted(value))})")
    texts = need(value, SAMPLE, GREEDY)
    if not all(isinstance(text, str) for text in texts):
        raise BadRow("format", "its two answers are not texts")
    meta = {name: value[name] for name in ("model_id", "rank_result") if value.get(name) is not None}
    scores: list[dict[str, float]] = [{}, {}]
    if kind == "critic":
        image, asked, said = value.get("id"), asked_in(value["question"]), verdict(str(value["rank_result"]))
        if said is not None:
            scores = [{"critic": float(said == number)} for number in ("1", "2")]
    else:
        image, asked = value.get("image_path", value.get("image")), value.get("question", value["text"])
        meta["reference"] = value["ground_truth"]
    for column, text, own in zip(DECODES, texts, scores, strict=True):
        yield table.answer(row, asked, text, image_list(image), decode=DECODES[column], scores=own, meta=dict(meta))


# written


def write_responses(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """A row a group that has a sampled and a greedy answer."""
    for group in grouped(leaving.answers):
        drawn: dict[str, Answer] = {}
        for one in group:
            drawn.setdefault(one.decode, one)
        if not {"sample", "greedy"} <= drawn.keys():
            leaving.lost["groups without a sampled and a greedy answer"] += 1
            continue
        leaving.lost["answers beside those two"] += len(group) - 2
        first = drawn["sample"]
        yield {
            "image_path": leaving.image(first),
            "text": leaving.question(first),
            "ground_truth": first.reference,
            GREEDY: drawn["greedy"].text,
            SAMPLE: first.text,
            "model_id": first.meta.get("model_id", ""),
        }


def write_results(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """A row a pair, with its verdict as SIMA's dataset_for_dpo.py reads it: answer a stands as response 1, b as
    response 2. Without a verdict there are no brackets, and SIMA drops the row."""
    known = {one.key: one for one in leaving.answers}
    for pair in leaving.compared:
        a, b = known.get(pair.a), known.get(pair.b)
        if a is None or b is None:
            leaving.lost["pairs of unknown answers"] += 1
            continue
        asked = " ".join(leaving.question(a).split())
        if "Question: [" in asked or asked.endswith("]"):
            leaving.lost["questions that SIMA's reader would cut"] += 1
            continue
        number = {"a": "1", "b": "2"}.get(pair.outcome)
        leaving.lost[f"verdicts that are no verdict there ({pair.outcome})"] += number is None
        reason = next((str(row["reason"]) for row in pair.rows if row.get("reason")), "")
        reason = reason.replace("[[", "(").replace("]]", ")")
        yield {
            "id": leaving.image(a),
            "question": f"Question: [{asked}]\n",
            "rank_result": reason if number is None else f"{reason} [[{number}]]".strip(),
            SAMPLE: a.text,
            GREEDY: b.text,
            "model_id": a.meta.get("model_id", ""),
        }


WRITES = {
    "responses": Leaf(suffixes=(".jsonl",), about="a sampled and a greedy answer a row", write=write_responses),
    "results": Leaf(suffixes=(".jsonl",), about="a critic's verdicts", write=write_results, needs=("compared",)),
}
