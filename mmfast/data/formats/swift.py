"""ms-swift's rows (messages + rejected_response or rejected_messages) and ShareGPT's (conversations + a pair)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, record_of
from mmfast.data.formats.messages import (
    answer,
    from_value,
    image_list,
    place_images,
    split_pair,
    to_markers,
    to_value,
    with_markers,
)
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

KNOWN = ("id", "images", "image", "messages", "rejected_response", "rejected_messages", "rejected_images")
SHAREGPT = ("conversations", "chosen", "rejected")


def _messages(value: Any) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        raise BadRow("format", "messages is not a list of {role, content} with texts")
    return [
        {"role": m["role"], "content": with_markers(m["content"]) if m["role"] == "user" else m["content"]}
        for m in value
    ]


def _numbered(messages: list[dict], first: int) -> list[dict]:
    """Image parts that name their image, for a side with images of its own."""
    out = []
    for message in messages:
        if isinstance(message["content"], list):
            content = []
            for part in message["content"]:
                if part["type"] == "image":
                    part, first = {"type": "image", "index": first}, first + 1
                content.append(part)
            message = {**message, "content": content}
        out.append(message)
    return out


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    images = image_list(value.get("images", value.get("image")))
    if "conversations" in value:
        prompt = from_value(value["conversations"])
        sides = [from_value([value[k]] if isinstance(value[k], dict) else value[k]) for k in ("chosen", "rejected")]
        known, meta = (*KNOWN, *SHAREGPT), {"kind": "sharegpt"}
        yield record_of(row, known, images=images, prompt=prompt, chosen=sides[0], rejected=sides[1], meta=meta)
        return
    chosen = place_images(_messages(value.get("messages")), len(images))
    own_prompt = None
    rejected: list[dict] | None
    if value.get("rejected_messages") is not None:
        theirs = image_list(value.get("rejected_images"))
        rejected = place_images(_messages(value["rejected_messages"]), len(theirs or images))
        if theirs and theirs != images:  # the rejected side has seen other images
            own_prompt = tuple(_numbered(rejected[:-1], len(images)))
            rejected = rejected[-1:]
            chosen, images = _numbered(chosen, 0), images + theirs
            prompt, chosen = chosen[:-1], chosen[-1:]
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
    else:
        prompt, chosen = chosen[:-1], chosen[-1:]
        text = value.get("rejected_response")
        rejected = None if text is None else [answer(text)]
    if chosen and chosen[-1]["role"] != "assistant":
        raise BadRow("empty-response", "messages does not end with an answer")
    own: dict[str, Any] = {"chosen_prompt": tuple(prompt), "rejected_prompt": own_prompt} if own_prompt else {}
    yield record_of(row, KNOWN, images=images, prompt=prompt, chosen=chosen, rejected=rejected, **own)


def write(record: Record) -> Written:
    lost = Uncarried(record, "scores")
    rest = {k: v for k, v in record.meta.items() if k != "kind"}
    row: dict[str, Any] = {"id": record.id}
    if record.meta.get("kind") == "sharegpt" and record.rejected is not None:
        row["conversations"] = to_value(record.prompt)
        for name, side in (("chosen", record.chosen), ("rejected", record.rejected)):
            row[name] = to_value(side)[0] if len(side) == 1 else to_value(side)
        row["images"] = list(record.images)
        return {**rest, **row}, lost.names

    def plain(messages: Any) -> list[dict]:
        return [{"role": m["role"], "content": to_markers(m)} for m in messages]

    row["messages"] = plain([*(record.chosen_prompt or record.prompt), *record.chosen])
    if record.rejected is not None:
        if record.rejected_prompt is not None or len(record.rejected) > 1 or len(record.chosen) > 1:
            row["rejected_messages"] = plain([*(record.rejected_prompt or record.prompt), *record.rejected])
        else:
            row["rejected_response"] = to_markers(record.rejected[0])
    indexed = [
        [p["index"] for m in side for p in m["content"] if isinstance(p, dict) and "index" in p]
        for side in (record.chosen_prompt or (), record.rejected_prompt or ())
    ]
    if indexed[1]:
        row["images"] = [record.images[i] for i in indexed[0]]
        row["rejected_images"] = [record.images[i] for i in indexed[1]]
    else:
        row["images"] = list(record.images)
    return {**rest, **row}, lost.names


def _accepts(row: dict) -> bool:
    if isinstance(row.get("messages"), list):
        return any(row.get(k) is not None for k in ("rejected_response", "rejected_messages"))
    return isinstance(row.get("conversations"), list) and {"chosen", "rejected"} <= set(row)


FORMAT = Format(
    name="swift",
    columns=frozenset((*KNOWN, *SHAREGPT)),
    looks_for="messages + rejected_response or rejected_messages; or conversations + chosen + rejected (ShareGPT)",
    accepts=_accepts,
    read=read,
    write=write,
)
