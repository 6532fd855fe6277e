"""The fused ops. This package imports nothing of mmfast but its own backends."""

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
