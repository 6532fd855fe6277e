"""Vision features of a frozen tower, encoded once and read for all epochs.

One memory-mapped safetensors file a part of the images, in the model's dtype, in a folder named after everything that
the features depend on: the tower's weights, the projector's where that is frozen too, the dtype and the image
processing. A pack then brings rows instead of pixels, and the tower need not be loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmfast.families import sources_outside
from mmfast.families.base import FEATURES, TOWER, Adapter
from mmfast.files import whole
from mmfast.models.loading import load
from mmfast.models.scorer import Scorer, projector_parameters

LoadImages = Callable[[list[str]], dict[str, Tensor]]
VERSION = 1
IMAGES_A_FILE = 256
META = ("image_sizes", "image_grid_thw")  # beside the rows, what project() needs to know of an image
ROWS = "rows"


def what_is_cached(scorer: Scorer) -> str:
    """FEATURES: after the projector, which is frozen. TOWER: before it."""
    trains = any(p.requires_grad for p in projector_parameters(scorer.adapter, scorer.model))
    return TOWER if trains else FEATURES


def vision_key(scorer: Scorer, dtype: torch.dtype, processing: str) -> str:
    """Names the folder. `processing` says how pixels are made (a digest of the image processor's settings)."""
    adapter, model = scorer.adapter, scorer.model
    kind = what_is_cached(scorer)
    parameters = scorer.tower_parameters()
    if kind == FEATURES:
        parameters += projector_parameters(adapter, model)
    rules = sources_outside(type(adapter))
    digest = hashlib.sha256(json.dumps([VERSION, kind, str(dtype), processing, len(parameters), *rules]).encode())
    for p in parameters:
        values = p.detach().to(dtype).cpu().contiguous()
        digest.update(repr(tuple(values.shape)).encode())
        digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()[:32]


@torch.no_grad()
def write_vision_cache(
    scorer: Scorer,
    folder: str | Path,
    image_ids: Iterable[str],
    load_images: LoadImages,
    dtype: torch.dtype,
    *,
    batch: int = 8,
) -> int:
    """Encode the images that the folder does not hold yet; returns how many were. The tower must be loaded."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = _index(folder)[0]
    missing = [i for i in dict.fromkeys(image_ids) if i not in held]
    kind = what_is_cached(scorer)
    for start in range(0, len(missing), IMAGES_A_FILE):
        names = missing[start : start + IMAGES_A_FILE]
        tensors: dict[str, Tensor] = {}
        for first in range(0, len(names), batch):
            tensors.update(_encode(scorer, names[first : first + batch], load_images, kind, dtype))
        name = hashlib.sha256("".join(names).encode()).hexdigest()[:24]
        with whole(folder / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"kind": kind})
    return len(missing)


def _encode(
    scorer: Scorer, names: list[str], load_images: LoadImages, kind: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    adapter, model = scorer.adapter, scorer.model
    images = adapter.prepare(load_images(names))
    on_device = {n: t.to(scorer.device) for n, t in images.items()}
    if kind == FEATURES:
        rows, counts = adapter.encode(model, on_device), adapter.rows_of(images)
    else:
        rows, counts = adapter.tower(model, on_device), adapter.tower_rows_of(images)
    parts = rows.to(dtype).cpu().split(counts)
    tensors = {f"{name}/{ROWS}": part.clone() for name, part in zip(names, parts, strict=True)}
    for key in META:
        if key in images:
            tensors |= {f"{name}/{key}": images[key][i : i + 1].clone() for i, name in enumerate(names)}
    return tensors


def _index(folder: Path) -> tuple[dict[str, Path], str]:
    """(image id -> its file, what the files hold: FEATURES, TOWER or, of none, "".)"""
    files: dict[str, Path] = {}
    kinds = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                kind = (file.metadata() or {}).get("kind")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, its images are encoded again") from None
        if kind not in (FEATURES, TOWER) or not all("/" in key for key in names):
            raise ValueError(f"{path} is no file of a vision cache: take it out of that folder")
        files.update({key.rpartition("/")[0]: path for key in names})
        kinds.add(kind)
    assert len(kinds) < 2, f"{folder} holds {kinds}"
    return files, next(iter(kinds), "")


class VisionCache:
    """Reads a folder back; `cache(image_ids)` takes the place of load_images when packs are made. Safe to pickle: files
    are opened in the process that reads."""

    def __init__(self, folder: str | Path, adapter: Adapter):
        self.adapter = adapter
        self.folder = Path(folder)
        self.files, self.kind = _index(Path(folder))
        self.open: dict[Path, safe_open] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "open": {}}

    def __call__(self, image_ids: Sequence[str]) -> dict[str, Tensor]:
        images: dict[str, list[Tensor]] = {}
        for name in image_ids:
            if name not in self.files:
                raise ValueError(f"image {name[:16]} is not in the vision cache; run the caching pass over this data")
            path = self.files[name]
            if path not in self.open:
                self.open[path] = safe_open(path, "pt")
            file = self.open[path]
            for key in (ROWS, *META):
                if f"{name}/{key}" in file.keys():  # noqa: SIM118
                    images.setdefault(key, []).append(file.get_tensor(f"{name}/{key}"))
        joined = {self.kind if key == ROWS else key: torch.cat(parts) for key, parts in images.items()}
        return self.adapter.prepare(joined)


def cache_vision(
    path: str,
    root: str | Path,
    image_ids: Iterable[str],
    load_images: LoadImages,
    *,
    dtype: torch.dtype,
    freeze: Sequence[str],
    processing: str,
    device: str | torch.device = "cpu",
) -> VisionCache:
    """The whole caching pass: load the model with its tower, encode what root/<key> lacks, let the model go again."""
    scorer = load(path, dtype=dtype, freeze=freeze, device=device).eval()
    folder = Path(root) / vision_key(scorer, dtype, processing)
    write_vision_cache(scorer, folder, image_ids, load_images, dtype)
    return VisionCache(folder, scorer.adapter)
