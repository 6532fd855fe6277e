"""JSON of a benchmark's files: what cannot be read is named with its file and line."""

from __future__ import annotations

import json
from typing import Any

from mmfast.evals.base import Data


def json_of(data: Data, role: str) -> Any:
    content = data.read(role)
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{data.path(role)} is no JSON: {error}") from None


def json_lines(data: Data, role: str) -> list[tuple[str, Any]]:
    """(place for messages, value) of each line."""
    path, out = data.path(role), []
    for number, line in enumerate(data.read(role).decode().splitlines(), 1):
        try:
            out += [(f"{path}:{number}", json.loads(line))] if line.strip() else []
        except ValueError:
            raise ValueError(f"{path}:{number} is no JSON") from None
    return out
