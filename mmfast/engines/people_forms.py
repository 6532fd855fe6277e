"""Forms: what a person fills in where the page has no better way to ask. Buttons, numbers and texts, one a field.

A form is made from what a request wants (labels, a choice, a pattern, a JSON schema, a text), and turns what was filled
in into the text that a model would have given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmfast.engines.base import Constraint

MOST_BUTTONS = 11  # a range of whole numbers up to this long is buttons
TEXT: dict[str, Any] = {"kind": "text", "label": "Answer", "required": True}


@dataclass(frozen=True)
class Form:
    """`fields`: {kind: choice, number or text, label, required, of?, options?: [{label, key, value}], low?, high?}.
    `told`: the values of the fields, as checked, made into a text."""

    fields: tuple[dict[str, Any], ...]
    told: Callable[[list[Any]], str]

    def checked(self, work: dict[str, Any]) -> dict[str, Any]:
        values = work.get("values")
        if not isinstance(values, list) or len(values) != len(self.fields):
            raise ValueError("the form is not filled in")
        checked = [_checked(field, value) for field, value in zip(self.fields, values, strict=True)]
        self.told(checked)  # what it cannot be told as is said now
        return {"values": checked}


def choices(label: str, texts: tuple[str, ...], keys: str = "") -> dict[str, Any]:
    """A field of buttons; a button's key is its digit where texts are digits, else its place."""
    own = all(re.fullmatch("[0-9]", text) for text in texts)
    pressed = list(keys) or (list(texts) if own else [str(n) for n in range(1, min(len(texts), 9) + 1)])
    pressed += [""] * (len(texts) - len(pressed))
    options = [{"label": t, "key": k, "value": t} for t, k in zip(texts, pressed, strict=True)]
    return {"kind": "choice", "label": label, "required": True, "options": options}


def scale(label: str, low: int, high: int) -> dict[str, Any]:
    field = choices(label, tuple(map(str, range(low, high + 1))))
    for option in field["options"]:
        option["value"] = int(option["value"])
    return field


def form_of(constraint: Constraint | None) -> Form:
    """What an answer is asked for by."""
    if constraint is None:
        return Form((TEXT,), lambda values: values[0])
    if constraint.choice:
        return Form((choices("Answer", constraint.choice),), lambda values: values[0])
    if constraint.regex:
        return Form(({**TEXT, "pattern": constraint.regex},), lambda values: values[0])
    schema = json.loads(constraint.schema)
    try:
        places = list(_places(schema, schema, (), True))
    except _Unknown:
        return Form(({**TEXT, "label": "Answer, as JSON", "schema": constraint.schema},), _as_json)
    empty = [field.get("empty") for _, field in places]

    def told(values: list[Any]) -> str:
        filled = [e if value is None else value for value, e in zip(values, empty, strict=True)]
        return _built([place for place, _ in places], filled)

    return Form(tuple(field for _, field in places), told)


def _checked(field: dict[str, Any], value: Any) -> Any:
    """One value, as its field wants it."""
    label = field["label"] if not field.get("of") else f"{field['of']}, {field['label']}"
    if value is None or value == "":
        if field["required"]:
            raise ValueError(f"{label} is not filled in")
        return None
    if field["kind"] == "choice":
        if not any(value == o["value"] and type(value) is type(o["value"]) for o in field["options"]):
            raise ValueError(f"{label} has no choice {value!r}")
    elif field["kind"] == "number":
        if isinstance(value, bool) or not isinstance(value, int if field["whole"] else int | float):
            raise ValueError(f"{label} is a {'whole ' if field['whole'] else ''}number")
        if (field["low"] is not None and value < field["low"]) or (field["high"] is not None and value > field["high"]):
            raise ValueError(f"{label} is from {field['low']} to {field['high']}")
    elif not isinstance(value, str):
        raise ValueError(f"{label} is a text")
    elif "pattern" in field and not re.fullmatch(field["pattern"], value):
        raise ValueError(f"{label} must have the form {field['pattern']}")
    return value


# JSON schemas


class _Unknown(Exception):
    """A part of a schema that has no field here: the whole is then written as JSON by hand."""


Place = tuple[str | int, ...]


def _places(schema: Any, whole: Any, at: Place, required: bool) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each value that the schema asks for: where it goes, and its field."""
    schema = _resolved(schema, whole)
    kind = schema.get("type")
    if kind == "object" and schema.get("properties"):
        needed = schema.get("required", ())
        for name, part in schema["properties"].items():
            yield from _places(part, whole, (*at, name), required and name in needed)
    elif kind == "array" and (number := schema.get("maxItems")) and schema.get("minItems") == number:
        for n in range(number):
            yield from _places(schema.get("items"), whole, (*at, n), required)
    elif kind == "array" and schema.get("prefixItems"):
        for n, part in enumerate(schema["prefixItems"]):
            yield from _places(part, whole, (*at, n), required)
    else:
        *above, last = at or ("Answer",)
        of = " ".join(str(part + 1) if isinstance(part, int) else part for part in above)
        label = f"{of} {last + 1}".strip() if isinstance(last, int) else last
        inside, field = isinstance(last, int), _field(schema, label)
        wanted = required or inside
        if wanted and field["kind"] == "text" and not field.get("pattern") and not schema.get("minLength"):
            wanted, field["empty"] = False, ""  # a reason that must be there may say nothing
        yield at, field | {"required": wanted, "of": "" if inside else of}


def _resolved(schema: Any, whole: Any) -> dict[str, Any]:
    for _ in range(20):
        if not isinstance(schema, dict):
            raise _Unknown
        if "$ref" not in schema:
            return schema
        found: Any = whole
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        schema = found
    raise _Unknown


def _field(schema: dict[str, Any], label: str) -> dict[str, Any]:
    kind = schema.get("type")
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        field = choices(label, tuple(map(str, values)))
        for option, value in zip(field["options"], values, strict=True):
            option["value"] = value
        return field
    if kind == "boolean":
        field = choices(label, ("yes", "no"), "yn")
        for option, value in zip(field["options"], (True, False), strict=True):
            option["value"] = value
        return field
    if kind in ("integer", "number"):
        whole = kind == "integer"
        low, high = schema.get("minimum"), schema.get("maximum")
        if whole and low is not None and high is not None and high - low < MOST_BUTTONS:
            return scale(label, int(low), int(high))
        if "exclusiveMinimum" in schema or "exclusiveMaximum" in schema or "multipleOf" in schema:
            raise _Unknown
        return {"kind": "number", "label": label, "whole": whole, "low": low, "high": high}
    if kind == "string":
        pattern = {"pattern": f"[\\s\\S]*(?:{schema['pattern']})[\\s\\S]*"} if "pattern" in schema else {}
        return {"kind": "text", "label": label} | pattern
    raise _Unknown


def _built(places: list[Place], values: list[Any]) -> str:
    """The values at their places, as JSON; what was left out is not there."""
    tree: dict[Any, Any] = {}
    for place, value in zip(places, values, strict=True):
        if not place:
            return json.dumps(value, ensure_ascii=False)
        inside = tree
        for part in place[:-1]:  # also where nothing is filled in: the places of a list stay theirs
            inside = inside.setdefault(part, {})
        if value is not None:
            inside[place[-1]] = value
    return json.dumps(_lists(tree), ensure_ascii=False)


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inside = {name: _lists(part) for name, part in tree.items()}
    return list(inside.values()) if inside and all(isinstance(name, int) for name in inside) else inside


def _as_json(values: list[Any]) -> str:
    try:
        json.loads(values[0])
    except ValueError as error:
        raise ValueError(f"this is no JSON: {error}") from None
    return values[0]
