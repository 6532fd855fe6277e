"""The fused ops. This package imports nothing of mmfast but its own backends."""

from mmfast.ops.logprob import linear_logprob

__all__ = ["linear_logprob"]
