"""Scorer: pack -> one fp32 log-prob a distinct (row, target). Vision, splice, decoder and head happen inside it, so
that under FSDP2 it is the root and the ops see plain gathered tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmfast.families.base import Adapter
from mmfast.models.attention import NAME, Tree, add_deepstack, own_attention
from mmfast.models.last_layer import WHOLE, LastLayer
from mmfast.models.unshared import likeliest_other, score_unshared
from mmfast.ops import linear_logprob
from mmfast.ops.attention import BACKENDS
from mmfast.ops.head.spec import TILE_BUDGET, budget_for
from mmfast.ops.splice import splice_embeddings
from mmfast.packing.pack import Pack

T = TypeVar("T")
IDLE = 8  # tokens run for an empty pack: the same collectives and shapes of rank 2 and more as any other pack


class Scorer(nn.Module):
    """`scorer(pack)` -> logp[U], and behind them those of pack.runner_up. Where its proof refused sharing,
    `why_unshared` says why, and paths run one by one."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, *, attention: str = "auto"):
        super().__init__()
        if attention not in ("auto", *BACKENDS):
            raise ValueError(f"model.attention: {attention!r} is unknown; choose auto or one of {', '.join(BACKENDS)}")
        self.backend = None if attention == "auto" else attention
        self.model = model
        self.adapter = adapter
        self.why_unshared = ""
        self.tower_loaded = True
        self.dtype: torch.dtype = next(self.decoder.parameters()).dtype  # of the forward pass
        self.peft: list[Any] = []  # the PeftModel around `model` where there is LoRA; in a list, it is no submodule
        self.deepstack: list[Any] = []
        self.last_layer = LastLayer(adapter, model)
        self.own_attention = own_attention(self.decoder.config)
        self.decoder.config._attn_implementation = NAME  # from now on it attends over trees, and raises without one
        self.register_deepstack()

    @property
    def shared(self) -> bool:
        return not self.why_unshared

    def run_unshared(self, why: str) -> None:
        """From now on every path of a pack runs alone, through the model's own attention."""
        self.why_unshared = why
        self.decoder.config._attn_implementation = self.own_attention

    def register_deepstack(self) -> None:
        """Hooks on the first decoder layers, anew where a checkpointing wrapper has taken a layer's place: inside the
        wrapper the addition would be recomputed too."""
        for hook in self.deepstack:
            hook.remove()
        layers = self.adapter.layers(self.model)
        self.deepstack = [
            layers[number].register_forward_hook(add_deepstack(number), with_kwargs=True)
            for number in range(self.adapter.levels)
        ]

    @property
    def decoder(self) -> PreTrainedModel:
        return self.adapter.decoder(self.model)

    @property
    def embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    def forward(self, pack: Pack, return_entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not self.shared:
            return score_unshared(self.model, self.adapter, self.embed(pack)[0], pack, return_entropy)
        return self.logprobs(self.hidden_states(pack, scored_only=True), pack, return_entropy)

    def inside(self, work: Callable[[], T]) -> T:
        """Does `work` where all parameters are whole: under FSDP2 this is a forward of the root, as `forward` is."""
        return work()

    def logprobs(self, hidden: Tensor, pack: Pack, return_entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Of a pack's targets, from its hidden states."""
        head = self.model.get_output_embeddings()
        rows, targets, lora = pack.rows, pack.targets, lora_of(head, hidden)
        if pack.runner_up is not None:
            others = rows[pack.runner_up]
            found = runner_up(hidden[others], head, lora and (lora[0][others], lora[1]), targets[pack.runner_up])
            rows, targets = torch.cat([rows, others]), torch.cat([targets, found])
        return linear_logprob(
            hidden,
            head.weight,  # of a LoRA layer: the frozen base's
            targets,
            rows=rows,
            bias=head.bias,
            lora=lora,
            softcap=self.adapter.softcap(),
            return_entropy=return_entropy,
        )

    def hidden_states(
        self,
        pack: Pack,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        rows: Tensor | None = None,
        *,
        scored_only: bool = False,
    ) -> Tensor:
        """[T, D], after the decoder's last norm. `kept` is filled with the keys and values of each layer. `rows`: those
        that are read, without gradients; the others are then of no use. scored_only: pack.rows are right, and others
        need not be."""
        if not len(pack.tokens):
            pack, rows = idle(pack), None
        inputs, addends = self.embed(pack)
        positions = pack.positions[None] if pack.positions.dim() == 1 else pack.positions[:, None]
        read = pack.tails if rows is None and scored_only else rows
        tree = Tree(pack, self.backend, addends, kept, WHOLE if read is None else self.last_layer.number(), read)
        output = self.decoder(inputs_embeds=inputs[None], position_ids=positions, use_cache=False, tree=tree)
        return output.last_hidden_state[0]

    def embed(self, pack: Pack) -> tuple[Tensor, list[Tensor]]:
        """inputs_embeds [T,D] with the image rows in their slots, and deepstack's dense addends [1,T,D]."""
        width = self.adapter.text_config.hidden_size
        rows = self.image_rows(pack)
        if type(self.embeddings) is nn.Embedding:
            table = self.embeddings.weight
            features = table.new_zeros(0, width) if rows is None else rows[:, :width].to(table.dtype)
            inputs = splice_embeddings(pack.tokens, table, features, pack.features)
            padding = self.embeddings.padding_idx
            if padding is not None and table.requires_grad:  # nn.Embedding gives its padding word no gradient
                inputs = torch.where((pack.tokens == padding)[:, None], inputs.detach(), inputs)
        else:  # scaled embeddings (Gemma) and the like
            inputs = self.embeddings(pack.tokens)
            if rows is not None:
                inputs = torch.where(
                    pack.features[:, None] < 0, inputs, scatter(rows[:, :width], pack).to(inputs.dtype)
                )
        if rows is None:
            return inputs + self.idle_vision().to(inputs.dtype), []
        addends = [scatter(level, pack)[None].to(inputs.dtype) for level in rows.split(width, dim=1)[1:]]
        return inputs, addends

    def tower_parameters(self) -> list[nn.Parameter]:
        """The vision tower's, without the mergers that lie inside it."""
        mergers = {id(p) for p in projector_parameters(self.adapter, self.model)}
        return [p for part in self.adapter.vision(self.model) for p in part.parameters() if id(p) not in mergers]

    def image_rows(self, pack: Pack) -> Tensor | None:
        if not pack.images:
            return None
        if not self.tower_loaded and "pixel_values" in pack.images:
            raise ValueError("this pack brings pixels, but the tower is not loaded: read images from the vision cache")
        return self.adapter.encode(self.model, self.adapter.prepare(pack.images))

    def idle_vision(self) -> Tensor:
        """Zero, but with a gradient (of zero) for every trainable vision parameter: a pack without images runs the same
        collectives as any other, and its optimiser step is the same."""
        model, adapter = self.model, self.adapter
        device = self.embeddings.weight.device
        # these lie in the root's own group, so they are plain gathered tensors here
        idle = [p for p in projector_parameters(adapter, model) if p.requires_grad]
        tower = [p for p in self.tower_parameters() if p.requires_grad]
        if vision_trains(self) and adapter.has_dummy:  # in blocks that are sharded one by one: they must run
            images = {name: t.to(device) for name, t in adapter.dummy_images().items()}
            return 0 * adapter.encode(model, images).sum()
        total = torch.zeros((), device=device)
        for p in (*idle, *tower):
            total = total + 0 * p.sum()
        return total

    @contextmanager
    def in_one_dtype(self) -> Iterator[None]:
        """Masters in the forward's dtype for the time being: to run before parallelize() has seen to that."""
        masters = {p: p.data for p in self.parameters() if p.dtype == torch.float32 != self.dtype}
        for p, data in masters.items():
            p.data = data.to(self.dtype)
        try:
            yield
        finally:
            for p, data in masters.items():
                p.data = data


def lora_of(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """LoRA on the head goes to the fused op as two thin matrices: (u [T,r], B [V,r]) with u = scale * dropout(hidden)
    A^T. None where the head has no active adapter."""
    if not isinstance(head, LoraLinear) or head.disable_adapters:
        return None
    assert len(head.active_adapters) == 1 and not head.merged, head.active_adapters
    name = head.active_adapters[0]
    a: nn.Linear = head.lora_A[name]  # type: ignore[assignment]
    b: nn.Linear = head.lora_B[name]  # type: ignore[assignment]
    down = a(head.lora_dropout[name](hidden.to(a.weight.dtype)))
    return (head.scaling[name] * down).to(hidden.dtype), b.weight.to(hidden.dtype)


@torch.no_grad()
def runner_up(hidden: Tensor, head: Any, lora: tuple[Tensor, Tensor] | None, targets: Tensor) -> Tensor:
    """The likeliest token of each row [W] of `hidden` but its target. One tile of logits is held at a time."""
    vocabulary, found = head.weight.shape[0], [targets[:0]]
    height = max(1, budget_for(hidden.device, TILE_BUDGET) // (4 * vocabulary))
    for block in (slice(start, start + height) for start in range(0, len(targets), height)):
        logits = nn.functional.linear(hidden[block], head.weight, head.bias)
        if lora is not None:
            logits = logits + lora[0][block] @ lora[1].T
        found.append(likeliest_other(logits, targets[block]))
    return torch.cat(found)


def scatter(rows: Tensor, pack: Pack) -> Tensor:
    """[F,D] -> [T,D]: zeros where there is no image slot."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[pack.features]  # -1 is the row of zeros


def projector_parameters(adapter: Adapter, model: PreTrainedModel) -> list[nn.Parameter]:
    parts = adapter.projector(model)
    return [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]


def vision_trains(scorer: Scorer) -> bool:
    """Does a gradient run through the tower's blocks? Muffin's hold parts of its projector."""
    blocks = scorer.adapter.vision_blocks(scorer.model)
    inside = (p for block in blocks for p in block.parameters())
    return any(p.requires_grad for p in (*scorer.tower_parameters(), *inside))


def idle(pack: Pack) -> Pack:
    """An empty pack, given one run of a few tokens that nothing reads."""
    device = pack.tokens.device
    count = torch.arange(IDLE, device=device)  # cloned below: torch.compile guards on which tensors are one
    bounds = torch.tensor([0, IDLE], dtype=torch.int32, device=device)
    return replace(
        pack,
        tokens=torch.zeros_like(count),
        features=torch.full_like(count, -1),
        positions=count if pack.positions.dim() == 1 else count.expand(3, -1),
        q_offsets=bounds,
        k_index=count,
        k_offsets=bounds.clone(),
        k_copies=count.clone(),
        k_copy_offsets=torch.arange(IDLE + 1, device=device),
        max_q=IDLE,
        max_k=IDLE,
        tails=None,
        tail_offsets=None,
    )
