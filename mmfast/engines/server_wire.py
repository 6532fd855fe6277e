"""A request as a server reads it: messages with their images, and every setting of a Decode said."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from mmfast.data.images.decode import image_size
from mmfast.data.problems import BadRow
from mmfast.data.text.templates import image_count, parts
from mmfast.engines.base import Constraint, Decode, Picture

# How servers take what OpenAI's own interface has no name for: vLLM and its like read it beside the other fields,
# `transformers serve` samples only if a whole generation_config says do_sample, hosted ones take what they name.
FORMS = ("beside", "generation_config", "bare")
LENGTHS = ("max_tokens", "max_completion_tokens")
# How servers spell a constraint, newest first
SPELLINGS = ("structured_outputs", "guided", "named", "response_format")
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}


def settings(decode: Decode, seed: int, form: str, length: str) -> dict[str, Any]:
    """All of a Decode, whether it is a default or not."""
    said: dict[str, Any] = {"temperature": decode.temperature, "top_p": decode.top_p, "seed": seed}
    said[length] = decode.max_tokens
    if decode.stop:
        said["stop"] = [*decode.stop]
    more = {"top_k": decode.top_k, "min_p": decode.min_p, "repetition_penalty": decode.repetition_penalty}
    if form == "beside":
        said |= more
    if form == "generation_config":
        drawn = {"temperature": decode.temperature, "top_p": decode.top_p, "top_k": decode.top_k, "min_p": decode.min_p}
        whole: dict[str, Any] = {
            "do_sample": decode.temperature > 0,
            "num_beams": 1,
            "max_new_tokens": decode.max_tokens,
        }
        whole |= {"repetition_penalty": decode.repetition_penalty} | (drawn if decode.temperature else {})
        said["generation_config"] = json.dumps(whole)
    return said


def constrained(constraint: Constraint, spelling: str) -> dict[str, Any]:
    """A constraint by one of the spellings; empty where that has no word for it."""
    kind = kind_of(constraint)
    schema = json.loads(constraint.schema) if constraint.schema else None
    value: Any = {"choice": [*constraint.choice], "regex": constraint.regex, "schema": schema}[kind]
    if spelling == "structured_outputs":
        return {"structured_outputs": {"json" if kind == "schema" else kind: value}}
    if spelling == "guided":
        return {f"guided_{'json' if kind == 'schema' else kind}": value}
    if spelling == "named":
        return {"regex": value} if kind == "regex" else {}
    if kind == "regex":
        return {}
    if kind == "choice":
        answer = {"type": "string", "enum": value}
        properties: dict[str, Any] = {"properties": {"answer": answer}, "required": ["answer"]}
        value = {"type": "object", **properties, "additionalProperties": False}
    wrapped = {"name": "answer", "strict": True, "schema": value}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def unwrapped(text: str, constraint: Constraint | None, spelling: str) -> str:
    """The choice inside the object that `response_format` makes of it."""
    if constraint is None or not constraint.choice or spelling != "response_format":
        return text
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError):
        return text


def kind_of(constraint: Constraint) -> str:
    return "choice" if constraint.choice else "regex" if constraint.regex else "schema"


def wired(messages: Sequence[dict[str, Any]], pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Messages with each image as a data URL of the file's own bytes: equal files are equal to a server's cache."""
    shown, named = image_count(messages), [p.get("index") for m in messages for p in parts(m) if p["type"] == "image"]
    inside = [i for i in named if i is not None]
    order = [pictures[i] for i in inside] if inside and len(inside) == shown else list(pictures)
    if shown != len(order):
        raise BadRow("image-count", f"{shown} places for images, and {len(order)} images")
    rest = iter(order)
    return [
        {"role": m["role"], "content": [_part(p, rest) for p in parts(m)] if image_count([m]) else _text(m)}
        for m in messages
    ]


def _part(part: dict[str, Any], pictures: Any) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": data_url(next(pictures).data)}}
    return {"type": "text", "text": part["text"]}


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in parts(message))


@lru_cache(maxsize=64)  # the prompts of an image come together
def data_url(data: bytes) -> str:
    """Raises BadRow where the file does not decode: a server's answer to such a file may be anything."""
    image_size(data)
    with Image.open(io.BytesIO(data)) as image:
        kind = image.get_format_mimetype() or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
