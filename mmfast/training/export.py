"""What a run leaves for others to load: HF safetensors, a peft adapter, LLaVA's native adapter layout.

The base's files are rewritten one shard at a time, tensor by tensor: no rank ever holds a whole model for it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmfast.config import Config, build, dump, load
from mmfast.directory import directory, weight_files
from mmfast.families.base import Adapter
from mmfast.files import sha256_of
from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import Runtime
from mmfast.models.names import disk_names, empty_model, plain_name
from mmfast.models.scorer import Scorer

WEIGHTS = (".safetensors", ".bin")
Replace = Callable[[str, Tensor | None], Tensor | None]
"""(a parameter's name, the base's tensor or, on a rank that does not write, None) -> what to write."""


def formats_of(config: Config) -> list[str]:
    """What `export.formats` comes to: unmerged, what from_pretrained loads of an adapter run is the adapter."""
    adapts = config.model.adapts
    return list(
        dict.fromkeys("peft" if n == "hf" and adapts and not config.export.merge else n for n in config.export.formats)
    )


def check_export(config: Config, job: Job) -> None:
    """Raises for what could not be exported after the training, from the model's description and its files' headers."""
    job.fetch_models(weights=True)
    formats, folder, family = formats_of(config), directory(config.model.path), job.adapter
    if "hf" in formats:
        disk_names(folder)
    if "peft" in formats and "projector" not in config.model.freeze:
        model = empty_model(folder)
        bare = {id(part) for part in family.projector(model) if isinstance(part, nn.Parameter)}
        for name, p in model.named_parameters():
            if id(p) in bare:
                raise ValueError(
                    f"export: peft's layout has no place for the trained {name} of a {family.config.model_type}: "
                    'set export.formats = ["hf"] and export.merge = true, or put "projector" into model.freeze'
                )
    if "llava" in formats:
        check_llava(config, family)


def check_llava(config: Config, family: Adapter) -> None:
    c, no = family.config, 'export.formats: "llava" is the native layout of LLaVA-1.5 '
    if c.model_type != "llava":
        raise ValueError(f'{no}only, and this is a {c.model_type}: use "peft", or "hf" with export.merge = true')
    if c.projector_hidden_act != "gelu" or not isinstance(c.vision_feature_layer, int):
        raise ValueError(f"{no}with its two-layer gelu projector on one layer of the tower; this model has others")
    if config.model.adapter:
        settings = json.loads((directory(config.model.adapter) / "adapter_config.json").read_text())
        patterns = [name for name in ("rank_pattern", "alpha_pattern") if settings.get(name)]
        if patterns:
            raise ValueError(f'{no}for one rank and scale, and model.adapter has a {patterns[0]}: use "peft"')


def export_run(
    config: Config, runtime: Runtime, scorer: Scorer, run: Path, step: int, data: str, *, out: Path | None = None
) -> None:
    """Write every format of `export.formats` under run/export (or `out`), as the model is after `step`. All ranks take
    part; rank 0 writes."""
    out = out or run / "export"
    for name in formats_of(config):
        final = out / ("llava-lora" if name == "llava" else name)
        made, old = final.with_name(f".{final.name}.tmp"), final.with_name(f".{final.name}.old")
        if runtime.main:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        runtime.barrier()
        base = directory(config.model.path, weights=True)
        if name == "hf":
            rewrite_weights(base, made, live_weights(scorer), write=runtime.main)
        else:
            save = save_peft if name == "peft" else save_llava
            save(config, scorer, made, write=runtime.main)
        if runtime.main:
            copy_side_files(base, made, config_too=name == "hf")
            (made / "README.md").write_text(model_card(config, made, step, metrics_at(run, step), data))
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.rename(final, old)
            os.rename(made, final)
            shutil.rmtree(old, ignore_errors=True)
        runtime.barrier()


def live_weights(scorer: Scorer) -> Replace:
    """The trained weights of a running model, LoRA merged. Gathers each tensor when it is asked for: a collective."""
    modules = {plain_name(name): module for name, module in scorer.model.named_modules()}

    def replace(name: str, base: Tensor | None) -> Tensor | None:
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if module is None:  # a tower that is not loaded: its features are cached
            return base
        if leaf == "weight" and isinstance(module, nn.Module) and "lora_A" in dict(module.named_children()):
            a, b = full(module.lora_A["default"].weight), full(module.lora_B["default"].weight)
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


def rewrite_weights(base: Path, out: Path, replace: Replace, *, write: bool = True) -> None:
    """The base's safetensors files again, in the same names, dtypes and shards, each tensor through `replace`."""
    names = disk_names(base)
    for file in weight_files(base):
        tensors = {}
        with safe_open(file, "pt") as source:
            for key in source.keys():  # noqa: SIM118 (not a dict)
                stored = source.get_tensor(key) if write else None
                made = replace(names[key], stored) if key in names else stored
                if made is not None and stored is not None:
                    tensors[key] = made.to("cpu", stored.dtype).contiguous()
        if write:
            save_file(tensors, out / file.name, metadata={"format": "pt"})
    if write and weight_files(base)[0].name != "model.safetensors":
        shutil.copy(base / "model.safetensors.index.json", out)


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
    assert not bare, bare  # check_export
    settings = scorer.peft[0].peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": config.model.path,
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
        "target_modules": adapted(lora),
    }
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=str))
    tensors = {f"base_model.model.{key}": value.contiguous() for key, value in (lora | others).items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def adapted(lora: dict[str, Tensor]) -> list[str]:
    """Full names of the layers that have LoRA matrices."""
    return sorted({name.rpartition(".lora_")[0] for name in lora})


LLAVA_NAMES = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
)


