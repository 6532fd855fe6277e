r"""HH-RLHF's rows: chosen and rejected as whole conversations in a text each, "\n\nHuman: ...\n\nAssistant: ..."."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, need, record_of, with_meta
from mmfast.data.formats.messages import image_list, place_images, split_pair, to_markers
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

KNOWN = ("id", "images", "image", "chosen", "rejected")
MARK = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
NAMES = {role: name for name, role in ROLES.items()}


def _talk(text: Any, name: str) -> list[dict]:
    """The blank behind a mark, and blanks at a turn's end, belong to the form."""
    first, *rest = MARK.split("\n\n" + text.lstrip()) if isinstance(text, str) else ("?",)
    if first.strip() or not rest:
        raise BadRow("format", f"{name} does not begin with Human: or Assistant:")
    return [
        {"role": ROLES[speaker], "content": said.strip()} for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    texts = need(row.value, "chosen", "rejected")
    images = image_list(row.value.get("images", row.value.get("image")))
    sides = [_talk(text, name) for text, name in zip(texts, ("chosen", "rejected"), strict=True)]
    if any(side[-1]["role"] != "assistant" for side in sides):
        raise BadRow("empty-response", "chosen or rejected does not end with an answer")
    prompt, chosen, rejected = split_pair(*(place_images(side, len(images)) for side in sides))
    if not prompt:
        raise BadRow("format", "chosen and rejected do not begin with the same question")
    yield record_of(row, KNOWN, images=images, prompt=prompt, chosen=chosen, rejected=rejected)


def write(record: Record) -> Written:
    lost = Uncarried(record, "scores", "chosen_prompt and rejected_prompt")
    turns = [m for m in record.prompt if m["role"] != "system"]
    lost.unless(len(turns) == len(record.prompt), "system prompt")

    def text(side: Any) -> str:
        return "".join(f"\n\n{NAMES[m['role']]}: {to_markers(m)}" for m in (*turns, *side))

    row: dict[str, Any] = {"id": record.id, "chosen": text(record.chosen), "rejected": text(record.rejected)}
    row |= {"images": list(record.images)} if record.images else {}
    return with_meta(row, record), lost.names


def _accepts(row: dict) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return all(isinstance(text, str) and text.lstrip().startswith("Human:") for text in sides) and "prompt" not in row


FORMAT = Format(
    name="hh",
    columns=frozenset(KNOWN),
    looks_for="chosen and rejected as texts of Human: and Assistant: turns",
    accepts=_accepts,
    read=read,
    write=write,
    pairs_only=True,
)
