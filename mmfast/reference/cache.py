"""The reference log-prob cache on disk: safetensors shards, appended atomically, beside a manifest compared by part.

Key: packing.response_key (what is read and what is scored). Value: the fp32 log-prob of each scored token; sums,
averages and weighted scores are derived from these. A folder can be copied to another machine as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mmfast.files import write_bytes, write_json

FORMAT = 1
COMPARED = ("format", "weights", "adapter", "dtype", "quantize", "tokenizer", "template", "images")


class ReferenceCache:
    """Responses' reference log-probs: `cache[key]` is float32[tokens]; `add` appends a shard."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        """Opens a cache, or makes it with `manifest`. A manifest that differs raises and names the parts."""
        self.folder = Path(folder)
        self.values: dict[str, np.ndarray] = {}
        self.shards: set[str] = set()
        self.dropped: set[str] = set()  # keys whose row on disk is not finite, and that no other row replaces
        path = self.folder / "manifest.json"
        if path.exists():
            self.manifest = _read_manifest(path)
            if manifest is not None:
                differences = compare(self.manifest, manifest)
                if differences:
                    raise ValueError(
                        f"the reference cache {self.folder} was made otherwise: {'; '.join(differences)}; remove "
                        "reference.path to make one for these settings"
                    )
        elif manifest is None:
            raise ValueError(f"{self.folder} is not a reference cache: it has no manifest.json")
        else:
            self.manifest = manifest
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(path, manifest)
            except OSError as error:
                raise ValueError(f"cannot write the reference cache {self.folder}: {error.strerror}") from None
        self.reload()

    def reload(self) -> None:
        """Read the shards that appeared since (of this process, other ranks, other runs)."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name in self.shards:
                continue
            data = path.read_bytes()
            if path.stem != _shard_name(data):
                raise ValueError(
                    f"{path} is damaged (its name is the digest of its bytes): delete it, its rows are made again"
                )
            try:
                tensors = load_tensors(data)
                bounds, logps = tensors["offsets"].tolist(), tensors["logps"]
                whole = tensors["keys"].shape == (len(bounds) - 1, 32) and bounds[0] == 0 and bounds[-1] == len(logps)
            except (SafetensorError, LookupError, ValueError):
                whole = False
            if not whole:
                raise ValueError(f"{path} is no shard of a reference cache: delete it, its rows are made again")
            for key, begin, end in zip(tensors["keys"], bounds, bounds[1:], strict=False):
                name, values = key.tobytes().hex(), logps[begin:end]
                if np.isfinite(values).all():
                    self.values[name] = values
                else:
                    self.dropped.add(name)
            self.shards.add(path.name)
        self.dropped -= self.values.keys()

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Append responses, as one shard that appears whole or not at all."""
        if not rows:
            return
        arrays = [np.asarray(values, np.float32) for values in rows.values()]
        assert all(np.isfinite(values).all() for values in arrays), "a row that is not finite is never written"
        data = save_tensors(
            {
                "keys": np.frombuffer(bytes.fromhex("".join(rows)), np.uint8).reshape(len(rows), 32),
                "offsets": np.cumsum([0, *map(len, arrays)], dtype=np.int64),
                "logps": np.concatenate(arrays),
            }
        )
        name = _shard_name(data) + ".safetensors"
        write_bytes(self.folder / name, data, durable=True)
        self.shards.add(name)
        self.values.update(zip(rows, arrays, strict=True))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.values[key]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __len__(self) -> int:
        return len(self.values)

    def digest(self, keys: list[str]) -> str:
        """Of the values a run uses: what its checkpoints record, and what resuming compares."""
        total = hashlib.sha256()
        for key in sorted(set(keys)):
            total.update(bytes.fromhex(key))
            total.update(self.values[key].tobytes())
        return total.hexdigest()


class ShardWriter:
    """Collects rows and appends them every `seconds`, so that a killed pass loses little and shards stay few."""

    def __init__(self, cache: ReferenceCache, seconds: float = 30.0) -> None:
        self.cache, self.seconds, self.rows, self.last = cache, seconds, dict[str, np.ndarray](), time.monotonic()

    def put(self, key: str, values: np.ndarray) -> None:
        self.rows[key] = values
        if time.monotonic() - self.last > self.seconds:
            self.flush()

    def flush(self) -> None:
        self.cache.add(self.rows)
        self.rows, self.last = {}, time.monotonic()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        if isinstance(manifest, dict):
            return manifest
    except ValueError:
        pass
    raise ValueError(f"{path} is damaged: delete {path.parent}, the reference is scored again")


def compare(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Parts in which two manifests differ, in words."""
    differences = []
    for part in COMPARED:
        a, b = there.get(part), here.get(part)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
            differences.append(f"{part}: {len(names)} of {len(a.keys() | b.keys())} differ, the first is {names[0]}")
        else:
            differences.append(f"{part} is {_short(b)} here and {_short(a)} in the cache")
    return differences


def manifest_id(manifest: dict[str, Any]) -> str:
    """Names the default folder: equal for equal compared parts."""
    text = json.dumps({part: manifest.get(part) for part in COMPARED}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shard_name(data: bytes) -> str:
    return "shard-" + hashlib.sha256(data).hexdigest()[:24]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
