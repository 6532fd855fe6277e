"""What a run left in its folder, for comparing runs."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor

from mmfast.job.rows import read
from mmfast.training.checkpoint import complete

TIMES = ("tokens_per_s", "pairs_per_s", "memory_gib", "data_wait", "mfu")


def curve(folder: Path, *names: str) -> list[list[float]]:
    """The named values of each row of the metrics that has the first of them."""
    return [[row[name] for name in names] for row in read(folder / "metrics.jsonl") if names[0] in row]


def untimed(folder: Path) -> list[dict]:
    """The rows of the metrics without what two equal runs do not share."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, Tensor]:
    """All trained weights of the newest checkpoint of `folder`/run, gathered."""
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict = {}
    path = complete(folder / "run" / "checkpoints")[-1]
    _load_state_dict(state, dcp.FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state["weights"]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
