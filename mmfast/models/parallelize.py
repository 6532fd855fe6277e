"""How a Scorer is spread and saved for, in one place and one order: LoRA (done at loading) -> activation checkpointing
-> torch.compile -> fully_shard.

"full" is a mesh (1, W), "hybrid" (R, S), "none" (W, 1): FSDP2's hybrid arrangement each time, replicated over the first
axis and sharded over the second. Gradients are summed, never averaged: the losses are divided by a global count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from mmfast.config.schema import Parallel
from mmfast.models.scorer import Scorer, vision_trains


def mesh_shape(parallel: Parallel, world: int, local: int) -> tuple[int, int]:
    """(replicas, shards)"""
    if parallel.shard_size and parallel.shard != "hybrid":
        raise ValueError(f'parallel.shard_size is for shard = "hybrid"; shard is {parallel.shard!r}')
    if parallel.shard == "none":
        return world, 1
    if parallel.shard == "full":
        return 1, world
    size = parallel.shard_size or local
    if world % size:
        raise ValueError(f"parallel.shard_size = {size} does not divide the {world} ranks")
    return world // size, size


def make_mesh(parallel: Parallel, device_type: str, local: int) -> DeviceMesh:
    shape = mesh_shape(parallel, dist.get_world_size(), local)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def parallelize(scorer: Scorer, parallel: Parallel, mesh: DeviceMesh | None, dtype: torch.dtype) -> Scorer:
    """mesh None: one process without process group. It trains in fp32 only: the masters are cast by fully_shard."""
    if parallel.activation_checkpointing:
        checkpoint_blocks(scorer)
    if parallel.compile:
        compile_blocks(scorer)
    if mesh is not None:
        shard_scorer(scorer, mesh, dtype, offload=parallel.offload)
    elif dtype != torch.float32 and any(p.requires_grad for p in scorer.parameters()):
        raise ValueError(f"training in {dtype} needs a process group, of one rank too: launch with torchrun")
    elif parallel.offload:
        raise ValueError("parallel.offload needs a process group: launch with torchrun")
    return scorer


def blocks(scorer: Scorer) -> list[nn.Module]:
    """The repeated blocks that activations flow back through: the decoder's, and a trainable tower's."""
    repeated = list(scorer.adapter.layers(scorer.model))
    if vision_trains(scorer) and scorer.adapter.has_dummy:
        repeated += scorer.adapter.vision_blocks(scorer.model)
    return repeated


def checkpoint_blocks(scorer: Scorer) -> None:
    """Keep each block's input only. The wrapper takes the block's place in its list, under the block's own names."""
    inside = {id(block) for block in blocks(scorer)}
    for module in list(scorer.model.modules()):
        if isinstance(module, nn.ModuleList):
            for i, block in enumerate(module):
                if id(block) in inside:
                    module[i] = checkpoint_wrapper(block)
    scorer.register_deepstack()


def compile_blocks(scorer: Scorer) -> None:
    """Each decoder block's forward on its own, for any sizes: packs differ from step to step. The block's hooks and the
    checkpointing around it stay outside."""
    for block in scorer.adapter.layers(scorer.model):
        inner = block._checkpoint_wrapped_module if isinstance(block, CheckpointWrapper) else block
        inner.forward = torch.compile(inner.forward, dynamic=True)


def shard_scorer(scorer: Scorer, mesh: DeviceMesh, dtype: torch.dtype, *, offload: bool) -> None:
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False, output_dtype=None
    )
    ignored = {p for p in scorer.parameters() if not p.is_floating_point()}  # a quantised base, which is small
    if not vision_trains(scorer):
        ignored.update(scorer.tower_parameters())
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": ignored}
    options["offload_policy"] = CPUOffloadPolicy() if offload else OffloadPolicy()
    for block in blocks(scorer):
        fully_shard(block, **options)
    fully_shard(scorer, **options)
    register_fsdp_forward_method(scorer, "inside")
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


@contextmanager
def evaluating(scorer: Scorer) -> Iterator[None]:
    """Forward passes without backward: eval mode, and afterwards every FSDP2 module sharded again. Its root stays
    gathered after a forward, and only backward ends that: named_parameters() would give the gathered copies, and a
    next forward would read them, stale, after the shards have changed."""
    training = scorer.training
    scorer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        scorer.train(training)
        for module in scorer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
