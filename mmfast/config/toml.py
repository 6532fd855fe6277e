"""From a TOML file and dotted overrides to a checked Config, and back to TOML or to the page of every key."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from mmfast.config.effects import idle
from mmfast.config.elsewhere import ABSENT, ALIASES
from mmfast.config.overrides import apply
from mmfast.config.rules import contradictions
from mmfast.config.schema import Config, Lora, Section, Source, Term
from mmfast.packages import tomllib


def load(path: str | Path = "", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides, check everything that can be checked without a model."""
    tree = read_tree(path) if path else {}
    if "rounds" in tree:
        raise ValueError(f"{path} is a file of rounds, not of one training: mmfast rounds {path}")
    apply(tree, overrides, _optional(Config, ""))
    return build(tree)


def read_tree(path: str | Path) -> dict[str, Any]:
    """A file's tables, unchecked."""
    if not (file := Path(path)).is_file():
        raise ValueError(f"config file {str(path)!r} does not exist")
    try:
        return tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def build(tree: dict[str, Any]) -> Config:
    """The checked Config of a nested dictionary."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(item) for item in error.errors())) from None
    check(config)
    if config.train.epochs is None and config.train.steps is None:
        config.train.epochs = 3.0
    return config


def check(config: Config) -> None:
    """Combinations that contradict each other or could not take effect. All are named at once."""
    wrong = [*contradictions(config), *idle(config)]
    if wrong:
        raise ValueError("\n".join(wrong))


def dump(config: Config) -> str:
    """The config as TOML; `load` reads it back equal."""
    return _toml(config.model_dump(exclude_none=True), ())


def reference_page() -> str:
    """Every key with default and docstring, as markdown (docs/config.md is this)."""
    about = "One TOML file and dotted overrides (`train.steps=100`). Made from mmfast/config/schema.py."
    lines = ["# Config", "", about, ""]
    sections = [("", Config)] + [
        (name, field.annotation) for name, field in Config.model_fields.items() if _is_section(field.annotation)
    ]
    sections += [("model.lora", Lora), ("data.path[]", Source), ("objective.terms[]", Term)]
    for title, section in sections:
        lines += [f"## {f'[{title}]' if title else 'Top'}", "", "| key | default | meaning |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            if _is_section(field.annotation):
                continue
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            lines.append(f"| `{name}` | `{default}` | {(field.description or '').replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _optional(section: Any, path: str) -> set[str]:
    """Keys whose default is absence: an override can take them out."""
    keys: set[str] = set()
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            keys |= _optional(field.annotation, f"{path}{name}.")
        elif field.default is None:
            keys.add(path + name)
    return keys


def _explain(item: Any) -> str:
    path = [part for part in item["loc"] if isinstance(part, str) and part not in ("str", "list[Source]")]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        if path[-1] in ABSENT:
            return f"unknown key {name}: it has no counterpart here: {ABSENT[path[-1]]}"
        every = all_keys()
        if here := ALIASES.get(path[-1]) or " or ".join(every.get(path[-1], ())):
            return f"unknown key {name}: here it is {here}"
        near = difflib.get_close_matches(path[-1], _known(path[:-1]), n=1, cutoff=0.5)
        everywhere = difflib.get_close_matches(path[-1], every, n=1, cutoff=0.6)
        hint = ".".join([*path[:-1], near[0]]) if near else ", ".join(every[k][0] for k in everywhere)
        return f"unknown key {name}" + (f": did you mean {hint}?" if hint else "")
    if item["type"] == "model_type" and name in ALIASES:
        return f"{name} is a section: here it is {ALIASES[name]}"
    return f"{name}: {item['msg']} (got {item.get('input')!r})"


def _known(path: list[str]) -> list[str]:
    section: Any = Config
    for key in path:
        section = {"lora": Lora, "terms": Term, "path": Source}.get(key) or section.model_fields[key].annotation
    return list(section.model_fields) if _is_section(section) else []


def all_keys() -> dict[str, list[str]]:
    """The last part of each key -> the keys that end so."""
    keys: dict[str, list[str]] = {}
    for name, field in Config.model_fields.items():
        inside = field.annotation.model_fields if _is_section(field.annotation) else ()
        for key in inside or [name]:
            keys.setdefault(key, []).append(f"{name}.{key}" if inside else name)
    return keys


def _toml(tree: dict[str, Any], path: tuple[str, ...]) -> str:
    plain = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    text = "".join(f"{k} = {literal(v)}\n" for k, v in plain.items())
    for key, value in tree.items():
        if isinstance(value, dict):
            text += f"\n[{'.'.join((*path, key))}]\n" + _toml(value, (*path, key))
    return text


def literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {literal(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)  # repr round-trips; "5e-07" is valid TOML
    return json.dumps(value, ensure_ascii=False)
