"""`section.key=value` of the command line, over a file's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from mmfast.packages import tomllib

WORDS = re.compile(r"\[\s*[\w./-]+(\s*,\s*[\w./-]+)*\s*\]")
EXCLUSIVE = ("train.steps", "train.epochs")  # an override of one clears the other of the file


def apply(tree: dict[str, Any], overrides: Sequence[str], optional: Collection[str]) -> None:
    """Put overrides into the tree of a file. `--key=value` and `--key value` are read like key=value; `key=none` takes
    a key of `optional` (those whose default is absence) out of it."""
    names: set[str] = set()
    for text in _joined(overrides):
        name, mark, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not mark:
            raise ValueError(f"override {text!r}: write section.key=value")
        names.add(name)
        parsed = _value(value.strip())
        _assign(tree, name.split("."), None if parsed == "none" and name in optional else parsed, text)
    for name, other in (EXCLUSIVE, EXCLUSIVE[::-1]):
        if name in names and other not in names:
            section, _, key = other.partition(".")
            tree.get(section, {}).pop(key, None)


def _joined(overrides: Sequence[str]) -> list[str]:
    """`--key` and the value that follows it as one."""
    whole: list[str] = []
    for text in overrides:
        if whole and whole[-1].startswith("--") and "=" not in whole[-1] and not text.startswith("--"):
            whole[-1] += f"={text}"
        else:
            whole.append(text)
    return whole


def _assign(tree: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {text!r}: {key} is a value, not a section")
    if value is None:
        tree.pop(keys[-1], None)
    else:
        tree[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        if WORDS.fullmatch(text):  # ["peft"], whose quotes a shell took
            return [_value(word.strip()) for word in text[1:-1].split(",")]
        return text  # a bare string: data.path=pairs.jsonl
