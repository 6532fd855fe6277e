"""What a step will take, before any weight is read: its time by part (ratios only) and a rank's memory by part.

Nothing here runs the model. Its decoder is traced on the meta device with the sizes of a real pack: every tensor that
autograd would keep, for any family, LoRA or checkpointing, is counted by size alone. The head's and the tower's own
buffers are not seen by that trace and are counted from what their code allocates.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmfast.families.base import FEATURES
from mmfast.models.scorer import Scorer, projector_parameters, vision_trains
from mmfast.ops.head.spec import KEEP_BUDGET, TILE_BUDGET
from mmfast.packing.cost import Cost
from mmfast.packing.pack import Pack

# On a CPU resident memory stays above what is alive: the C library keeps part of what a step allocates and frees, and
# loading brings in libraries and buffers. Fitted to steps of a 64M LLaVA (bench/memory.py), whose runs lie around it.
UNRETURNED_SHARE, UNRETURNED_ALWAYS = 0.4, 150 << 20
NF4_BYTES = 0.5 + 4 / 64  # a weight in 4 bits, and an fp32 scale for each block of 64


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def training_cost(scorer: Scorer, *, checkpointing: bool, cached_vision: bool) -> Cost:
    """Time of each part of a training step, in decoder linear layers per token. Passes over a GEMM: forward 1, backward
    1 for the input and 1 for the weight if it trains, and 1 for recomputation."""
    adapter, model = scorer.adapter, scorer.model
    config = adapter.text_config
    head = model.get_output_embeddings().weight
    layers = [p for layer in adapter.layers(model) for p in layer.parameters()]
    again = 1 if checkpointing else 0
    linear = (2 + again) * count(layers) + count(p for p in layers if p.requires_grad)
    head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * head_dim
    vision = 0.0
    if not cached_vision:
        projector = projector_parameters(adapter, model)
        tower_passes = (3 + again) if vision_trains(scorer) else 1
        vision = tower_passes * count(scorer.tower_parameters()) * adapter.rows_a_slot() + 3 * count(projector)
    return Cost(
        attention=attention * (3.5 + again) / linear,  # backward is 2.5 forwards
        head=head.numel() * (3 if head.requires_grad else 2) / linear,
        vision=vision / linear,
    )


def flops_per_token(scorer: Scorer) -> float:
    """Of a step, per token that runs: forward, gradients of activations, gradients of what trains. Recomputation is
    not counted, nor attention over keys."""
    layers = [p for layer in scorer.adapter.layers(scorer.model) for p in layer.parameters()]
    return 4.0 * count(layers) + 2.0 * count(p for p in layers if p.requires_grad)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank when it holds most."""

    weights: int
    gradients: int
    optimiser: int
    activations: int  # what the decoder keeps for its backward pass, and works in
    head: int
    features: int  # pixels, the tower's working memory, the packed feature rows
    unreturned: int = 0  # CPU: freed, but kept by the allocator

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a run decides its memory beside the model and the pack."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    shards: int = 1  # ranks that hold one copy
    wrapped: bool = False  # under FSDP2: more than one rank, bf16, or offload
    micro_batches: int = 1
    optimiser_bytes: float = 8.0  # a trainable parameter
    master_bytes: int = 4
    offload: bool = False
    cached_vision: bool = False
    quantized: bool = False  # the decoder's frozen linear layers in 4 bits


