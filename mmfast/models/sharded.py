"""Loading without a whole model on any rank: everything is arranged on the meta device, each rank allocates its shards
and reads just those slices out of the safetensors files.

The order is fixed: LoRA and the rest on meta -> checkpointing and sharding -> to_empty -> DCP over the files -> what no
file holds: non-persistent buffers (transformers rebuilds them) and fresh LoRA matrices.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from mmfast.directory.native import tensors_of
from mmfast.models.loading import load, tower_attention
from mmfast.models.names import disk_names, plain_name
from mmfast.models.parallelize import Parallel, parallelize
from mmfast.models.scorer import Scorer


def load_sharded(
    path: Path, parallel: Parallel, mesh: DeviceMesh, *, device: torch.device, dtype: str, seed: int, **options: Any
) -> Scorer:
    """As load() and parallelize(), for a listed family, unquantised, without cached features or an initial adapter."""
    scorer = load(str(path), dtype=dtype, device="meta", random_weights=True, **options)
    attention = tower_attention(scorer.adapter, device, getattr(torch, dtype))
    if isinstance(attention, dict):
        scorer.model.set_attn_implementation({"vision_config": attention["vision_config"]})
    parallelize(scorer, parallel, mesh, getattr(torch, dtype))
    scorer.to_empty(device="cpu" if parallel.offload else device)
    read_weights(scorer, path)
    rebuild_buffers(scorer.model)
    draw_lora(scorer, seed)
    return scorer


@torch.no_grad()
def read_weights(scorer: Scorer, path: Path) -> None:
    """Each rank reads its slices; values are cast to what they are kept in."""
    inside: dict[str, Tensor] = {
        plain_name(name).replace(".base_layer.", "."): p for name, p in scorer.model.named_parameters()
    }
    buffers = {plain_name(name): b for name, b in scorer.model.named_buffers()}
    inside |= buffers
    if (stored := tensors_of(path)) is not None:
        for name in disk_names(path):
            put(inside[name], stored[name])
        return
    names = disk_names(path)
    state = {key: inside[name].detach() for key, name in names.items() if name in inside}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(path)))
    for name in buffers.keys() & set(names.values()):
        buffers[name]._is_hf_initialized = True  # type: ignore[attr-defined]  # rebuild_buffers() leaves it


def rebuild_buffers(model: PreTrainedModel) -> None:
    """Rotary frequencies and position ids, which no file holds. Parameters are marked as made, so they stay."""
    for p in model.parameters():
        p._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()


@torch.no_grad()
def draw_lora(scorer: Scorer, seed: int) -> None:
    """Fresh LoRA matrices: A uniform as in peft, B zero; the same for any sharding and world size."""
    named = [(name, p) for name, p in scorer.model.named_parameters() if ".lora_" in name]
    for number, (name, p) in enumerate(named):
        if ".lora_B." in name:
            p.zero_()
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        bound = 1 / math.sqrt(p.shape[1])  # kaiming_uniform with a = sqrt(5)
        put(p, torch.empty(p.shape).uniform_(-bound, bound, generator=generator))


def put(p: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same on every rank, into a parameter or its shard."""
    if isinstance(p, DTensor):
        p.copy_(distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None))
    else:
        p.copy_(value)
