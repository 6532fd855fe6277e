"""LoRA on the head goes to the fused op as its two thin matrices."""

from __future__ import annotations

from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def lora_of(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """(u [T,r], B [V,r]) with u = scale * dropout(hidden) A^T, or None where the head has no active adapter."""
    if not isinstance(head, LoraLinear) or head.disable_adapters:
        return None
    assert len(head.active_adapters) == 1 and not head.merged, head.active_adapters
    name = head.active_adapters[0]
    down = head.lora_A[name](head.lora_dropout[name](hidden.to(head.lora_A[name].weight.dtype)))
    return (head.scaling[name] * down).to(hidden.dtype), head.lora_B[name].weight.to(hidden.dtype)
