"""How good answers are: benchmarks, the scores of the embedded world, and which words became more or less frequent.

from mmfast.evals import score
score("pope", "answers.jsonl", data="DIR").metrics
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfast.evals.base import Result
    from mmfast.evals.scoring import score

__all__ = ["Result", "score"]


def __getattr__(name: str) -> Any:
    """`score` and `Result` where they are asked for: other modules of this room are imported without them."""
    if name == "score":
        from mmfast.evals.scoring import score

        return score
    if name == "Result":
        from mmfast.evals.base import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
