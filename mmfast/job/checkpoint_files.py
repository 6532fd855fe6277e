"""What lies in output_dir/checkpoints: which count, whether they are whole, and reading them without running anything.

step-N/ holds DCP's shards and .metadata, config.toml, and state.json, which has the size and sha256 of each of them and
a sha256 of itself. evaluation.json is added later: what was measured at that step. A rollback is a journal first
(rolling-back.json: what it keeps, where the rest goes): from its one rename on the later checkpoints do not count, and
whoever begins a run next finishes what was killed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint.filesystem import _StorageInfo

from mmfast.files import sha256_of

FORMAT = 2
JOURNAL = "rolling-back.json"


def number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def steps(folder: Path) -> list[Path]:
    """Every folder step-N, oldest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()), key=number)


def present(folder: Path) -> list[Path]:
    """Every step-N that counts, whole or not, oldest first: those that a rollback has given up do not."""
    paths = steps(folder)
    rollback = pending(folder)
    if rollback and (adopted := rollback["adopt"]):
        if (folder / adopted).is_dir():  # not yet in its place
            paths = [folder / adopted]
    elif rollback:
        paths = [path for path in paths if number(path) <= rollback["keep"]]
    return paths


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return [path for path in present(folder) if (path / "state.json").is_file()]


def pending(folder: Path) -> dict[str, Any] | None:
    """The rollback that was decided and perhaps not finished: {keep: step, to: folder, adopt: name or ""}."""
    path = folder / JOURNAL
    if not path.exists():
        return None
    try:
        journal = json.loads(path.read_bytes())  # it appears whole: written aside and renamed
        return {"keep": int(journal["keep"]), "to": Path(journal["to"]).name, "adopt": Path(journal["adopt"]).name}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: delete it to keep every checkpoint beside it") from None


def find(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `train.resume` means: the newest, none, or a named one."""
    if resume == "never":
        return None
    if resume == "auto":
        paths = complete(folder)
        return paths[-1] if paths else None
    path = Path(resume)
    if not (path / "state.json").is_file():
        raise ValueError(f"train.resume: {resume!r} is not a complete checkpoint (it has no state.json)")
    return path


# state.json


def seal(info: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": _seal_of(info), **info}


def read_sealed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        info = {name: value for name, value in content.items() if name != "sha256"}
        whole = content["sha256"] == _seal_of(info)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (ValueError, AttributeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{path.name} is damaged (its sha256 differs from the one written with it)")
    return info


def read_info(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json; its `metrics` may lie in evaluation.json, measured after it was saved."""
    try:
        info = read_sealed(path / "state.json")
        if info.get("format") != FORMAT:
            raise ValueError(f"it has format {info.get('format')}, another version's; this one reads {FORMAT}")
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
    if measured := evaluation(path):
        info |= {"metrics": measured["metrics"], "evaluated_on": measured["data"]}
    return info


def evaluation(path: Path) -> dict[str, Any] | None:
    """{data: digest of the held-out examples, metrics}; None: not measured (a damaged one is measured again)."""
    try:
        return read_sealed(path / "evaluation.json")
    except ValueError:
        return None


def damage(path: Path) -> str:
    """What is wrong with a checkpoint as far as reading its small files shows; "" where nothing is."""
    try:
        files = read_info(path)["files"]
        for name, (size, digest) in files.items():
            file = path / name
            if not file.is_file():
                raise ValueError(f"checkpoint {path}: {name} is missing")
            if file.stat().st_size != size or (not name.endswith(".distcp") and sha256_of(file) != digest):
                raise ValueError(
                    f"checkpoint {path}: {name} is damaged (its sha256 differs from the one written with it)"
                )
        check_metadata(path, set(files))
    except ValueError as error:
        return str(error)
    return ""


def lowest_is_best(metric: str) -> bool:
    return metric.endswith(("loss", "/nll")) or "rejected" in metric


def better(metric: str, value: float, than: float, lowest: bool | None = None) -> bool:
    """`lowest`: whether the smallest is the best, where the metric's name does not tell it (a benchmark's)."""
    return value < than if (lowest_is_best(metric) if lowest is None else lowest) else value > than


def best_checkpoint(folder: Path, metric: str, data: str | None = None, lowest: bool | None = None) -> Path | None:
    """The complete checkpoint whose own evaluation was best; the earlier of equals. `data`: only evaluations on the
    examples of that digest count."""
    best: tuple[float, Path] | None = None
    for path in complete(folder):
        try:
            info = read_info(path)
        except ValueError:  # damaged: named when it is read to go on from
            continue
        value = info.get("metrics", {}).get(metric) if data in (None, info.get("evaluated_on", data)) else None
        if value is not None and (best is None or better(metric, value, best[0], lowest)):
            best = value, path
    return best[1] if best else None


def best_value(folder: Path, metric: str, data: str | None = None, lowest: bool | None = None) -> float | None:
    path = best_checkpoint(folder, metric, data, lowest)
    return read_info(path)["metrics"][metric] if path else None


# .metadata is a pickle

ALLOWED = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        *(kinds.Metadata, kinds.MetadataIndex, kinds.StorageMeta, kinds.TensorStorageMetadata, kinds.TensorProperties),
        *(kinds.ChunkStorageMetadata, kinds._MEM_FORMAT_ENCODING, _StorageInfo),
    )
} | {("torch", "Size"): torch.Size, ("torch.serialization", "_get_layout"): torch.serialization._get_layout}
# Not BytesStorageMetadata: DCP would hand such an entry's bytes to an unrestricted torch.load.


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath", "Path", "PurePosixPath"):
            return lambda *parts: "/".join(parts)  # where it was written; nothing reads it
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs; nothing in it was run")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside itself")


class Reader(dcp.FileSystemReader):
    """DCP's reader, but .metadata is read by a restricted unpickler and must be what DCP writes for tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> kinds.Metadata:
        path = Path(str(self.path))
        try:
            with (path / ".metadata").open("rb") as file:
                metadata = _Unpickler(file).load()
            if not isinstance(metadata, kinds.Metadata):
                raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
            if not all(isinstance(m, kinds.TensorStorageMetadata) for m in metadata.state_dict_metadata.values()):
                raise pickle.UnpicklingError("it describes something that is no tensor")
        except FileNotFoundError:
            raise ValueError(f"checkpoint {path}: .metadata is missing") from None
        except Exception as error:  # what a damaged pickle raises is anything
            raise ValueError(f"checkpoint {path}: .metadata is damaged or not DCP's: {error}") from None
        metadata.storage_meta = kinds.StorageMeta(load_id=self.load_id)
        return metadata


class Planner(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise ValueError("a checkpoint holds tensors only")


def check_metadata(path: Path, files: set[str]) -> None:
    """Raises where .metadata cannot be read, or names files that are not the checkpoint's own."""
    for entry in Reader(path).read_metadata().storage_data.values():
        if entry.relative_path not in files:
            raise ValueError(f"checkpoint {path}: .metadata names {entry.relative_path}, which is not a file of it")


def _seal_of(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
