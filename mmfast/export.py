"""What a run leaves for others to load: HF safetensors, a peft adapter, LLaVA's native adapter layout; and `merge`.

The base's files are rewritten one shard at a time, tensor by tensor: no rank ever holds a whole model for it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mmfast.config import Config, dump
from mmfast.data.tokens import model_directory
from mmfast.models.scorer import Scorer
from mmfast.models.sharded import disk_names, plain_name
from mmfast.runtime import Runtime

Replace = Callable[[str, Tensor], Tensor]  # (module's parameter name, the base's tensor) -> what to write


def export_run(
    config: Config, runtime: Runtime, scorer: Scorer, folder: Path, metrics: dict[str, float], data: str
) -> None:
    """Write every format of `export.formats` under folder/export. All ranks take part; rank 0 writes."""
    formats = list(config.export.formats)
    if config.model.adapts and not config.export.merge:  # unmerged, what from_pretrained loads is the adapter
        formats = ["peft" if name == "hf" else name for name in formats]
    for name in dict.fromkeys(formats):
        out = folder / "export" / ("llava-lora" if name == "llava" else name)
        made = out.with_name(f".{out.name}.tmp")
        if runtime.main:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        runtime.barrier()
        if name == "hf":
            base = model_directory(config.model.path)
            rewrite_weights(base, made, live_weights(scorer), write=runtime.main)
        else:
            save = save_peft if name == "peft" else save_llava
            save(config, scorer, made, write=runtime.main)
        if runtime.main:
            _copy_side_files(model_directory(config.model.path), made, config_too=name == "hf")
            (made / "README.md").write_text(model_card(config, metrics, data))
            shutil.rmtree(out, ignore_errors=True)
            os.rename(made, out)
        runtime.barrier()


def live_weights(scorer: Scorer) -> Replace:
    """The trained weights of a running model, LoRA merged. Gathers each tensor when it is asked for: a collective."""
    modules = {plain_name(name): module for name, module in scorer.model.named_modules()}

    def replace(name: str, base: Tensor) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if leaf == "weight" and isinstance(module, nn.Module) and "lora_A" in dict(module.named_children()):
            a, b = full(module.lora_A["default"].weight), full(module.lora_B["default"].weight)
            return merged(base, a, b, module.scaling["default"])
        p = dict(module.named_parameters(recurse=False)).get(leaf)
        return base if p is None or not p.requires_grad else full(p)

    return replace


def full(p: Tensor) -> Tensor:
    value = p.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def merged(base: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + s B A in fp32."""
    return base.to(a.device, torch.float32) + scaling * (b.float() @ a.float())


def rewrite_weights(base: Path, out: Path, replace: Replace, *, write: bool = True) -> None:
    """The base's safetensors files again, in the same names, dtypes and shards, each tensor through `replace`."""
    names = disk_names(base)
    for file in sorted(base.glob("*.safetensors")):
        tensors = {}
        with safe_open(file, "pt") as source:
            for key in source.keys():  # noqa: SIM118 (not a dict)
                tensor = source.get_tensor(key)
                made = replace(names[key], tensor) if key in names else tensor
                if write:
                    tensors[key] = made.to("cpu", tensor.dtype).contiguous()
        if write:
            save_file(tensors, out / file.name, metadata={"format": "pt"})
    if write and (index := base / "model.safetensors.index.json").exists():
        shutil.copy(index, out)


# adapters


def adapter_state(scorer: Scorer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(LoRA tensors, other trained tensors) by module name, gathered: a collective."""
    lora, others = {}, {}
    for name, p in scorer.model.named_parameters():
        if p.requires_grad:
            kind = lora if ".lora_" in name else others
            kind[plain_name(name).replace(".default.", ".")] = full(p).cpu()
    return lora, others


def save_peft(config: Config, scorer: Scorer, out: Path, *, write: bool) -> None:
    """adapter_config.json and adapter_model.safetensors; a trained projector goes in as modules_to_save."""
    lora, others = adapter_state(scorer)
    if not write:
        return
    parts = [m for m in scorer.adapter.projector(scorer.model) if isinstance(m, nn.Module)]
    names = {plain_name(n) for n, m in scorer.model.named_modules() if any(m is part for part in parts)}
    whole = {n for n in names if any(key.startswith(n + ".") for key in others)}
    bare = [key for key in others if not any(key.startswith(n + ".") for n in whole)]
    if bare:
        raise ValueError(f'export: peft\'s layout has no place for the trained {bare[0]}: use ["hf"] with merge = true')
    settings = scorer.peft[0].peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": config.model.path,
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
        "target_modules": sorted(settings["target_modules"]),
    }
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=str))
    tensors = {f"base_model.model.{key}": value.contiguous() for key, value in (lora | others).items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


LLAVA_NAMES = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
)


def save_llava(config: Config, scorer: Scorer, out: Path, *, write: bool) -> None:
    """The layout of LLaVA's own loader (mllm-dpo, SIMA): an adapter, and non_lora_trainables.bin beside it."""
    if scorer.adapter.config.model_type != "llava":
        raise ValueError('export.formats: "llava" is the native layout of LLaVA-1.5 only')
    lora, others = adapter_state(scorer)
    if not write:
        return
    settings = scorer.peft[0].peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": config.model.path,
        "inference_mode": True,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in settings["target_modules"]}),
    }
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=str))
    named = {f"base_model.model.{_native(key)}": value.contiguous() for key, value in lora.items()}
    save_file(named, out / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.save({f"base_model.model.{_native(k)}": v for k, v in others.items()}, out / "non_lora_trainables.bin")
    c = scorer.adapter.config
    native = c.text_config.to_dict() | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_select_layer": c.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": c.vision_config.hidden_size,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if config.data.aspect == "auto" else config.data.aspect,
    }
    (out / "config.json").write_text(json.dumps(native, indent=1, default=str))


