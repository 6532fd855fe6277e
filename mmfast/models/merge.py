"""`mmfast merge`: a LoRA adapter from anywhere, merged into its base shard by shard, checked, then given its name.

peft is the judge: the merged files must hold what peft merges in fp32, to the rounding of each tensor's own dtype, and
score words and a picture as base + adapter does, to what that rounding alone does to the scores.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mmfast.data.images.processor import ImageProcessor
from mmfast.directory import adapter_directory, directory, weight_files
from mmfast.directory.hub import found
from mmfast.directory.llava import is_adapter, on_vicuna
from mmfast.directory.native import note_of, origin_of, parameter_name
from mmfast.families import adapter_for, config_of, model_class
from mmfast.models.export import merged, write_whole
from mmfast.models.loading import from_files
from mmfast.models.names import disk_names, empty_model

HONOURED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"}
DESCRIBES = {  # how the adapter was made, or which layers have one: its tensors tell that
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("runtime_config", "loftq_config", "eva_config"),
}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base itself


def merge(adapter: str | Path, out: str | Path, base: str = "") -> float:
    """Merge a peft adapter into its base, written to the new folder `out`. Returns the largest difference that rounding
    makes to the log-prob of a token, in nat. Where anything is wrong, nothing is left."""
    # Refuse what cannot be merged
    folder, out = adapter_directory(adapter), Path(out).resolve()
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} is not a peft adapter: it has no adapter_config.json")
    settings = json.loads((folder / "adapter_config.json").read_text())
    refuse_settings(adapter, settings)
    folder = adapter_directory(adapter, weights=True)
    named, published = str(base or settings["base_model_name_or_path"]), found(adapter)
    refuse_quantised(found(named), named)
    vicuna = on_vicuna(str(adapter), published, named, True, bare=True) if is_adapter(published) else None
    source = vicuna or directory(named, weights=True)
    refuse_target(out, found(named) if vicuna else origin_of(source), published)
    tensors = {
        k.removeprefix("base_model.model."): v for k, v in load_file(folder / "adapter_model.safetensors").items()
    }
    scales = scalings(adapter, settings, tensors, source)

    def replace(name: str, tensor: Tensor | None) -> Tensor | None:
        assert tensor is not None
        stem = name.removesuffix(".weight")
        if name in tensors:
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{adapter}: {name} has another shape than in {source}: is it the adapter's base?")
            return tensors[name]
        if stem not in scales:
            return tensor
        return merged(tensor, tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"], scales[stem])

    # The base's files tensor by tensor, checked before they get their name
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        write_whole(source, temporary, replace, layout="llava" if note_of(source) else "hf")
        worst = check(source, folder, temporary)
        os.rename(temporary, out)
    except ValueError as error:
        raise ValueError(f"{error}; nothing is written") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return worst


def refuse_settings(adapter: str | Path, settings: dict[str, Any]) -> None:
    """Anything in adapter_config.json that changes what the adapter computes, and that merge() does not honour."""
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{adapter}: peft_type is {settings.get('peft_type')!r}; only LoRA adapters can be merged")
    plain = LoraConfig()
    for name, value in settings.items():
        start = name == "init_lora_weights"
        known = name in HONOURED | DESCRIBES or (
            value in PLAIN_STARTS if start else value == getattr(plain, name, None)
        )
        if not known and value not in (None, False, {}, []):
            raise ValueError(f"{adapter}: {name} = {value!r} in its adapter_config.json is not supported by merge")


def refuse_quantised(base: Path, name: str) -> None:
    """An adapter of QLoRA may name the 4-bit copy that it was trained on."""
    described = base / "config.json"
    if described.is_file() and "quantization_config" in json.loads(described.read_text()):
        raise ValueError(f"{name} is quantised: name the model that it was made of by --base, and merge into that")


def refuse_target(out: Path, base: Path, adapter: Path) -> None:
    """`out` must be a folder of its own."""
    for name, other in (("the base", base.resolve()), ("the adapter", adapter.resolve())):
        if out == other or other in out.parents or out in other.parents:
            raise ValueError(f"{out} is, holds or lies in {name} {other}: name a new folder for the merged model")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a new folder for the merged model, or remove it")


def scalings(adapter: str | Path, settings: dict[str, Any], tensors: dict[str, Tensor], base: Path) -> dict[str, float]:
    """The factor of each adapted layer. Raises where a tensor of the adapter has no place in the base."""
    inside, scales = set(disk_names(base).values()), {}
    for name in sorted(tensors):
        stem, side, _ = name.partition(".lora_A.weight")
        place = name if not side else f"{stem}.weight"
        if name.endswith(".lora_B.weight") and f"{name.removesuffix('.lora_B.weight')}.lora_A.weight" in tensors:
            continue
        if place not in inside:
            raise ValueError(f"{adapter}: {name} has no place in {base}: is it the adapter's base?")
        if not side:
            continue
        ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key([*ranks], stem), settings["r"])
        alpha = alphas.get(get_pattern_key([*alphas], stem), settings["lora_alpha"])
        if rank != len(tensors[name]):
            raise ValueError(
                f"{adapter}: {name} has rank {len(tensors[name])}, and its adapter_config.json says {rank}"
            )
        scales[stem] = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return scales


@torch.no_grad()
def check(base: Path, adapter: Path, out: Path) -> float:
    """Raises unless `out` holds what peft merges, tensor by tensor and in its scores. One model is in memory at a time,
    in fp32."""
    rows = trial_rows(base)
    model = PeftModel.from_pretrained(read(base), str(adapter)).eval()
    exact = scores(model, rows)
    model = model.merge_and_unload()
    rounded = model.state_dict()
    names = disk_names(base)
    for file in weight_files(out):
        with safe_open(file, "pt") as source:
            for key in source.keys():  # noqa: SIM118 (not a dict)
                if (name := parameter_name(key) if note_of(base) else names.get(key)) is None:
                    continue
                stored, expected = source.get_tensor(key), rounded[name]
                allowed = torch.finfo(stored.dtype).eps * expected.abs() + 1e-5 * expected.abs().max()
                if not bool(((stored.float() - expected).abs() <= allowed).all()):
                    raise ValueError(f"the merged {key} is not what peft merges, beyond the rounding of {stored.dtype}")
                expected.copy_(expected.to(stored.dtype))
    noise = difference(scores(model, rows), exact)
    del model, rounded
    worst = difference(scores(read(directory(out, weights=True)), rows), exact)
    if not worst <= 1.5 * noise + 1e-3:
        raise ValueError(
            f"the merged model is off by {worst:.3g} nat a token from base + adapter, and rounding explains {noise:.3g}"
        )
    return worst


def read(folder: Path) -> nn.Module:
    config = config_of(folder)
    options = {} if note_of(folder) else {"use_safetensors": True}
    return from_files(model_class(config), folder, config=config, dtype=torch.float32, **options).eval()


def trial_rows(base: Path) -> list[dict[str, Tensor]]:
    """Inputs of a forward pass: random words, and words around a random picture where the family's images are known."""
    config, draw = config_of(base), np.random.default_rng(0)
    text = config.get_text_config()
    marks = {v for k, v in config.to_dict().items() if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)}
    words = np.array([i for i in range(3, min(text.vocab_size, 30000)) if i not in marks])
    rows = [{"input_ids": torch.from_numpy(draw.choice(words, (4, 24)))}]
    picture = draw.integers(0, 255, (84, 120, 3)).astype(np.uint8)
    try:
        family = adapter_for(config)
        if family.image_token_id is None:
            return rows
        processor = ImageProcessor.from_model_dir(base)
        shown = np.full(processor.geometry(120, 84)[0], family.image_token_id)
        for place, word in processor.words(120, 84):
            shown[place] = word
    except ValueError:  # a family that cannot be trained here can be merged all the same
        return rows
    ids = np.concatenate([draw.choice(words, 4), shown, draw.choice(words, 20)])
    tokens = torch.from_numpy(ids)[None]
    accepted = inspect.signature(type(empty_model(base)).forward).parameters
    inputs = processor.collate([processor.preprocess(picture)]) | family.plain_inputs(tokens)
    return [*rows, {"input_ids": tokens, **{k: v for k, v in inputs.items() if k in accepted}}]


def scores(model: nn.Module, rows: list[dict[str, Tensor]]) -> list[Tensor]:
    """Log-prob of each next token."""
    logps = []
    for row in rows:
        logits = model(**row, use_cache=False).logits.float()[:, :-1]
        logps.append(logits.log_softmax(-1).gather(-1, row["input_ids"][:, 1:, None]))
    return logps


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    return float(torch.stack([(a - b).abs().max() for a, b in zip(some, others, strict=True)]).max())  # NaN if any is
