"""Which files of a folder, or of a repository on a hub, are read: those of one subset and one split. Several are not
read together: tests would leak into training.

Names alone are looked at, and the card (README.md), whose `configs` may say which files are which split.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

from mmfast.data.containers.packed import KINDS, PACKED, UNPACKED, kind_of

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}$")  # how data sets on a hub, and `datasets`, name the shards of a split
WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "eval", "evaluation": "eval",
         "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}  # fmt: skip
CARD = "README.md"
NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json")  # left by the datasets library, as is cache-*
KNOWN = f"{', '.join(KINDS)}, and {', '.join(UNPACKED)} packed as {' or '.join(PACKED)}"

Names = list[PurePosixPath]


def choose(
    names: Iterable[str], card: str, subset: str, split: str, told: str, naming: Callable[[Names, Names], str]
) -> Names:
    """The files of one split among the names below a folder. `told`: what a message calls it. `naming`: how the files
    of a split can be named, for the message that asks for one."""
    paths = sorted(map(PurePosixPath, names))
    splits, subset = _configured(paths, _configs(card, told), subset, told)
    if not splits:
        for file in _readable(paths, subset, told):
            splits.setdefault(split_of(file), []).append(file)
    files = sorted(file for group in splits.values() for file in group)
    named = sorted(set(splits) - {""})
    if split:
        meant = [name for name in named if name == split] or [
            name for name in named if WORDS.get(name, name) == WORDS.get(split, split)
        ]
        if not meant:
            has = f"it has {', '.join(named)}" if named else "its files name none, so leave data.split out"
            raise ValueError(f'data.path: {told} has no split "{split}": {has}')
        return splits[meant[0]]
    if len(named) > 1:
        example = "train" if "train" in named else named[0]
        way = naming(splits[example], files)
        raise ValueError(
            f"data.path: {told} holds several splits ({', '.join(named)}): name the files of one, such as "
            f'{way}, or set data.split = "{example}"'
        )
    return files


def split_of(file: PurePosixPath) -> str:
    """The split that a file's name, or that of a folder on the way to it, tells of; "" if none does."""
    if shard := SHARD.match(file.stem):
        return shard[1]
    names = [*reversed(file.parts[:-1]), file.stem]
    words = [WORDS[w] for name in names for w in re.split(r"[^a-z]+", name.lower()) if w in WORDS]
    return words[-1] if words else ""


def _readable(paths: Names, subset: str, told: str) -> Names:
    """Of the first kind of files that there is: Parquet wherever it lies, others at the top, or in the one folder."""
    if subset:
        inside = [path for path in paths if path.is_relative_to(subset)]
        if not inside:
            raise ValueError(f'data.path: {told} has no subset, and no folder, "{subset}"')
        return [subset / path for path in _readable([p.relative_to(subset) for p in inside], "", f"{told}/{subset}")]
    data = [
        path
        for path in paths
        if not any(part[0] == "." for part in path.parts)
        and kind_of(path) in KINDS
        and path.name not in NO_DATA
        and not path.name.startswith("cache-")
    ]
    for kind in KINDS:
        found = [p for p in data if kind_of(p) == kind and (kind == ".parquet" or len(p.parts) == 1)]
        if found:
            _each_once(found, told)
            return found
    folders = sorted({path.parts[0] for path in data})
    if len(folders) == 1:
        return _readable(paths, folders[0], told)
    if folders:
        raise ValueError(
            f"data.path: {told} holds its files in several folders ({', '.join(folders)}): name one with data.subset"
        )
    raise ValueError(f"data.path: {told} holds no file of these: {KNOWN}")


def _each_once(files: Names, told: str) -> None:
    """A file beside its packed self would be read twice."""
    for file in files:
        if file.suffix.lower() in PACKED and file.with_suffix("") in files:
            raise ValueError(f"data.path: {told} holds {file.stem} and {file.name}: remove one of them")


def _configured(paths: Names, configs: list[dict], subset: str, told: str) -> tuple[dict[str, Names], str]:
    """The splits of the subset that a card's `configs` describe; none where it describes none, and then the folder in
    which to look."""
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    if not by_name or (subset and subset not in by_name):
        return {}, subset
    if not subset:
        first = [name for name, config in by_name.items() if config.get("default") is True or name == "default"]
        if len(by_name) > 1 and not first:
            raise ValueError(
                f"data.path: {told} has several subsets ({', '.join(sorted(by_name))}): name one with data.subset"
            )
        subset = (first or list(by_name))[0]
    config = by_name[subset]
    if not config.get("data_files"):
        return {}, str(config.get("data_dir") or "")
    return {split: _matching(paths, patterns, split, told) for split, patterns in _patterns(config).items()}, ""


def _configs(card: str, told: str) -> list[dict]:
    if not card.startswith("---") or "\nconfigs:" not in card:
        return []
    from huggingface_hub import RepoCard

    try:
        found = RepoCard(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    except Exception as error:  # whatever YAML can break of
        cause = str(error).split("\n")[0]
        raise ValueError(f"data.path: the card ({CARD}) of {told} cannot be read ({cause}): name the files") from None
    return [config for config in found if isinstance(config, dict)] if isinstance(found, list) else []


def _patterns(config: dict) -> dict[str, list[str]]:
    """data_files: a pattern, a list of patterns, or a list of {split, path}."""
    files, folder = config["data_files"], str(config.get("data_dir") or "")
    entries = files if isinstance(files, list) else [files]
    out: dict[str, list[str]] = {}
    for entry in entries:
        split, given = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        listed = given if isinstance(given, list) else [given]
        out.setdefault(str(split), []).extend(str(PurePosixPath(folder, str(pattern))) for pattern in listed)
    return out


def _matching(paths: Names, patterns: list[str], split: str, told: str) -> Names:
    found = [path for path in paths if any(matches(str(path), pattern) for pattern in patterns)]
    data = [path for path in found if kind_of(path) in KINDS]
    if not data:
        what = f"such as {found[0]}, none of which is read" if found else "of which there is none"
        raise ValueError(
            f"data.path: the card of {told} names {', '.join(patterns)} as its split {split}, {what}; read are {KNOWN}"
        )
    return data


def matches(name: str, pattern: str) -> bool:
    """Shell patterns: * stays in its folder, **/ stands for any folders."""
    if "**" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("**/", ""))
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def common(shards: Sequence[PurePosixPath], files: Sequence[PurePosixPath]) -> PurePosixPath:
    """A path that stands for the wanted ones among all files: a file, a folder or a pattern."""
    if len(shards) == 1:
        return shards[0]
    parent = PurePosixPath(os.path.commonpath([f.parent for f in shards]))
    if all(f in shards for f in files if parent in f.parents):
        return parent
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*(f.name for f in shards), strict=False))
    return parent / ("".join(column[0] for column in letters) + "*")


def saved_split(folder: Path, split: str = "") -> Path:
    """The folder of one split that DatasetDict.save_to_disk wrote into `folder`."""
    names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if split and split not in names:
        raise ValueError(f'data.path: the folder {folder} has no split "{split}": it has {", ".join(sorted(names))}')
    if not split and len(names) != 1:
        example = "train" if "train" in names else sorted(names)[0]
        raise ValueError(
            f"data.path: the folder {folder} holds several splits ({', '.join(sorted(names))}): name "
            f'the folder of one, such as "{folder / example}", or set data.split = "{example}"'
        )
    return folder / (split or names[0])
