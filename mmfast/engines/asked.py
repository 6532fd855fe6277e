"""What is asked of each row of a file: the prompt and images of any format that mmfast reads, and of rows that have no
answer yet: {id?, images? or image?, prompt or question or text (a text, or messages), or messages}."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.binding import NO_FILE, Stamp, stamp_of
from mmfast.data.containers.read import Row
from mmfast.data.formats.base import LABEL, Format, record_id
from mmfast.data.formats.known import FORMATS, format_of, read_row
from mmfast.data.formats.messages import from_value
from mmfast.data.images.decode import image_id
from mmfast.data.images.index import image_bytes, is_path, keep_bytes, unwrapped
from mmfast.data.problems import BadRow
from mmfast.data.records import Record
from mmfast.data.text.templates import parts, text_of
from mmfast.engines.base import Picture
from mmfast.engines.inputs import input_rows
from mmfast.engines.shards import Appender, cut_torn, read

NAMES = "images/names.jsonl"  # of image files, in a stage's folder
PROMPTS = "prompts"  # the format of rows without answers
IDS = ("id", "question_id", "idx")
IMAGES = ("images", "image", "image_path")
QUESTIONS = ("prompt", "question", "text", "messages", "conversations")  # the first one that a row has is asked
UNASKED = {"role": "assistant", "content": "-"}  # stands for the answer that is not there yet


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt of a row; or, with a `problem`, a row that asks nothing."""

    row: int  # of the input, all its files counted through
    source: str
    id: str = ""
    images: tuple[Any, ...] = ()  # as the row has them, in the order of their parts
    messages: tuple[dict[str, Any], ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_asked(
    path: Path, name: str = "auto", *, limit: int = 0, only_images: bool = False, root: Path | None = None
) -> Iterator[Asked]:
    """`limit`: how many rows are read (0: all). `only_images`: prompts come from elsewhere, rows need none. `root`: of
    relative image paths, beside the file by default."""
    root = root or (path if path.is_dir() else path.parent)
    if name not in ("auto", PROMPTS):
        format_of(path, name)  # an unknown one is told at once
    told: Format | None = None
    for number, row in enumerate(islice(input_rows(path, root), limit or None)):
        try:
            if isinstance(row.value, BadRow):
                raise row.value
            row = _without_verdict(row)
            if name == PROMPTS or (name == "auto" and _has_no_answer(row.value)):
                records: Iterator[Record] = read_row(FORMATS["trl"], _answerable(row, only_images), {})
            else:
                told = told or format_of(path, name)
                records = read_row(told, row, {"root": root})
            for record in records:
                yield from _asked(number, record)
        except BadRow as error:
            yield Asked(row=number, source=row.source, problem=str(error))


def _without_verdict(row: Row) -> Row:
    """Whether an answer was good (a boolean label: KTO's rows) does not matter to who asks anew; it stays in meta."""
    told = {name: str(row.value[name]) for name in LABEL if isinstance(row.value.get(name), bool)}
    return Row(row.file, row.number, row.value | told) if told else row


def _has_no_answer(value: dict[str, Any]) -> bool:
    for name in ("messages", "conversations"):
        turns = value.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and value.get("chosen") is None:
            last = turns[-1].get("role", turns[-1].get("from"))
            return last in ("user", "human") and not any(column.startswith("rejected") for column in value)
    return not any(fmt.accepts(value) for fmt in FORMATS.values())


def _answerable(row: Row, only_images: bool) -> Row:
    """The row as TRL's format would have it, were there an answer: read, checked and named as any other."""
    value = dict(row.value)
    names = [name for name in QUESTIONS if value.get(name)]
    if not names and not only_images:
        raise BadRow(
            "format", f"the row asks nothing: it has none of {', '.join(QUESTIONS)} (--ask TEXT asks all rows)"
        )
    prompt = value.pop(names[0]) if names else "-"
    if names and names[0] == "conversations":
        prompt = from_value(prompt)
    images = next((value.pop(name) for name in IMAGES if value.get(name) is not None), None)
    for name in (*IMAGES, "chosen", "completion", "rejected", "messages", "chosen_prompt", "rejected_prompt"):
        value.pop(name, None)
    own = {"id": record_id(row, *IDS), "images": images, "prompt": prompt, "chosen": [UNASKED]}
    return Row(row.file, row.number, value | own)


def _asked(number: int, record: Record) -> Iterator[Asked]:
    """A record's prompt, or both where its sides answer different ones."""
    meta = dict(record.meta)
    if record.rejected is None and record.chosen and record.chosen[-1] != UNASKED:
        meta.setdefault("reference", text_of(record.chosen[-1]))
    sides = [prompt for prompt in (record.chosen_prompt, record.rejected_prompt) if prompt]
    for prompt in dict.fromkeys(map(_frozen, sides)) if sides else [_frozen(record.prompt)]:
        messages = [
            {"role": role, "content": [dict(p) for p in c] if isinstance(c, tuple) else c} for role, c in prompt
        ]
        if not messages or messages[-1]["role"] != "user":
            raise BadRow("format", "the prompt does not end with a question of the user")
        images = _in_order(messages, record.images)
        asked = tuple({"role": m["role"], "content": _without_index(m["content"])} for m in messages)
        yield Asked(row=number, source=record.source, id=record.id, images=images, messages=asked, meta=plain(meta))


def _frozen(messages: tuple[dict[str, Any], ...]) -> tuple:
    def content(value: Any) -> Any:
        return value if isinstance(value, str) else tuple(tuple(part.items()) for part in value)

    return tuple((m["role"], content(m["content"])) for m in messages)


def _in_order(messages: list[dict], images: tuple[Any, ...]) -> tuple[Any, ...]:
    """The images in the order of their parts; a part may name its image by `index`."""
    places = [part.get("index") for m in messages for part in parts(m) if part["type"] == "image"]
    named = [images[place] for place in places if isinstance(place, int) and 0 <= place < len(images)]
    if named and len(named) == len(places):
        return tuple(named)
    if len(places) != len(images):
        raise BadRow("image-count", f"the prompt has places for {len(places)} images, and the row has {len(images)}")
    return images


def _without_index(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [{k: v for k, v in part.items() if k != "index"} for part in content]


def plain(value: Any) -> Any:
    """Something that JSON holds and gives back: bytes by their number, what it does not know by its text."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


class Pictures:
    """Images by what rows give: a path under `root`, or bytes, which are kept under OUT/images by their content.

    A file is read once for its name, and not held. OUT/images/names.jsonl remembers the names: the next start reads a
    file only if its inode, time or size has changed.
    """

    def __init__(self, root: Path, out: Path, *, notes: bool = False) -> None:
        """`notes`: whether names are noted down for the next start; in one process of those that share OUT."""
        self.root, self.out, self.notes = root, out, notes
        self.known: dict[str, str] = {}  # path -> id

    @cached_property
    def noted(self) -> dict[str, tuple[str, Stamp]]:
        """path -> (id, what its file was then). Read when the folder is ours; it may be deleted."""
        path = self.out / NAMES
        if not path.exists():
            return {}
        try:
            if self.notes:
                cut_torn(path)
            return {row["path"]: (row["id"], tuple(row["stamp"])) for _, row in read(path)}
        except (ValueError, KeyError, TypeError, OSError):  # damaged: as if it were not there
            if self.notes:
                path.unlink()
            return {}

    @cached_property
    def file(self) -> Appender:
        (self.out / NAMES).parent.mkdir(parents=True, exist_ok=True)
        return Appender(self.out / NAMES)

    def look_up(self, image: Any) -> tuple[Picture, str]:
        """The picture, and what rows call it: its whole path, or its path in OUT."""
        image = unwrapped(image)
        if is_path(image):
            path = os.path.abspath(self.root / image)
            if path not in self.known:
                self.known[path] = self._name(image, path)
            return Picture.named(path, self.known[path]), path
        data, _ = image_bytes(image, self.root)
        name = image_id(data)
        kept = keep_bytes(self.out / "images", name, data)
        return Picture.named(str(kept), name), f"images/{name[:2]}/{name}"

    def _name(self, image: str, path: str) -> str:
        stamp = stamp_of(path)
        name, before = self.noted.get(path, ("", NO_FILE))
        if stamp == before != NO_FILE:
            return name
        name = image_id(image_bytes(image, self.root)[0])
        if self.notes:
            self.file.write([{"path": path, "id": name, "stamp": stamp}])
        return name


def worded(wording: str, asked: Asked) -> Asked:
    """The same images under another question."""
    places: list[dict[str, Any]] = [{"type": "image"}] * len(asked.images)
    message = {"role": "user", "content": [*places, {"type": "text", "text": wording}]}
    return replace(asked, messages=(message,))
