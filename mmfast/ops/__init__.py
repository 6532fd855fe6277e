"""The fused ops. This package imports nothing of mmfast but its own backends, and an op's module when it is asked for
(PEP 562): who reads kinds.py alone, as the config does, does not wait for torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfast.ops.attention import tree_attention
    from mmfast.ops.linear_preference import linear_preference_loss
    from mmfast.ops.logprob import linear_logprob
    from mmfast.ops.preference import PreferenceOutput, preference_loss
    from mmfast.ops.segments import changed_segments
    from mmfast.ops.selective import selective_logprob
    from mmfast.ops.splice import splice_embeddings

__all__ = [
    "PreferenceOutput", "changed_segments", "linear_logprob", "linear_preference_loss", "preference_loss",
    "selective_logprob", "splice_embeddings", "tree_attention",
]  # fmt: skip
_HOMES = {
    "PreferenceOutput": "preference", "changed_segments": "segments", "linear_logprob": "logprob",
    "linear_preference_loss": "linear_preference", "preference_loss": "preference",
    "selective_logprob": "selective", "splice_embeddings": "splice", "tree_attention": "attention",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