class Live(TorchDispatchMode):
    """Bytes of the tensors made inside that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.note(t)
        return out

    def note(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone() -> None:
            self.known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)


def estimate(scorer: Scorer, pack: Pack, setting: Setting) -> Memory:
    """`scorer` on the meta device, arranged as it will train (LoRA, checkpointing); `pack` the largest, without images.

    The peak is the greatest of four moments: the tower at work, the end of the forward pass (head included), the
    decoder's backward pass, the optimiser's step.
    """
    # What lies still: weights, gradients, optimiser state, of one rank
    every = list(scorer.parameters())
    trained = [p for p in every if p.requires_grad]
    layers = scorer.adapter.layers(scorer.model)
    packed = count(p for x in layers for p in x.parameters() if p.dim() == 2 and not p.requires_grad)
    packed = packed if setting.quantized else 0
    frozen = count(every) - count(trained) - packed
    each = setting.dtype.itemsize
    weights = count(trained) * setting.master_bytes + frozen * each
    gradients = count(trained) * setting.master_bytes
    optimiser = int(count(trained) * setting.optimiser_bytes)
    root, block = gathered(scorer)
    block -= packed // len(layers)
    if setting.wrapped:
        replicated = 0 if vision_trains(scorer) else count(scorer.tower_parameters())  # in fully_shard's ignored_params
        weights = (weights - replicated * each) // setting.shards
        gradients, optimiser = gradients // setting.shards, optimiser // setting.shards
        if setting.offload:
            weights = gradients = optimiser = 0
        weights += (replicated + count(root) + 2 * block) * each
    weights += int(packed * NF4_BYTES)  # replicated, on the device: fully_shard leaves it alone
    # What a step makes: tower, decoder, head
    vision, rows = vision_bytes(scorer, pack, setting)
    kept, forward, backward = head_bytes(scorer, pack, setting)
    end_of_forward, in_backward, new_gradients = trace_decoder(scorer, pack, setting)
    if setting.device == "cuda":  # attention there reads gathered keys and values
        config = scorer.adapter.text_config
        keys = len(pack.k_index) * 2 * each * key_width(config)
        end_of_forward += keys * (1 if is_checkpointed(scorer) else config.num_hidden_layers)
        in_backward += keys * (2 if is_checkpointed(scorer) else config.num_hidden_layers)
    before = gradients if setting.micro_batches > 1 or setting.wrapped else 0  # already there from earlier packs
    if setting.wrapped:  # the root's gradients wait for the end; a block's leave together, through an fp32 copy
        head_gradient = count(p for p in root if p.requires_grad) * each
        in_backward += block * (each + 4)
    else:
        head = scorer.model.get_output_embeddings().weight
        head_gradient = head.numel() * each if head.requires_grad else 0
    # The fullest of its moments
    moments = [
        (before, 0, 0, vision),
        (before, end_of_forward, kept + forward, rows),
        (before + head_gradient, end_of_forward, kept + backward, rows),
        (before + head_gradient + new_gradients, in_backward - new_gradients, 0, rows),
        (gradients, 0, 0, 0),
    ]
    most = max(moments, key=sum)
    held = Memory(weights, most[0], optimiser, most[1], most[2], most[3])
    if setting.device != "cpu":
        return held
    passing = held.gradients + held.activations + held.head + held.features
    return replace(held, unreturned=int(UNRETURNED_SHARE * passing) + UNRETURNED_ALWAYS)


def gathered(scorer: Scorer) -> tuple[list[Tensor], int]:
    """What FSDP2 holds whole at one time: (the root's own parameters, the size of a decoder block)."""
    layers = scorer.adapter.layers(scorer.model)
    apart = {id(p) for layer in layers for p in layer.parameters()} | {id(p) for p in scorer.tower_parameters()}
    if vision_trains(scorer):
        apart |= {id(p) for block in scorer.adapter.vision_blocks(scorer.model) for p in block.parameters()}
    return [p for p in scorer.parameters() if id(p) not in apart], max(count(x.parameters()) for x in layers)


def key_width(config: Any) -> int:
    keys = config.to_dict()
    heads = keys.get("num_key_value_heads") or config.num_attention_heads
    return heads * (keys.get("head_dim") or config.hidden_size // config.num_attention_heads)


def is_checkpointed(scorer: Scorer) -> bool:
    return any(hasattr(layer, "_checkpoint_wrapped_module") for layer in scorer.adapter.layers(scorer.model))


def trace_decoder(scorer: Scorer, pack: Pack, setting: Setting) -> tuple[int, int, int]:
    """Bytes (kept at the end of the forward pass, most in the backward pass, of new gradients at that point).

    Under FSDP2 a gradient leaves as soon as it is made, so the last is 0, and each further layer adds the same to the
    others: of equal layers a few are traced and the rest counted.
    """
    decoder, layers = scorer.decoder, scorer.adapter.layers(scorer.model)
    few = scorer.adapter.levels + 2
    equal = len({tuple((p.shape, p.requires_grad) for p in layer.parameters()) for layer in layers}) == 1
    if not (setting.wrapped and equal and len(layers) > few + 1):
        return trace_layers(scorer, pack, setting)
    name = next(name for name, child in decoder.named_children() if child is layers)
    traced = []
    for number in (few, few + 1):
        setattr(decoder, name, layers[:number])
        traced.append(trace_layers(scorer, pack, setting))
        setattr(decoder, name, layers)
    kept, most = (b + (len(layers) - few - 1) * (b - a) for a, b in zip(traced[0][:2], traced[1][:2], strict=True))
    return kept, most, 0


def trace_layers(scorer: Scorer, pack: Pack, setting: Setting) -> tuple[int, int, int]:
    """As above, of the layers that the decoder has."""
    count_features = feature_rows(pack)
    width = scorer.adapter.text_config.hidden_size * (1 + scorer.adapter.levels)
    meta = pack.to("meta")
    trains = any(p.requires_grad for p in projector_parameters(scorer.adapter, scorer.model))
    rows = torch.empty(count_features, width, dtype=setting.dtype, device="meta", requires_grad=trains)
    meta.images = {FEATURES: rows} if count_features else {}
    for p in scorer.parameters():
        p.data = p.data.to(setting.dtype)  # as FSDP2 casts its masters
    # Gradients are counted as they come, and leave at once where FSDP2 would take them
    parameters = [p for p in scorer.parameters() if p.requires_grad]
    hooks = []
    new = at_peak = highest = 0

    def leave(p: Tensor) -> None:
        nonlocal new, at_peak, highest
        assert p.grad is not None
        if setting.wrapped:
            p.grad = None
            return
        new += p.grad.untyped_storage().nbytes()
        if tracker.peak > highest:  # the peak moved since the last gradient
            highest, at_peak = tracker.peak, new

    for p in parameters:
        hooks.append(p.register_post_accumulate_grad_hook(leave))
    # One forward and backward pass over tensors without memory
    tracker = Live()
    for t in (*scorer.parameters(), *scorer.buffers(), *meta.tensors()):
        tracker.note(t)  # or a view of a weight would count as new
    before = tracker.live
    try:
        with tracker:
            hidden = scorer.hidden_states(meta, scored_only=True)
            kept = tracker.peak = tracker.live
            hidden.backward(torch.zeros_like(hidden))
    finally:
        for hook in hooks:
            hook.remove()
        for p in parameters:
            p.grad = None
    return kept - before, tracker.peak - before, at_peak


def feature_rows(pack: Pack) -> int:
    return int(pack.features.max()) + 1 if len(pack.features) else 0


def head_bytes(scorer: Scorer, pack: Pack, setting: Setting) -> tuple[int, int, int]:
    """Bytes (kept between the passes, more while going forward, more while going back); see ops/head/tiles.py."""
    weight = scorer.model.get_output_embeddings().weight
    users, (vocab, width), each = len(pack.targets), weight.shape, setting.dtype.itemsize
    tile = max(min(TILE_BUDGET[setting.device], users * vocab * 4), users * 256 * 4)
    stored = tile // 2 if each < 4 else 0
    sums = users * width * 4
    if not weight.requires_grad:
        return 2 * users * width * each, tile + stored + sums, users * width * each
    whole = users * vocab * each
    if whole <= KEEP_BUDGET[setting.device]:
        return whole + 2 * users * width * each, (tile if each < 4 else 0) + sums, users * width * each
    return 2 * users * width * each, tile + stored, tile + stored + sums


def vision_bytes(scorer: Scorer, pack: Pack, setting: Setting) -> tuple[int, int]:
    """Bytes (most while the tower runs, of what stays: pixels and feature rows with what the projector keeps)."""
    adapter, model = scorer.adapter, scorer.model
    slots, each = feature_rows(pack), setting.dtype.itemsize
    width = adapter.text_config.hidden_size * (1 + adapter.levels)
    trains = any(p.requires_grad for p in projector_parameters(adapter, model))
    rows = slots * width * each * (4 if trains else 1)
    if adapter.image_token_id is None or not slots or setting.cached_vision:
        return rows, rows
    vision, patches = adapter.tower_sizes(), int(slots * adapter.rows_a_slot())
    pixels = patches * vision.pixels * 4
    block = patches * (6 * vision.hidden + 2 * vision.inner) * each
    outputs = (vision.depth + 1) * patches * vision.hidden * each  # of all blocks
    stays = pixels + rows
    if vision_trains(scorer):
        stays += outputs + (0 if is_checkpointed(scorer) else vision.depth * block)
    return stays + outputs + block, stays