def _native(name: str) -> str:
    for ours, theirs in LLAVA_NAMES:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


# merging


def merge(adapter: Path, out: Path, base: str = "", *, rows: int = 4, tolerance: float = 0.0) -> float:
    """Merge a peft adapter directory into its base, shard by shard, into `out`; returns the largest difference in nat.

    Log-probs of a few rows of random tokens are compared: base + adapter against the merged files.
    """
    adapter, out = Path(adapter), Path(out)
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} is not a peft adapter: it has no adapter_config.json")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    if settings.get("use_dora") or settings.get("peft_type") != "LORA":
        raise ValueError(f"{adapter}: only plain LoRA adapters can be merged")
    source = model_directory(base or settings["base_model_name_or_path"])
    root = settings["r"] ** 0.5 if settings.get("use_rslora") else settings["r"]
    scaling = settings["lora_alpha"] / root
    given = {
        k.removeprefix("base_model.model."): v for k, v in load_file(adapter / "adapter_model.safetensors").items()
    }
    used: set[str] = set()

    def replace(name: str, tensor: Tensor) -> Tensor:
        if name in given:
            used.add(name)
            return given[name]
        stem = name.removesuffix(".weight")
        a, b = (f"{stem}.lora_{side}.weight" for side in "AB")
        if a not in given:
            return tensor
        used.update((a, b))
        return merged(tensor, given[a], given[b], scaling)

    out.mkdir(parents=True, exist_ok=True)
    rewrite_weights(source, out, replace)
    left = sorted(set(given) - used)
    if left:
        raise ValueError(f"{adapter}: {left[0]} has no place in {source}: is it the adapter's base?")
    _copy_side_files(source, out, config_too=True)
    worst = _compare(source, adapter, out, rows)
    allowed = tolerance or (1e-3 if next(iter(given.values())).dtype == torch.float32 else 0.3)
    if not worst <= allowed:
        raise ValueError(f"the merged model in {out} is off by {worst:.3g} nat a token (allowed {allowed:g})")
    return worst


@torch.no_grad()
def _compare(base: Path, adapter: Path, out: Path, rows: int) -> float:
    from peft import PeftModel

    config = AutoConfig.from_pretrained(base)
    kinds = AutoModelForImageTextToText if "vision_config" in config.to_dict() else AutoModelForCausalLM
    words = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(config.get_text_config().vocab_size, 400), (rows, 24), generator=words)

    def score(model: nn.Module) -> Tensor:
        logits = model.eval()(input_ids=ids).logits.float()
        return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])

    before = score(PeftModel.from_pretrained(kinds.from_pretrained(base), adapter))
    return float((score(kinds.from_pretrained(out)) - before).abs().max())


def _copy_side_files(base: Path, out: Path, *, config_too: bool) -> None:
    """Tokenizer, processor and templates; the model's config where whole weights are written."""
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json"):
            if path.name in ("config.json", "generation_config.json") and not config_too:
                continue
            if not (out / path.name).exists():
                shutil.copy(path, out)


def model_card(config: Config, metrics: dict[str, float], data: str) -> str:
    """README.md of an export: what it was made from, with which settings, and what was measured."""
    o = config.objective
    method = {"sft": "SFT"}.get(o.kind, f"{'DDPO' if o.gamma != 1 else 'preference optimisation'} ({o.loss})")
    rows = "\n".join(f"| {name} | {value:.5g} |" for name, value in sorted(metrics.items()))
    return f"""---
base_model: {config.model.path}
library_name: transformers
tags: [mmfast, {"sft" if o.kind == "sft" else "dpo"}]
---

# {config.log.name or Path(config.output_dir).name}

{method} of `{config.model.path}` with mmfast{f": {config.about}" if config.about else "."}

Data: `{data}` (digest of the examples: file contents, template, tokenizer, image processing).

| metric | last value |
|---|---|
{rows}

<details><summary>config</summary>

```toml
{dump(config)}```

</details>
"""


def export(run: Path, formats: tuple[str, ...] = (), step: int = 0) -> Path:
    """Export a checkpoint of a run again, in other formats; returns the export folder. `step` 0: the newest."""
    from mmfast.checkpoint import Checkpointer, find, training_state
    from mmfast.config import build, load
    from mmfast.job import open_examples, open_model
    from mmfast.metrics import read
    from mmfast.runtime import start

    run = Path(run)
    config = load(run / "config.toml")
    if formats:
        tree = config.model_dump(exclude_none=True)
        tree["export"]["formats"] = list(formats)
        config = build(tree)
    runtime = start(config)
    try:
        path = find(run / "checkpoints", str(run / "checkpoints" / f"step-{step}") if step else "auto")
        if path is None:
            raise ValueError(f"{run} has no checkpoint to export")
        scorer, _ = open_model(config, runtime, [open_examples(config, runtime)])
        state = {"weights": training_state(scorer, torch.optim.SGD(scorer.parameters()))["weights"]}
        info = Checkpointer(run / "checkpoints").load(path, state)
        last = {k: v for row in read(run / "metrics.jsonl") for k, v in row.items() if isinstance(v, float)}
        export_run(config, runtime, scorer, run, last, info["identity"]["data"])
    finally:
        runtime.close()
    return run / "export"
