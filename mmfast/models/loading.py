"""A model directory (or hub id) -> a Scorer ready for parallelize: parts frozen, LoRA added, dtypes set."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import BitsAndBytesConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from mmfast.directory import directory
from mmfast.directory.native import tensors_of
from mmfast.families import adapter_for, config_of, model_class
from mmfast.families.base import Adapter
from mmfast.models.float32 import keep_float32
from mmfast.models.lora import Lora, add_lora
from mmfast.models.names import whole
from mmfast.models.scorer import Scorer, projector_parameters
from mmfast.packages import no_bars

PARTS = ("vision", "projector", "language")


def load(
    path: str | PretrainedConfig,
    *,
    dtype: str | torch.dtype = "bfloat16",
    freeze: Sequence[str] = ("vision",),
    lora: Lora | PeftConfig | None = None,
    adapter: str = "",
    replacing: bool = False,
    attention: str = "auto",
    quantize: str = "",
    cached_vision: bool = False,
    device: str | torch.device = "cpu",
    random_weights: bool = False,
) -> Scorer:
    """
    path            a directory or a hub id; with random_weights a config too
    dtype           of the forward pass. Frozen parameters are kept in it, trainable ones in fp32 (the masters)
    freeze          any of "vision", "projector", "language"; all three for a model that only scores
    lora, adapter   a fresh LoRA adapter, or a directory with one that is trained further
    replacing       for a model that only answers: an adapter may bring whole modules too (a trained projector)
    attention       backend of the tree attention. Qwen's towers take flash attention on CUDA where it is installed
    quantize        "nf4": the decoder's frozen linear layers in 4 bits (bitsandbytes); needs LoRA
    cached_vision   packs bring cached features: the tower's blocks are not loaded
    random_weights  from the config alone, for benches
    """
    # Check
    dtype, device = getattr(torch, dtype) if isinstance(dtype, str) else dtype, torch.device(device)
    unknown = [part for part in freeze if part not in PARTS]
    if unknown:
        raise ValueError(f"model.freeze: {unknown[0]!r} is not a part of a model; choose from {', '.join(PARTS)}")
    if cached_vision and "vision" not in freeze:
        raise ValueError('model.cache_vision needs a frozen tower: add "vision" to model.freeze')
    if isinstance(path, str):
        path = str(directory(path, weights=not random_weights))
    # Read
    config = config_of(path) if isinstance(path, str) else path
    family = adapter_for(config)
    options: dict[str, Any] = {"attn_implementation": tower_attention(family, device, dtype)}
    if quantize:
        options["quantization_config"] = quantization(quantize, family, dtype, with_lora=bool(lora or adapter))
    depth = set_depth(config, family, 0) if cached_vision else 0
    try:
        model = read_model(None if random_weights else path, config, dtype, device, options)
    except ImportError as error:
        raise ValueError(f"a {config.model_type} cannot be read here: {' '.join(str(error).split())}") from None
    if cached_vision:  # what is exported names the whole tower
        set_depth(model.config, family, depth)
    # Freeze, adapt, cast
    scorer = Scorer(model, family, attention=attention)
    scorer.tower_loaded = not cached_vision
    freeze_parts(scorer, freeze, with_lora=bool(lora or adapter))
    if lora or adapter:
        add_lora(scorer, lora, adapter, replacing=replacing)
    set_dtypes(scorer, dtype)
    scorer.train()
    return scorer


def read_model(
    path: Any, config: PretrainedConfig, dtype: torch.dtype, device: torch.device, options: dict[str, Any]
) -> PreTrainedModel:
    """`path` None: the weights are drawn."""
    kinds: Any = model_class(config)
    if path is None:
        with torch.device(device):
            return kinds.from_config(config, dtype=dtype, **options)
    if "quantization_config" in options:
        return from_files(kinds, path, config=config, dtype=dtype, device_map={"": str(device)}, **options)
    # in the dtype it was written in: the masters lose nothing on the way to fp32
    return from_files(kinds, path, config=config, dtype="auto", **options).to(device)


def from_files(kinds: Any, path: str | Path, *, config: PretrainedConfig, **options: Any) -> Any:
    """from_pretrained, for a native folder too: its tensors are named before transformers sees them."""
    stored = tensors_of(Path(path))
    if stored is None:
        with no_bars():
            return kinds.from_pretrained(path, config=config, **options)
    with torch.device("meta"):
        model = kinds.from_config(config)
    state = {name: stored[name] for name in whole(stored, model)}
    made: Any = type(model).from_pretrained(None, config=config, state_dict=state, **options)
    if (Path(path) / "generation_config.json").exists():
        (made[0] if isinstance(made, tuple) else made).generation_config = GenerationConfig.from_pretrained(path)
    return made


def depth_key(adapter: Adapter) -> tuple[str, str]:
    """Where a config says how deep its tower is. Raises for a family whose tower's output cannot be cached."""
    if adapter.tower_depth is None:
        why = adapter.why_no_cache or f"the tower of {adapter.config.model_type} is not known"
        raise ValueError(f"model.cache_vision: nothing can be cached: {why}. Set it to false")
    return adapter.tower_depth


def set_depth(config: PretrainedConfig, adapter: Adapter, depth: int) -> int:
    """Gives the config's tower so many blocks; returns how many it had."""
    section, key = depth_key(adapter)
    held: Any = getattr(config, section)
    if isinstance(held, dict):
        before: int = held[key]
        held[key] = depth
        return before
    before = getattr(held, key)
    setattr(held, key, depth)
    return before


def tower_attention(adapter: Adapter, device: torch.device, dtype: torch.dtype) -> Any:
    """Flash attention needs no host reads where images lie in one row; it is taken where it is installed."""
    if adapter.tower_packs and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return {"vision_config": "flash_attention_2", "text_config": "sdpa"}
    return "sdpa"


def quantization(kind: str, adapter: Adapter, dtype: torch.dtype, *, with_lora: bool) -> BitsAndBytesConfig:
    if kind != "nf4":
        raise ValueError(f'model.quantize: {kind!r} is unknown; choose "nf4" or ""')
    if not with_lora:
        raise ValueError('model.quantize = "nf4" freezes the base: it needs [model.lora]')
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("model.quantize: bitsandbytes is not installed (pip install bitsandbytes)")
    if adapter.outside_decoder is None:
        raise ValueError(f"model.quantize does not know which layers of {adapter.config.model_type} are the decoder's")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", *adapter.outside_decoder],
    )


def freeze_parts(scorer: Scorer, freeze: Sequence[str], *, with_lora: bool) -> None:
    model, adapter = scorer.model, scorer.adapter
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())  # quantised weights are bytes
    vision = scorer.tower_parameters()
    projector = projector_parameters(adapter, model)
    apart = {id(p) for p in (*vision, *projector)}
    language = [p for p in model.parameters() if id(p) not in apart]
    for part, parameters in (("vision", vision), ("projector", projector), ("language", language)):
        if part in freeze or (with_lora and part != "projector"):
            for p in parameters:
                p.requires_grad_(False)


def set_dtypes(scorer: Scorer, dtype: torch.dtype) -> None:
    """fp32 masters for what trains, cast by parallelize() for the forward; the forward's dtype for the rest."""
    keep_float32(dtype)
    scorer.dtype = dtype
    for p in scorer.parameters():
        if not p.is_floating_point():
            continue
        p.data = p.data.to(torch.float32 if p.requires_grad else dtype)
