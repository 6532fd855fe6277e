"""Fetches what the hub has of a paper: only where the user says so, and says that its licences are accepted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mmfast.models.importing import import_model
from mmfast.reproduce import weights
from mmfast.reproduce.inputs import look_at, used
from mmfast.reproduce.need import GIB
from mmfast.reproduce.paper import Input, Paper, Weights
from mmfast.rounds.settings import Settings

OTHER_FORMATS = ("*.msgpack", "*.h5", "*.onnx", "*.ot", "*.gguf")  # of the same weights


def to_fetch(paper: Paper, root: Path, settings: Settings) -> list[Weights | Input]:
    """What a run reads, is on the hub, and is not here, or not whole."""
    models, files = used(paper, root, settings)
    missing: list[Weights | Input] = [one for one in models if weights.tried(one, root / one.used)[1]]
    return missing + [one for one in files if one.hub and not _all_rows(one, root)]


def _all_rows(item: Input, root: Path) -> bool:
    """A download that was stopped leaves fewer than the paper's."""
    line = look_at(item, root, 1)
    return line.there and not line.short


def fetch(wanted: list[Weights | Input], root: Path, *, accepted: bool, told: Callable[[str], None]) -> None:
    """Raises before the first byte where the licences are not accepted, or the disk is too small."""
    if not wanted:
        return
    if not accepted:
        listed = "; ".join(f"{name_of(one)}: {one.licence}" for one in wanted)
        raise ValueError(f"--fetch needs --accept-licences, once you have read them ({listed})")
    for one in wanted:
        if isinstance(one, Weights) and one.imported and (root / one.imported).exists():
            raise ValueError(f"{root / one.imported} is no whole {one.id}: remove it, and it is imported anew")
    root.mkdir(parents=True, exist_ok=True)
    known = sum(_to_come(one, root) for one in wanted)
    free = shutil.disk_usage(root).free / GIB
    if known > free:
        raise ValueError(f"{root} has {free:.0f} GiB free, and {known:.0f} GiB are to be fetched: name another --root")
    for one in wanted:
        if not isinstance(one, Weights) or weights.tried(one, root / one.folder)[1]:
            told(f"fetching {name_of(one)}")
            _fetch(one, root)
        if isinstance(one, Weights) and one.imported:
            import_model(root / one.folder, root / one.imported, told)


def _to_come(item: Weights | Input, root: Path) -> float:
    """GiB that are still to be written, by its published size; an import writes them once more."""
    if isinstance(item.gib, str):
        return 0.0
    folder = root / (item.folder if isinstance(item, Weights) else item.path)
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / GIB
    return max(0.0, item.gib - there) + (item.gib if isinstance(item, Weights) and item.imported else 0.0)


def name_of(item: Weights | Input) -> str:
    return item.id if isinstance(item, Weights) else item.hub


def _fetch(item: Weights | Input, root: Path) -> None:
    from huggingface_hub import snapshot_download

    folder, revision, kind = root / (item.folder if isinstance(item, Weights) else item.path), None, "dataset"
    if isinstance(item, Weights):
        revision, kind = None if item.revision == "unknown" else item.revision, "model"
    try:
        snapshot_download(
            name_of(item), repo_type=kind, revision=revision, local_dir=folder, ignore_patterns=list(OTHER_FORMATS)
        )
    except Exception as error:  # whatever a download can die of: it is said in a line
        cause = str(error).strip().split("\n")[0]
        raise ValueError(f"{name_of(item)} could not be fetched ({type(error).__name__}: {cause})") from error
