"""What a tensor is called: in the module, and in the files of a model directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mmfast.directory import weight_files
from mmfast.directory.native import Tensors, tensors_of
from mmfast.families import config_of, model_class


def plain_name(name: str) -> str:
    """A parameter's name without what checkpointing and compilation wrap around blocks."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def disk_names(base: Path) -> dict[str, str]:
    """Key in a model directory's files -> parameter name in the module. The tensors of a native directory are asked for
    by their parameters' names."""
    model = empty_model(base)
    if (stored := tensors_of(base)) is not None:
        return {name: name for name in whole(stored, model)}
    keys: list[str] = []
    for file in weight_files(base):
        with safe_open(file, "pt") as source:
            keys += source.keys()
    names = module_names(model, keys)
    if missing := unnamed(model, names):
        raise ValueError(f"{base}: cannot tell which stored tensor is {missing[0]} ({len(missing)} such)")
    return names


def module_names(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Stored key -> parameter name, by transformers' own conversion mapping; without the keys that have no place."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    inside = model.state_dict()
    names = {}
    for key in keys:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, inside)
        if converted is None and name in inside:
            names[key] = name
    return names


def unnamed(model: PreTrainedModel, names: dict[str, str]) -> list[str]:
    """The parameters that no stored key has the name of."""
    found = set(names.values())
    return [name for name, _ in model.named_parameters() if name not in found]


def whole(stored: Tensors, model: PreTrainedModel) -> list[str]:
    """The names of the tensors that are the model's. Raises where one is missing, or is another's."""
    inside = {name: p.shape for name, p in model.named_parameters()}
    for name, shape in inside.items():
        if name not in stored:
            raise ValueError(f"{stored.name} is not whole: none of its files holds {name}")
        if stored.shape(name) != shape:
            has = "x".join(map(str, stored.shape(name)))
            raise ValueError(
                f"{stored.name}: {name} is {has} in its files, and its config.json says "
                f"{'x'.join(map(str, shape))}: is one of them another model's?"
            )
    return [name for name in stored if name in inside]


def empty_model(base: Path) -> PreTrainedModel:
    """The model of a directory without its weights."""
    config = config_of(base)
    kind: Any = model_class(config)
    with torch.device("meta"):
        return kind.from_config(config)
