"""Reads the files that benchmarks come in: lists and lines of JSON, tables with tabs, and prompts inside a script."""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from mmfast.engines.base import Picture
from mmfast.evals.base import Data

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
# What pandas, with which the official scripts read tables, takes for an empty cell
NO_TEXT = "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
EMPTY = frozenset(NO_TEXT.split("|"))
KINDS: dict[str, Any] = {
    "": str,
    "id": (int, str),
    "int": int,
    "list": list,
    "texts": list,
    "object": dict,
    "bool": bool,
    "any": object,
}


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


def value(data: Data, role: str, *names: str) -> dict[str, Any]:
    """What a JSON file holds: an object, with these names at least (as `need` has them)."""
    found = json_of(data, role)
    need(found, names, data, role)
    return found


def rows(data: Data, role: str) -> list[dict[str, Any]]:
    """The rows of a JSON list, or of a file with one on each line."""
    content = data.read(role).decode("utf-8-sig")
    path = data.path(role)
    try:
        if content.lstrip().startswith("["):
            found = json.loads(content)
        else:
            found = []
            for number, line in enumerate(content.split("\n"), 1):
                if line.strip():
                    try:
                        found.append(json.loads(line))
                    except ValueError as error:
                        raise ValueError(f"line {number}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} holds no rows of JSON: {error}") from None
    if not found or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path} holds no rows: a benchmark's questions are JSON objects, one a line or in a list")
    return found


def table(data: Data, role: str) -> list[dict[str, str]]:
    """The rows of a file with tabs and a line of names, as pandas reads them. What is empty is left out."""
    csv.field_size_limit(2**31 - 1)  # images lie in the cells
    found = csv.DictReader(io.StringIO(data.read(role).decode("utf-8-sig"), newline=""), delimiter="\t")
    table = [{name: cell for name, cell in row.items() if name and (cell or "") not in EMPTY} for row in found]
    if not table:
        raise ValueError(f"{data.path(role)} is an empty table")
    return table


def need(row: Any, names: Iterable[str], data: Data, role: str) -> None:
    """Refuses a row that lacks what a question is made of, or has it of another kind: a name alone is a text's, behind
    a colon stand others (answer:int; an id is a text or a whole number)."""
    wanted = dict(name.partition(":")[::2] for name in names)
    if not isinstance(row, dict):
        raise ValueError(f"{data.path(role)}: {str(row)[:60]!r} is no object of {', '.join(wanted) or 'rows'}")
    lacking = [name for name in wanted if name not in row]
    if lacking:
        raise ValueError(f"{data.path(role)}: a row has no {', '.join(lacking)} (it has {', '.join(row)})")
    for name, kind in wanted.items():
        inside = row[name] if kind == "texts" and isinstance(row[name], list) else ()
        if not isinstance(row[name], KINDS[kind]) or not all(isinstance(text, str) for text in inside):
            raise ValueError(f"{data.path(role)}: a row's {name} is {str(row[name])[:60]!r}, which is not of its kind")


def prompts(data: Data, role: str) -> dict[str, str]:
    """The texts that a Python script gives names to, read but not run: NAME, or FUNCTION.NAME inside of one. Pieces
    that are added to a name in turn become one text."""
    path = data.path(role)
    try:
        tree = ast.parse(data.read(role))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is no Python script: {error}") from None
    found: dict[str, str] = {}
    places: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    while places:
        place, body = places.pop()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places.append((f"{place}{node.name}.", node.body))
            elif isinstance(node, ast.Assign | ast.AugAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                text = _text(node.value)
                if isinstance(target, ast.Name) and text is not None:
                    before = found.get(place + target.id, "") if isinstance(node, ast.AugAssign) else ""
                    found[place + target.id] = before + text
            elif isinstance(node, ast.For | ast.While | ast.If | ast.With):
                places.append((place, node.body))
    return found


def _text(node: ast.expr) -> str | None:
    """A text, or texts that are added up; an f-string as a text for str.format."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        if not all(isinstance(part, ast.Name | ast.Constant) for part in parts):
            return None
        return "".join(
            f"{{{part.id}}}" if isinstance(part, ast.Name) else str(part.value).replace("{", "{{").replace("}", "}}")
            for part in parts
            if isinstance(part, ast.Name | ast.Constant)
        )
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def inside(place: str, name: str, text: str) -> Picture:
    """An image that lies in a row, as base64."""
    try:
        return Picture(name, base64.b64decode(text.strip(), validate=True))
    except ValueError as error:
        raise ValueError(f"{place}: its image is no base64 ({error})") from None


def absent(data: Data, roles: Iterable[str]) -> ValueError:
    """The error that none of some optional files is there."""
    files = [data.bench.files[role] for role in roles]
    names = dict.fromkeys(name for file in files for name in file.names)
    return ValueError(
        f"{data.folder} has no {' or '.join(names)}: {data.bench.name} needs {files[0].what}, to be had from "
        f"{files[0].source} ({files[0].licence})"
    )


def options(row: dict[str, Any], letters: str = "ABCD") -> dict[str, str]:
    """A row's options by their letters, up to the first that is missing (as LLaVA's loader reads them)."""
    found: dict[str, str] = {}
    for letter in letters:
        if str(row.get(letter, "nan")).lower() in ("nan", "none"):
            break
        found[letter] = str(row[letter])
    return found


def listed(choices: dict[str, str]) -> str:
    """Options, each on its line behind its letter."""
    return "".join(f"\n{letter}. {text}" for letter, text in choices.items())
