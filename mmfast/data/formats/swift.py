"""ms-swift's rows (messages, or query and response, + a rejected side), ShareGPT's and LLaMA-Factory's pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, record_id, record_of
from mmfast.data.formats.messages import (
    SPEAKERS,
    answer,
    asked,
    chat,
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
from mmfast.data.text.templates import parts as parts_of

WHOLE = ("messages", "chosen_messages"), ("rejected_messages",)  # conversations with the answer; LLaMA-Factory's names
KNOWN = ("id", "images", "image", *WHOLE[0], *WHOLE[1], "rejected_response", "rejected_images")
INLINE, MARK = re.compile("<img>(.*?)</img>"), "<img></img>"  # of an image in the words of a query
QUERY = ("query", "response", "history")  # ms-swift's older form
SHAREGPT = ("conversations", "chosen", "rejected")


def _messages(value: Any, name: str, inside: list) -> list[dict]:
    return [
        m | {"content": with_markers(m["content"])} if m["role"] == "user" and isinstance(m["content"], str) else m
        for m in chat(value, name, inside, (*SPEAKERS, "tool"))
    ]


def _inline(message: dict, inside: list) -> dict:
    """A question whose images stand in its words, as <img>PATH</img>; they are added to `inside`."""
    text = message["content"]
    if message["role"] != "user" or not isinstance(text, str) or not (found := INLINE.findall(text)):
        return message
    parts = []
    for part in parts_of({"content": with_markers(INLINE.sub(MARK, text), MARK)}):
        if part["type"] == "image":
            part = {"type": "image", "index": len(inside)}
            inside.append(found.pop(0))
        parts.append(part)
    return message | {"content": parts}


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
    value, inside = row.value, list[Any]()
    images = image_list(value.get("images", value.get("image")))
    known: tuple[str, ...] = KNOWN
    own: dict[str, Any] = {}
    rejected: list[dict] | None
    better, worse = (next((value[k] for k in names if value.get(k) is not None), None) for names in WHOLE)
    # What was asked, and the two sides, in each of the forms
    if "conversations" in value:
        prompt = from_value(value["conversations"])
        sides = [from_value([value[k]] if isinstance(value[k], dict) else value[k]) for k in ("chosen", "rejected")]
        chosen, rejected, known, own = *sides, (*KNOWN, *SHAREGPT), {"meta": {"kind": "sharegpt"}}
    elif value.get("query") is not None:
        if images and INLINE.search(f"{value['query']}{value.get('history')}"):
            raise BadRow("format", "images stand in a column and in the words; one of the two places is enough")
        prompt = [_inline(m, inside) for m in asked(value["query"], value.get("history"), len(images))]
        chosen, rejected, known = [answer(value.get("response"))], None, (*KNOWN, *QUERY)
    elif value.get("chosen") is not None:  # LLaMA-Factory's ranking beside messages of {role, content}
        prompt = place_images(_messages(better, "messages", inside), len(images))
        chosen, rejected = (chat(value[k], k, inside) for k in ("chosen", "rejected"))
        known = (*KNOWN, *SHAREGPT)
    else:
        chosen, rejected = place_images(_messages(better, "messages", inside), len(images)), None
        prompt, chosen = chosen[:-1], chosen[-1:]
    if worse is not None:
        theirs = image_list(value.get("rejected_images"))
        rejected = place_images(_messages(worse, "rejected_messages", inside), len(theirs or images))
        chosen = [*prompt, *chosen]
        if theirs and theirs != images:  # the rejected side has seen other images
            own = {"rejected_prompt": tuple(_numbered(rejected[:-1], len(images)))}
            rejected = rejected[-1:]
            chosen, images = _numbered(chosen, 0), images + theirs
            prompt, chosen = chosen[:-1], chosen[-1:]
            own["chosen_prompt"] = tuple(prompt)
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
    if not chosen or chosen[-1]["role"] != "assistant":
        raise BadRow("empty-response", "messages does not end with an answer")
    if inside and images:
        raise BadRow("format", "images stand in a column and in content parts; one of the two places is enough")
    # One record, or one for each of several rejected answers
    others = value.get("rejected_response") if rejected is None else None
    several = others if isinstance(others, list) else [others]
    for number, text in enumerate(several):
        own |= {"id": f"{record_id(row, 'id')}-{number}"} if len(several) > 1 else {}
        worst = rejected if text is None else [answer(text)]
        yield record_of(row, known, images=images or tuple(inside), prompt=prompt, chosen=chosen, rejected=worst, **own)


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
    if isinstance(row.get("query"), str):
        return row.get("response") is not None
    if isinstance(row.get("chosen_messages"), list):
        return isinstance(row.get("rejected_messages"), list)
    if isinstance(row.get("messages"), list):
        sides = (row.get("chosen"), row.get("rejected"))
        return any(row.get(k) is not None for k in ("rejected_response", "rejected_messages")) or all(
            isinstance(side, dict) and "role" in side for side in sides
        )
    return isinstance(row.get("conversations"), list) and {"chosen", "rejected"} <= set(row)


FORMAT = Format(
    name="swift",
    columns=frozenset((*KNOWN, *SHAREGPT, *QUERY)),
    looks_for="messages + rejected_response or rejected_messages, query + response, conversations (or messages) + "
    "chosen + rejected, or chosen_messages + rejected_messages",
    accepts=_accepts,
    read=read,
    write=write,
)
