"""DGPref's pickles: captions {idx_k: text}, what a model decomposed them to, and what experts found of that.

Names and prompts are not in them: names.json and prompts.txt lie beside (docs/formats.md). Decompositions and experts'
tables go with the captions that they are about (--answers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.dgpref import image_name, image_path, prompt_line
from mmfast.data.formats.dgpref import kind_of as kind_of_value
from mmfast.data.problems import BadRow
from mmfast.feedback.answer import Answer

if TYPE_CHECKING:
    from mmfast.feedback.tables import Table

INSTEAD = {
    "experts": "are scored with their captions: mmfast data pairs FILE --rule dgpref --captions CAPTIONS",
    "decomposition": "go with their captions: mmfast feedback import FILE --answers CAPTIONS --out FOLDER",
    "pairs": "are pairs already: mmfast data convert",
    "details": "are DGPref's own report, which nothing reads",
    "logps": "are log-probs, which nothing reads",
}


def kind_of(row: dict[str, Any]) -> str:
    return kind_of_value(row["value"]) if set(row) == {"key", "value"} else ""


def answers(rows: Iterable[Row], kind: str, table: Table) -> Iterator[Answer]:
    if kind != "captions":
        raise ValueError(f"these are no answers: DGPref's {kind} {INSTEAD[kind]}")
    options = {"root": table.reading.root, **table.reading.options}
    yield from table.each(rows, lambda row: [caption(row, options, table)])


def caption(row: Row, options: dict[str, Any], table: Table) -> Answer:
    """A caption: those of an image compete, whatever they answer."""
    if kind_of(row.value) != "captions":
        raise BadRow("format", f"the value of {row.value.get('key')!r} is no caption")
    name, k = image_name(row, options)
    return table.answer(
        row, prompt_line(row, options, k), row.value["value"], (image_path(name, options),),
        group=name, prompt_id=row.value["key"], sample=0, meta={"name": name, "k": k},
    )  # fmt: skip
