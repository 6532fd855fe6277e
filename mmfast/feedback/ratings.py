"""How a judge's ratings are read: one JSON object, wherever it stands in the reply. What is missing stays missing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRIED = 64  # beginnings of an object that are tried, from the first


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Of so many answers, in the order in which they were shown."""

    scores: list[dict[str, int | None]]  # None: not rated, or not by a number of the range
    reasons: list[str]
    reference: str = ""
    problems: list[str] = field(default_factory=list)
    foreign: int = 0  # numbers out of range, and what is no whole number


def ratings(text: str, number: int, metrics: Sequence[str], low: int, high: int) -> Ratings:
    """{"answers": [{"reason", METRIC, ...}, ...], "reference"}; never raises."""
    nothing: list[dict[str, int | None]] = [dict.fromkeys(metrics) for _ in range(number)]
    found = _object(text)
    if found is None:
        why = "the reply is empty" if not text.strip() else "the reply has no JSON object with answers"
        return Ratings(scores=nothing, reasons=[""] * number, problems=[why])
    reference = _text(found.get("reference"))
    rated = found["answers"]
    if len(rated) != number:
        why = f"it rates {len(rated)} answers, and was shown {number}"
        return Ratings(scores=nothing, reasons=[""] * number, reference=reference, problems=[why])
    # Each answer by itself
    scores, reasons, problems, foreign = [], [], [], 0
    for place, one in enumerate(rated, 1):
        values = {name.strip().casefold(): value for name, value in one.items()} if isinstance(one, dict) else {}
        read = {metric: _whole(values.get(metric.casefold())) for metric in metrics}
        given = [metric for metric in metrics if values.get(metric.casefold()) is not None]
        outside = [metric for metric in given if (value := read[metric]) is None or not low <= value <= high]
        if missing := [metric for metric in metrics if metric not in given]:
            problems.append(f"answer {place} has no {', '.join(missing)}")
        if outside:
            problems.append(f"answer {place}: {outside[0]} is no whole number from {low} to {high}")
        foreign += len(outside)
        scores.append({metric: None if metric in outside else read[metric] for metric in metrics})
        reasons.append(_text(values.get("reason")))
    return Ratings(scores=scores, reasons=reasons, reference=reference, problems=problems, foreign=foreign)


def _object(text: str) -> dict[str, Any] | None:
    """The first object of the text that has a list of answers."""
    decoder = json.JSONDecoder()
    for begin in [found.start() for found in re.finditer(r"\{", text)][:TRIED]:
        try:
            value, _ = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
            continue
        if isinstance(value, dict) and isinstance(value.get("answers"), list):
            return value
    return None


def _whole(value: Any) -> int | None:
    """A whole number, also where it is written as a text or with a point."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e9:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def schema(number: int, metrics: Sequence[str], low: int, high: int) -> str:
    """What a reply must look like, as JSON schema."""
    numbers = {"type": "integer", "enum": list(range(low, high + 1))}
    one: dict[str, Any] = {"reason": {"type": "string"}, **dict.fromkeys(metrics, numbers)}
    answers = {"type": "array", "items": _whole_object(one), "minItems": number, "maxItems": number}
    return json.dumps(_whole_object({"answers": answers, "reference": {"type": "string"}}))


def _whole_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def written(scores: Sequence[Mapping[str, int]], reasons: Sequence[str], reference: str) -> str:
    """Ratings as a judge replies with them."""
    answers = [{"reason": reason, **score} for reason, score in zip(reasons, scores, strict=True)]
    return json.dumps({"answers": answers, "reference": reference}, ensure_ascii=False)


PARSERS = {"ratings": ratings}
