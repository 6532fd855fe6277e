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
from mmfast.feedback.answer import Answer

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
