"""Data sets of a hub by their ids: which commit, which of its files, and their way into the hub's own cache.

    owner/name                          what data.split, data.subset and data.revision say of it
    owner/name@REVISION                 a branch, a tag or a commit
    hf://datasets/owner/name@REVISION/train-*.parquet

Without a revision a cache of examples stays at the commit that it saw first, which its note (hub/owner--name.json)
keeps with the names of the commit's files: later starts need no network, and see the same data.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from mmfast.data.containers.packed import KINDS, PICTURES, kind_of
from mmfast.data.containers.splits import CARD, Names, choose, common, matches
from mmfast.files import write_json

ID = re.compile(
    r"(?P<scheme>hf:/{1,2}(?:datasets/)?)?"  # Path makes one slash of two
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/@]+|[^/@]+))?"
    r"(?:/(?P<inside>.+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = (".parquet", ".arrow")  # images lie inside their rows
_listed: dict[tuple[str, str], tuple[str, list[str]]] = {}  # (name, revision) -> commit, files: asked once a process


@dataclass(frozen=True, slots=True)
class Address:
    name: str  # owner/name
    revision: str = ""
    inside: str = ""  # a file, a folder or a pattern in it

    def __str__(self) -> str:
        text = self.name + (f"@{self.revision}" if self.revision else "")
        return f"hf://datasets/{text}/{self.inside}" if self.inside else text


def address_of(path: str) -> Address | None:
    """The address that a path is which is not there; None where it can be none: `data/pairs.jsonl` names a file."""
    found = ID.fullmatch(path)
    if not found or (not found["scheme"] and (found["inside"] or kind_of(PurePosixPath(path)) in KINDS)):
        return None
    return Address(found["name"], unquote(found["revision"] or ""), found["inside"] or "")


def at_revision(address: Address, revision: str) -> Address:
    """With data.revision, where the path has none of its own."""
    if revision and address.revision not in ("", revision):
        raise ValueError(f'data.path: {address} has a revision, and data.revision = "{revision}" is another: give one')
    return replace(address, revision=revision or address.revision)


def on_hub(path: Any) -> Address | None:
    """The address that a data.path is or, being a list of sources, holds: where nothing of this name is here."""
    if isinstance(path, list):
        return next((address for source in path if (address := on_hub(source.path))), None)
    return None if Path(path).exists() else address_of(str(path))


def same_data_set(path: Any, other: str) -> bool:
    one, two = on_hub(path), on_hub(other)
    return one is not None and two is not None and one.name == two.name


def pinned(address: Address, notes: Path | None, tell: Callable[[str], None]) -> tuple[Address, list[str]]:
    """The address at its commit, and the names of that commit's files. `notes`: the folder where both are kept."""
    file = notes / f"{address.name.replace('/', '--')}.json" if notes else None
    note = _note(file)
    commit = address.revision if COMMIT.fullmatch(address.revision) else ""
    commit = commit or ("" if address.revision else note["revisions"].get("", ""))
    names = note["files"].get(commit)
    if names is None:
        commit, names = _listing(address, commit, note, tell)
        new = {"revisions": {**note["revisions"], address.revision: commit}, "files": {**note["files"], commit: names}}
        kept = ""
        if file and new != note:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, new)
                kept = f'; {file} keeps it (data.revision = "main" asks for the newest)'
            except OSError as error:
                kept = f"; {file} cannot be written ({error.strerror}), so the next start asks anew"
        if address.revision != commit != note["revisions"].get(address.revision):
            of = address.revision or "its main branch"
            tell(f"{address.name}: commit {commit[:12]} of {of}{'' if address.revision else kept}")
    return replace(address, revision=commit), names


