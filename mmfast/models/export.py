"""A model's files for others to load: HF safetensors, a peft adapter, a family's original adapter layout.

The base's files are rewritten one shard at a time, tensor by tensor: no rank ever holds a whole model for it. All ranks
take part where tensors are gathered; one writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmfast.data.images.processor import ImageProcessor
from mmfast.directory import weight_files
from mmfast.directory.llava import native_config, tower_of
from mmfast.directory.native import TOWER, Tensors, note_of, origin_of, written_name
from mmfast.families import adapter_for, config_of
from mmfast.families.base import Adapter
from mmfast.models.names import disk_names, empty_model, plain_name, whole
from mmfast.models.scorer import Scorer

SHARD = 5 << 30  # bytes of a file

Replace = Callable[[str, Tensor | None], Tensor | None]
"""(a parameter's name, the base's tensor or, on a rank that does not write, None) -> what to write."""


def unplaced(family: Adapter, base: Path) -> str:
    """The projector's parameter that peft's layout has no place for: it keeps modules only. "" if there is none."""
    model = empty_model(base)
    bare = {id(part) for part in family.projector(model) if isinstance(part, nn.Parameter)}
    return next((name for name, p in model.named_parameters() if id(p) in bare), "")


def live_weights(scorer: Scorer) -> Replace:
    """The trained weights of a running model, LoRA merged. Gathers each tensor when it is asked for: a collective."""
    modules = {plain_name(name): module for name, module in scorer.model.named_modules()}

    def replace(name: str, base: Tensor | None) -> Tensor | None:
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if module is None:  # a tower that is not loaded: its features are cached
            return base
        if leaf == "weight" and isinstance(module, LoraLayer):
            a, b = (full(side["default"].get_parameter("weight")) for side in (module.lora_A, module.lora_B))
            return None if base is None else merged(base, a, b, module.scaling["default"])
        p = dict(module.named_parameters(recurse=False)).get(leaf)
        return base if p is None or not p.requires_grad else full(p)

    return replace


def full(p: Tensor) -> Tensor:
    value = p.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def merged(base: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + s B A in fp32."""
    return base.to(a.device, torch.float32) + scaling * (b.float() @ a.float())


def write_whole(
    base: Path,
    out: Path,
    replace: Replace,
    *,
    layout: str,
    aspect: str = "auto",
    tower: bool = False,
    write: bool = True,
) -> None:
    """Whole weights with all that lies beside them. layout: "hf", transformers' own; "llava", LLaVA's native one, which
    leaves out a tower that the base only names unless it was trained (`tower`)."""
    native = note_of(base)
    if layout == "hf" and native is None:
        rewrite_weights(base, out, replace, write=write)
    else:
        tower = write_in_layout(base, out, replace, layout, tower=tower, write=write)
    if not write:
        return
    if layout == "hf":
        copy_side_files(base, out, config_too=True)
        return
    # LLaVA's own descriptions; a tower that is only named must be found from the new folder too
    for place in dict.fromkeys((origin_of(base), Path((native or {}).get("beside", base)))):
        copy_side_files(place, out, config_too=False)
        if (place / "generation_config.json").exists():
            shutil.copy(place / "generation_config.json", out)
    config = native_config_of(base, aspect) | {"unfreeze_mm_vision_tower": tower}
    if tower:  # for our own reader; the original takes the sizes from the folder that mm_vision_tower names
        config["mm_vision_config"] = json.loads((base / "config.json").read_text())["vision_config"]
    elif native and native.get("tower") and tower_of(config, out, fetch=False) is None:
        config["mm_vision_tower"] = str(Path(native["tower"][0]).parent.resolve())
    (out / "config.json").write_text(json.dumps(config, indent=1, default=str))


def native_config_of(base: Path, aspect: str) -> dict[str, Any]:
    """config.json in LLaVA's layout of a model directory of either."""
    family = adapter_for(config_of(base))
    family.original_config(aspect)  # raises for any other family
    processor = ImageProcessor.from_model_dir(base, aspect)
    made = family.original_config(processor.aspect if isinstance(processor, ImageProcessor) else aspect)
    own = native_config(origin_of(base))
    return {**own, "image_aspect_ratio": made["image_aspect_ratio"]} if own else made


