"""`mmfast import`: a model's directory as it was published -> one that mmfast and transformers read.

Pickled weights (.bin) are opened for their tensors alone and written as safetensors, a shard at a time; what the family
says is added (tokenizer, image processor, names). All is compared with the model's own shapes before a byte is
written. The new folder has its name only when it is whole; an import that was stopped goes on behind its last shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING

from mmfast.directory import published
from mmfast.directory.native import unpickled
from mmfast.families import family_of
from mmfast.families.base import Adapter
from mmfast.files import whole, write_json
from mmfast.models.export import copy_side_files
from mmfast.models.names import disk_names, empty_model, module_names, unnamed

SHARD = 2 << 30  # bytes of a written file, unless one tensor alone has more
BESIDE = 64 << 20  # for tokenizer and the rest
PLAN = "import.json"  # in the unfinished folder: what it is made of


@dataclass(frozen=True)
class Stored:
    """A tensor of the published files, and its new name."""

    file: Path
    key: str
    name: str
    size: int  # bytes
    shape: tuple[int, ...]


def import_model(model: str | Path, out: str | Path, told: Callable[[str], None] = print) -> Path:
    """Writes the new folder `out`; `told` gets a line for all that is left out."""
    # What can be told before anything is fetched, and from the small files
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a new folder, or remove it")
    source = published(model)
    described = source / "config.json"
    if not described.is_file():
        raise ValueError(f"{source} has no config.json: name the folder (or hub id) of a whole model")
    config = read_json(described)
    if "quantization_config" in config:
        raise ValueError(f"{source} is quantised: import the model that it was made of")
    kind = config.get("model_type") or ""
    family: type[Adapter] = family_of(kind) or Adapter
    if family is Adapter and kind not in CONFIG_MAPPING:
        raise ValueError(f"{described}: model_type {kind!r} is known neither to mmfast nor to transformers")
    if out == source.resolve() or source.resolve() in out.parents or out in source.resolve().parents:
        raise ValueError(f"{out} is, holds or lies in the model {source}: name a new folder")
    files, where = weights_of(source)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", family.imported_config(source, config))
        stored = scan(files, where, lambda key: family.imported_name(config, key))
        shards = split(compared(Path(folder), stored, source, told))
    unfinished = out.with_name(f".{out.name}.importing")
    digest = digest_of(files, shards)
    there = [file.name for file in unfinished.glob("*.safetensors")] if same(unfinished, digest) else []
    check_room(
        out, [s for name, shard in zip(names_of(shards), shards, strict=True) if name not in there for s in shard]
    )
    # The small files, then the weights
    if not there:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_json(unfinished / PLAN, digest)
    try:
        write_json(unfinished / "config.json", family.imported_config(source, config))
        copy_side_files(source, unfinished, config_too=True)
        for notice in (*source.glob("LICENSE*"), *source.glob("NOTICE*")):
            shutil.copy(notice, unfinished)
        family.write_imported(source, unfinished, config)
    except ValueError:
        if not there:
            shutil.rmtree(unfinished)
        raise
    write_shards(unfinished, shards)
    # Whole: it gets its name
    disk_names(unfinished)
    (unfinished / PLAN).unlink()
    if out.exists():
        out.rmdir()  # it was empty
    os.rename(unfinished, out)
    return out


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no object of JSON: fetch it again")
    return value


def weights_of(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The files with weights, and which tensor lies in which of them, where an index says so."""
    for stem, end in (("model", "safetensors"), ("pytorch_model", "bin")):
        alone, index = source / f"{stem}.{end}", source / f"{stem}.{end}.index.json"
        if index.is_file():
            where: dict[str, str] = read_json(index).get("weight_map") or {}
            files = [source / name for name in sorted(set(where.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"{source} is not whole: {missing[0]}, which its {index.name} names, is missing")
            return files, where
        if alone.is_file():
            return [alone], {}
    raise ValueError(f"{source} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of parts")


def read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, in the file's own memory where it allows that."""
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or cut short ({error}): fetch it again") from None
    try:
        held = unpickled(file)
    except pickle.UnpicklingError as error:
        cause = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(f"{file} holds more than tensors, and what runs code is not read ({cause})") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{file} is damaged or cut short ({cause}): fetch it again") from None
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise ValueError(f"{file} is no dictionary of tensors, as a model's weights are")
    return held


def scan(files: list[Path], where: Mapping[str, str], renamed: Callable[[str], str]) -> list[Stored]:
    """All tensors in the order of the files."""
    found: dict[str, Stored] = {}
    for file in files:
        for key, tensor in read(file).items():
            name = renamed(key)
            if where and where.get(key) != file.name:
                raise ValueError(f"{file} holds {key}, which the index does not say: is it a part of this model?")
            if name and name in found:
                raise ValueError(f"{file} and {found[name].file.name} both hold {name}")
            size = tensor.numel() * tensor.element_size()
            found[name or key] = Stored(file, key, name, size, tuple(tensor.shape))
    if missing := sorted(where.keys() - {s.key for s in found.values()}):
        raise ValueError(f"{where[missing[0]]} does not hold {missing[0]}, which the index says: fetch it again")
    return list(found.values())


def compared(folder: Path, stored: list[Stored], source: Path, told: Callable[[str], None]) -> list[Stored]:
    """Those that the model of the new config.json has a place for; raises where one is missing or of another shape."""
    model = empty_model(folder)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    inside = module_names(model, [s.name for s in stored if s.name])
    for s in stored:
        if s.name in inside and s.shape != shapes[inside[s.name]]:
            raise ValueError(
                f"{s.file}: {s.key} has the shape {list(s.shape)}, and by config.json {list(shapes[inside[s.name]])}: "
                "these are another model's weights"
            )
    if missing := unnamed(model, inside):
        raise ValueError(
            f"{missing[0]} is in none of the files of {source} ({len(missing)} such): these are another model's weights"
        )
    left = [s for s in stored if s.name not in inside]
    if left:
        told(f"left out: {len(left)} tensors that the model has no place for, {left[0].key} the first")
    return [s for s in stored if s.name in inside]


def split(stored: list[Stored]) -> list[list[Stored]]:
    """What is written into one file: tensors of one published file, SHARD bytes at most."""
    shards: list[list[Stored]] = []
    for s in stored:
        last = shards[-1] if shards else []
        if not last or last[0].file != s.file or sum(t.size for t in last) + s.size > SHARD:
            shards.append([])
        shards[-1].append(s)
    return shards


def names_of(shards: list[list[Stored]]) -> list[str]:
    count = len(shards)
    return (
        [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else ["model.safetensors"]
    )


def digest_of(files: list[Path], shards: list[list[Stored]]) -> str:
    """Of what the new weights are made of, and how."""
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    plan = [[(s.file.name, s.key, s.name) for s in shard] for shard in shards]
    return hashlib.sha256(json.dumps([stamps, plan]).encode()).hexdigest()


def same(folder: Path, digest: str) -> bool:
    """Was an import of these very weights stopped there?"""
    note = folder / PLAN
    return note.is_file() and note.read_text() == json.dumps(digest)


def check_room(out: Path, to_come: list[Stored]) -> None:
    place = next(parent for parent in out.parents if parent.is_dir())
    needed, free = sum(s.size for s in to_come) + BESIDE, shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"the disk of {place} is too small: {needed / 2**30:.1f} GiB are to be written there, "
            f"{free / 2**30:.1f} are free"
        )


def write_shards(folder: Path, shards: list[list[Stored]]) -> None:
    """Each appears whole, or not at all; those that are there stay. One published file is open at a time."""
    names = names_of(shards)
    opened: tuple[Path, Mapping[str, Tensor]] = Path(), {}
    for name, shard in zip(names, shards, strict=True):
        if (folder / name).exists():
            continue
        if opened[0] != shard[0].file:
            opened = Path(), {}  # let go before the next
            opened = shard[0].file, read(shard[0].file)
        tensors = {s.name: opened[1][s.key].clone(memory_format=torch.contiguous_format) for s in shard}
        with whole(folder / name, durable=True) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    if len(names) > 1:
        place = {s.name: name for name, shard in zip(names, shards, strict=True) for s in shard}
        total = sum(s.size for shard in shards for s in shard)
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": place})