def fetched(
    address: Address, subset: str, split: str, notes: Path | None, tell: Callable[[str], None]
) -> tuple[Address, Path, Names, bool]:
    """The address at its commit, its folder in the hub's cache, the files that are read, and whether split and subset
    had a say in it. What is not there is downloaded: an interrupted download goes on. Rows of text name their pictures,
    so those come too."""
    address, names = pinned(address, notes, tell)
    card = _one(address, CARD).read_text(encoding="utf-8-sig", errors="replace") if CARD in names else ""
    naming = partial(_naming, address)
    named = [n for n in names if address.inside and (n == address.inside or matches(n, address.inside))]
    if named:
        files = sorted(PurePosixPath(n) for n in named if kind_of(PurePosixPath(n)) in KINDS)
        if not files:
            raise ValueError(f"data.path: {address}: unknown file type; known are {', '.join(KINDS)}")
    elif address.inside:
        if subset:
            raise ValueError(f"data.subset has no effect: {address} names a folder")
        files = choose(names, "", address.inside, split, address.name, naming)
    else:
        files = choose(names, card, subset, split, address.name, naming)
    wanted = [str(file) for file in files]
    if not all(file.suffix in WHOLE for file in files):
        wanted += [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
    return address, _folder(address, wanted), files, not named


def _naming(address: Address, shards: Names, files: Names) -> str:
    return f'"hf://datasets/{address.name}/{common(shards, files)}"'


def _note(file: Path | None) -> dict[str, dict[str, Any]]:
    try:
        note = json.loads(file.read_text()) if file else {}
        return {key: dict(note[key]) for key in ("revisions", "files")}
    except (OSError, ValueError, LookupError, TypeError):
        return {"revisions": {}, "files": {}}  # none, or not one of ours: the hub is asked again


def _listing(
    address: Address, commit: str, note: dict[str, dict[str, Any]], tell: Callable[[str], None]
) -> tuple[str, list[str]]:
    """A revision's commit, and the names of its files: of the hub; where it cannot be reached, of what was noted, or of
    a whole copy in the hub's cache."""
    from huggingface_hub import HfApi, errors, snapshot_download

    asked = (address.name, commit or address.revision)
    if asked in _listed:
        return _listed[asked]
    try:
        info = HfApi().dataset_info(address.name, revision=asked[1] or None)
        assert info.sha and info.siblings is not None
        _listed[asked] = info.sha, sorted(file.rfilename for file in info.siblings)
        return _listed[asked]
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(_said(address, error)) from error
    except Exception as error:  # no network, or offline on purpose
        last = note["revisions"].get(address.revision)
        if last in note["files"]:
            tell(f"{address.name}: the hub cannot be reached; {address.revision or 'main'} as last seen, {last[:12]}")
            return last, note["files"][last]
        try:
            given: dict[str, Any] = {"repo_type": "dataset", "revision": asked[1] or None, "local_files_only": True}
            folder = Path(snapshot_download(address.name, **given))
        except Exception:
            raise ValueError(_said(address, error)) from error
        return folder.name, sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def _one(address: Address, name: str) -> Path:
    return _folder(address, [name]) / name


def _folder(address: Address, names: list[str]) -> Path:
    """The folder of the commit in the hub's cache, with these files; the hub is asked only where one is missing."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    there = [
        try_to_load_from_cache(address.name, name, revision=address.revision, repo_type="dataset") for name in names
    ]
    if all(isinstance(path, str) for path in there):
        return Path(str(there[0])).parents[len(PurePosixPath(names[0]).parts) - 1]
    try:
        return Path(
            snapshot_download(
                address.name,
                repo_type="dataset",
                revision=address.revision,
                allow_patterns=[glob.escape(name) for name in names],
            )
        )
    except Exception as error:  # whatever a download can die of: it is said in a line
        raise ValueError(_said(address, error)) from error


def _said(address: Address, error: Exception) -> str:
    from huggingface_hub import errors

    here = f'data.path: "{address.name}" is no file or folder here, and'
    page = f"huggingface.co/datasets/{address.name}"
    get = f"hf download {address.name} --repo-type dataset" + (
        f" --revision {address.revision}" if address.revision else ""
    )
    if isinstance(error, errors.HFValidationError):
        return f"{here} no hub id either (those are written OWNER/NAME)"
    if isinstance(error, errors.GatedRepoError):
        return f"{here} the hub gives it to those only who accept its terms: do so at {page}, then hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f'data.revision: {address.name} on the hub has no branch, tag or commit "{address.revision}"'
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{here} the hub has no such data set, or shows it to its friends only (then log in: hf auth login)"
    cause = str(error).strip().split("\n")[0]
    return (
        f"{here} as a data set of the hub it could not be reached, nor is it whole in the hub's cache here "
        f"({type(error).__name__}: {cause}): where there is a network run `{get}`, and bring its cache (HF_HOME) here"
    )