def save_llava(config: Config, scorer: Scorer, out: Path, *, write: bool) -> None:
    """The layout of LLaVA's own loader (mllm-dpo, SIMA): an adapter, and non_lora_trainables.bin beside it."""
    lora, others = adapter_state(scorer)
    if not write:
        return
    settings = scorer.peft[0].peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": config.model.path,
        "inference_mode": True,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapted(lora)}),
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


def copy_side_files(base: Path, out: Path, *, config_too: bool) -> None:
    """Tokenizer, processor and templates; the model's config where whole weights are written."""
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json"):
            if path.name in ("config.json", "generation_config.json") and not config_too:
                continue
            if not (out / path.name).exists():
                shutil.copy(path, out)


def metrics_at(run: Path, step: int) -> dict[str, tuple[Any, int]]:
    """Each metric as it last was at `step`, and when that was."""
    found = {}
    path = run / "metrics.jsonl"
    for row in read(path) if path.exists() else ():
        if row["step"] <= step:
            found.update({name: (value, row["step"]) for name, value in row.items() if name != "step"})
    return found


def model_card(config: Config, folder: Path, step: int, metrics: dict[str, tuple[Any, int]], data: str) -> str:
    """README.md of an export: what it was made from, with which settings, and what was measured of it."""
    o = config.objective
    method = {"sft": "SFT"}.get(o.kind, f"{'DDPO' if o.gamma != 1 else 'preference optimisation'} ({o.loss})")
    weights = "\n".join(f"| {p.name} | `{sha256_of(p)}` |" for p in sorted(folder.iterdir()) if p.suffix in WEIGHTS)
    rows = "\n".join(
        f"| {name} | {value if isinstance(value, str) else f'{value:.5g}'} | {when} |"
        for name, (value, when) in sorted(metrics.items())
    )
    return f"""---
base_model: {config.model.path}
library_name: transformers
tags: [mmfast, {"sft" if o.kind == "sft" else "dpo"}]
---

# {config.log.name or Path(config.output_dir).name}, step {step}

{method} of `{config.model.path}` with mmfast{f": {config.about}" if config.about else "."}

Data: `{data}` (digest of the examples: file contents, template, tokenizer, image processing).

| weights after step {step} | sha256 |
|---|---|
{weights}

| metric | value | measured at step |
|---|---|---|
{rows}

<details><summary>config</summary>

```toml
{dump(config)}```

</details>
"""


def export(run: str | Path, formats: tuple[str, ...] = (), step: int = 0, merge: bool = False) -> Path:
    """Export a checkpoint of a run, the newest (`step` 0) or a named one, to run/export/step-N: the folder is returned.
    What the run itself exported at its end is left alone."""
    from mmfast.job.runtime import start
    from mmfast.training.checkpoint import Checkpointer, complete, training_state

    run = Path(run)
    config = load(run / "config.toml")
    adapts = config.model.adapts
    if merge and not adapts:
        raise ValueError(f"--merge merges an adapter, and {run} trained the whole model")
    if "hf" in formats and adapts and not (merge or config.export.merge):
        raise ValueError(f'{run} trained an adapter: "hf" needs --merge, or take --format peft')
    tree = config.model_dump(exclude_none=True)
    if formats or merge:
        tree["export"] = {"formats": list(formats or ["hf"]), "merge": "hf" in (formats or ["hf"]) and adapts}
        config = build(tree)
    found = {int(path.name.split("-")[1]): path for path in complete(run / "checkpoints")}
    if not found or (step and step not in found):
        told = f"of step {step}; there are those of {', '.join(map(str, found))}" if found else ""
        raise ValueError(f"{run} has no complete checkpoint {told}".strip())
    path = found[step or max(found)]
    tree["model"]["cache_vision"] = False  # no features are read
    runtime = start(config)
    try:
        job = Job(build(tree), runtime)
        job.eval_data = None  # held-out examples need not be there any more
        check_export(config, job)
        scorer = job.policy.scorer
        state = {"weights": training_state(scorer, torch.optim.SGD(scorer.parameters()))["weights"]}
        out = run / "export" / path.name
        # not over run/checkpoints, which it would sweep of what a run that is still going is writing there
        info = Checkpointer(out).load(path, state)
        export_run(config, runtime, scorer, run, info["step"], info["identity"]["data"], out=out)
    finally:
        runtime.close()
    return out
