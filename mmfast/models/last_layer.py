"""The last decoder layer makes queries, its output projection and its MLP only for rows whose hidden states are read.

Keys and values are needed of every token; what else the last layer makes is read by the head alone, at the rows that
predict, or by an engine, at its labels and the last tokens of prompts. So hooks on the unpatched layer let those three
modules see the rows Tree.read only, and put zeros elsewhere: an engine's own rows, or Pack.tails (each run's rows from
its first predicting one on), for which attention, too, makes no other. Which rows, travels with the tree: as a
keyword it survives recomputation, and two packs in flight do not meet. The rows that are read are what they were;
gradients too, but for the order in which a weight's sums run.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import PreTrainedModel

from mmfast.families.base import Adapter
from mmfast.models.attention import Tree

WHOLE = -1  # no layer is narrowed
GATED = {"gate_proj", "up_proj", "down_proj"}
OURS = ("mmfast.", "torch.distributed.")  # modules whose hooks read no hidden states


class LastLayer:
    """Hooks on the last layer, which act for a tree that names it in `narrowed`."""

    def __init__(self, adapter: Adapter, model: PreTrainedModel) -> None:
        self.adapter, self.model = adapter, model
        self.trusted = adapter.proven  # by tests; of other models by their proof
        self.tree: Tree | None = None  # of the call that runs
        self.parts: list[nn.Module] = []  # that have our hooks: the layer, then the three inside
        self.hooks: list[Any] = []

    def layer(self) -> Any:
        """Without a wrapper that recomputes it."""
        layer = self.adapter.layers(self.model)[-1]
        return layer._checkpoint_wrapped_module if isinstance(layer, CheckpointWrapper) else layer

    def number(self) -> int:
        """Of the layer that may be narrowed; WHOLE where it does not look so, or where somebody reads what it makes."""
        if self.why_whole():
            return WHOLE
        layer = self.layer()
        parts = [layer, layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp]
        if any(a is not b for a, b in zip(parts, self.parts, strict=bool(self.parts))) or not self.parts:
            self.attach(parts)  # anew where LoRA has taken a projection's place
        decoder = self.adapter.decoder(self.model)
        watched = [decoder, layer.self_attn, *parts, *(m for n, m in decoder.named_children() if n == "norm")]
        return WHOLE if any(_foreign(module) for module in watched) else layer.self_attn.layer_idx

    def why_whole(self) -> str:
        """Returns "" where the layer looks as the hooks expect it; else what is in the way."""
        layers, parts = self.adapter.layers(self.model), dict(self.layer().named_children())
        if not self.trusted:
            return "no test and no proof holds this model exact"
        if self.adapter.levels >= len(layers):
            return "deepstack adds to its output"
        others = [name for name in parts if name not in ("self_attn", "mlp") and not name.endswith("norm")]
        if others or not {"self_attn", "mlp"} <= set(parts):
            return f"it is made of {', '.join(parts) or 'one piece'}"
        projections = {name for name, _ in parts["self_attn"].named_children()}
        if not {"q_proj", "k_proj", "v_proj", "o_proj"} <= projections:
            return "its queries, keys and values are not projected apart"
        if getattr(parts["self_attn"], "layer_idx", None) != len(layers) - 1:
            return "its attention does not know its number"
        inner = {name for name, _ in parts["mlp"].named_children()} - {"act_fn"}
        return "" if inner == GATED else f"its MLP is made of {', '.join(sorted(inner)) or 'one piece'}"

    def attach(self, parts: list[Any]) -> None:
        for hook in self.hooks:
            hook.remove()
        self.parts = parts
        layer, *inside = parts
        self.hooks = [
            layer.register_forward_pre_hook(self._begin, with_kwargs=True),
            layer.register_forward_hook(self._end, always_call=True),
            *(part.register_forward_pre_hook(self._take) for part in inside),
            *(part.register_forward_hook(self._put) for part in inside),
        ]

    def _begin(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tree = kwargs.get("tree")  # or what an engine decodes with
        self.tree = tree if isinstance(tree, Tree) and tree.narrowed == layer.self_attn.layer_idx else None

    def _end(self, *_: Any) -> None:
        self.tree = None

    def _take(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.tree is None or self.tree.read is None:
            return None
        return args[0].index_select(1, self.tree.read), *args[1:]

    def _put(self, _: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.tree is None or self.tree.read is None:
            return None
        whole = output.new_zeros(1, len(self.tree.pack.tokens), output.shape[-1])
        return whole.index_copy_(1, self.tree.read, output)


def _foreign(module: nn.Module) -> bool:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not (getattr(hook, "__module__", None) or "").startswith(OURS) for hook in hooks)
