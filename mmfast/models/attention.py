"""Tree attention inside unpatched HF decoders.

The decoder's attention is looked up by name in transformers' AttentionInterface; ours is registered there once, without
a mask function, so the model builds no mask. What a token may see travels as the keyword `tree` from the decoder's
forward down to every attention call; keywords survive the recomputation of activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmfast.ops.attention import tree_attention
from mmfast.packing.pack import Pack

NAME = "mmfast_tree"


@dataclass(eq=False)
class Tree:
    """What the attention (and Qwen3's hooks) must know beside their tensors."""

    pack: Pack
    backend: str | None = None  # of tree_attention; None: its own choice
    addends: list[Tensor] = field(default_factory=list)  # [1,T,D] each, added after decoder layer 0, 1, ...
    kept: dict[int, tuple[Tensor, Tensor]] | None = None  # to be filled: keys and values [1,Hkv,T,Dh] of each layer
    narrowed: int = -1  # the layer that makes queries for the rows `read` only (mmfast/models/last_layer.py)
    read: Tensor | None = None  # int64, distinct: pack.tails, or what an engine reads


class CannotShare(ValueError):
    """The model needs something that attention over a prefix tree does not compute; the message says what."""


def attend(
    module: nn.Module,
    query: Tensor,  # [1,Hq,T,Dh]
    key: Tensor,  # [1,Hkv,T,Dh]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    # What a tree's attention does not compute is refused
    if tree is None:
        raise ValueError(
            "tree attention was called without a tree: score packs through mmfast.models.Scorer, answer through "
            "mmfast.engines.local.Local(path, scorer=scorer), and put any plain forward of scorer.model into "
            "`with mmfast.models.attention.attention(scorer.decoder.config, scorer.own_attention):`"
        )
    if softcap is not None:
        raise CannotShare("its attention caps its scores (softcap)")
    if s_aux is not None:
        raise CannotShare("its attention has sink logits")
    if dropout:
        raise CannotShare(f"its attention drops out ({dropout}); set attention_dropout to 0 in its config")
    if tree.kept is not None:
        tree.kept[module.layer_idx] = key, value  # type: ignore[index]
    pack, q, q_offsets = tree.pack, query[0].transpose(0, 1), tree.pack.q_offsets
    # Tails keep the runs' alignment; other rows leave queries of zero in their places
    tails = tree.read if tree.narrowed == module.layer_idx and tree.read is pack.tails else None
    if tails is not None:
        assert pack.tail_offsets is not None
        q, q_offsets = q.index_select(0, tails), pack.tail_offsets
    out = tree_attention(
        q,
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        q_offsets,
        pack.k_index,
        pack.k_offsets,
        max_q=pack.max_q,
        max_k=pack.max_k,
        scale=scaling,
        window=sliding_window,
        k_copies=pack.k_copies,
        k_copy_offsets=pack.k_copy_offsets,
        backend=tree.backend,
    )
    if tails is not None:
        out = out.new_zeros(query.shape[2], *out.shape[1:]).index_copy_(0, tails, out)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, attend)

PROBE = "mmfast_probe"
found_masks: list[str] = []  # what the probe has seen that is neither causal nor a sliding window


def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **keywords: Any) -> Any:
    """transformers' sdpa, looking at the mask that the model made. Rounding cannot hide a wrong mask from it."""
    if mask is not None:
        keys, window = mask.shape[-1], keywords.get("sliding_window")
        allowed = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril(keys - mask.shape[-2])
        if window:
            allowed &= ~allowed.tril(keys - mask.shape[-2] - window)
        seen = mask if mask.dtype == torch.bool else mask == 0
        if bool((seen != allowed).any()):
            found_masks.append(
                "its attention mask is not causal: it lets some tokens (of an image, say) see later ones"
            )
    return sdpa_attention_forward(module, query, key, value, mask, **keywords)


AttentionInterface.register(PROBE, probe)
AttentionMaskInterface.register(PROBE, sdpa_mask)


def own_attention(config: PretrainedConfig) -> str:
    """What the decoder runs without us. transformers' sdpa raises on a softcap instead of stepping aside."""
    if config.to_dict().get("attn_logit_softcapping") is not None:
        return "eager"
    return "sdpa" if config._attn_implementation == NAME else config._attn_implementation


@contextmanager
def attention(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Another attention for the time being: generation, evaluation, the proof."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def add_deepstack(layer_number: int) -> Any:
    """A forward hook for decoder layer `layer_number`: adds the tree's dense addend to the layer's output."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        tree = kwargs.get("tree")
        if tree is None or layer_number >= len(tree.addends):
            return None
        addend = tree.addends[layer_number]
        return output + addend if torch.is_tensor(output) else (output[0] + addend, *output[1:])

    return hook