def rewrite_weights(base: Path, out: Path, replace: Replace, *, write: bool = True) -> None:
    """The base's safetensors files again, in the same names, dtypes and shards, each tensor through `replace`."""
    names = disk_names(base)
    for file in weight_files(base):
        tensors = {}
        with safe_open(file, "pt") as source:
            for key in source.keys():  # noqa: SIM118 (not a dict)
                stored = source.get_tensor(key) if write else None
                new = replace(names[key], stored) if key in names else stored
                if new is not None and stored is not None:
                    tensors[key] = new.to("cpu", stored.dtype).contiguous()
        if write:
            save_file(tensors, out / file.name, metadata={"format": "pt"})
    if write and weight_files(base)[0].name != "model.safetensors":
        shutil.copy(base / "model.safetensors.index.json", out)


def write_in_layout(base: Path, out: Path, replace: Replace, layout: str, *, tower: bool, write: bool) -> bool:
    """A LLaVA's tensors in another layout than the base's, or in the native one again: each through `replace`. Returns
    whether the tower was written."""
    # Which tensors, and in which files
    stored = Tensors(note_of(base) or {"name": str(base), "files": weight_files(base)})
    tower = tower or stored.own_tower or layout == "hf"
    names = [n for n in whole(stored, empty_model(base)) if tower or not n.startswith(TOWER)]
    shards: list[list[str]] = [[]]
    room = SHARD
    for name in names:
        size = stored.size(name)
        if size > room and shards[-1]:
            shards, room = [*shards, []], SHARD
        shards[-1].append(name)
        room -= size
    # One file at a time
    index: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in part:
            before = stored[name] if write else None
            new = replace(name, before)
            if new is not None and before is not None:
                tensors[written_name(name, layout)] = new.to("cpu", before.dtype).contiguous()
        if write:
            save_file(tensors, out / file, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, file)
    if write and len(shards) > 1:
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    return tower


def save_peft(scorer: Scorer, base: str, out: Path, *, write: bool) -> None:
    """adapter_config.json and adapter_model.safetensors; a trained projector goes in as modules_to_save."""
    lora, others = _trained(scorer)
    if not write:
        return
    parts = [m for m in scorer.adapter.projector(scorer.model) if isinstance(m, nn.Module)]
    names = {plain_name(n) for n, m in scorer.model.named_modules() if any(m is part for part in parts)}
    modules = {n for n in names if any(key.startswith(n + ".") for key in others)}
    bare = [key for key in others if not any(key.startswith(n + ".") for n in modules)]
    assert not bare, bare  # unplaced()
    _write(scorer, base, out, lora | others, target_modules=_layers(lora), modules_to_save=sorted(modules) or None)


def save_original(scorer: Scorer, base: str, folder: Path, out: Path, *, aspect: str, write: bool) -> None:
    """The layout of the family's first loader (LLaVA's: mllm-dpo, SIMA): an adapter, and non_lora_trainables.bin.
    `folder`: of the model that `base` names."""
    lora, others = _trained(scorer)
    if not write:
        return
    rename = scorer.adapter.original_name
    layers = sorted({name.rpartition(".")[2] for name in _layers(lora)})
    _write(scorer, base, out, {rename(name): t for name, t in lora.items()}, target_modules=layers)
    torch.save({f"base_model.model.{rename(k)}": t for k, t in others.items()}, out / "non_lora_trainables.bin")
    (out / "config.json").write_text(json.dumps(native_config_of(folder, aspect), indent=1, default=str))


def _trained(scorer: Scorer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(LoRA tensors, other trained tensors) by module name, gathered: a collective."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, p in scorer.model.named_parameters():
        if p.requires_grad:
            parts[".lora_" not in name][plain_name(name).replace(".default.", ".")] = full(p).cpu()
    return parts


def _layers(lora: dict[str, Tensor]) -> list[str]:
    return sorted({name.rpartition(".lora_")[0] for name in lora})


def _write(scorer: Scorer, base: str, out: Path, tensors: dict[str, Tensor], **settings: Any) -> None:
    settings |= {"base_model_name_or_path": base, "inference_mode": True}
    settings = scorer.peft[0].peft_config["default"].to_dict() | settings
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=str))
    named = {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(named, out / "adapter_model.safetensors", metadata={"format": "pt"})


def copy_side_files(base: Path, out: Path, *, config_too: bool) -> None:
    """Tokenizer, processor and templates; the model's config where whole weights are written."""
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") and not path.name.endswith(".index.json"):
            if path.name in ("config.json", "generation_config.json") and not config_too:
                continue
            if path.name == "adapter_config.json":  # of a base that is itself an adapter: the copy is whole
                continue
            if not (out / path.name).exists():
                shutil.copy(path, out)
