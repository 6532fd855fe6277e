"""What one call of the head asks for, and the way of computing that follows from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MIB = 1 << 20
# Narrower tiles make slower GEMMs; on CPU 64 MiB cost memory. On an H100 at U = 2048 the product that adds E W to G
# runs at 584 TFLOP/s with 8,192 columns, at 691 with 32,768 (256 MiB), no faster with more; the other at 665 to 711.
TILE_BUDGET = {"cpu": 24 * MIB, "cuda": 256 * MIB}
KEEP_BUDGET = {"cpu": 256 * MIB, "cuda": 1024 * MIB}


class HeadSpec(NamedTuple):
    """A call's options: everything that is not a tensor. A custom op takes it as one list of numbers."""

    softcap: float = 0.0  # 0: none
    temperature: float = 1.0
    entropy: bool = False
    squares: bool = False
    total: bool = False
    entropy_grad: bool = False
    input_grad: bool = False  # x or u needs a gradient
    head_grad: bool = False  # so does the weight, B or the bias
    tile_budget: int = 0  # bytes of one fp32 tile of logits
    keep_budget: int = 0  # bytes of probabilities that may be kept for the backward pass

    def flat(self) -> list[float]:
        return [float(value) for value in self]

    @staticmethod
    def of(flat: list[float]) -> HeadSpec:
        return HeadSpec._make((*flat[:2], *map(bool, flat[2:8]), *map(int, flat[8:])))

    def path(self, x: Tensor, vocab: int) -> str:
        """Names the row of the table in tiles.py that a call over the rows `x` takes."""
        if not self.head_grad:
            return "direct" if self.input_grad else "stats"
        size = x.shape[0] * vocab * compute_dtype(x).itemsize
        return "recompute" if self.entropy_grad or size > self.keep_budget else "kept"

    def tile_width(self, rows: int, vocab: int, budgets: int = 1) -> int:
        """A tile of `budgets` budgets has so many columns: at least 256, a multiple of 128 (GEMMs work in blocks of 128
        and 256), all about equally wide."""
        widest = max(budgets * self.tile_budget // (4 * max(rows, 1)), 256)
        tiles = -(-vocab // (widest - widest % 128))
        return -(-vocab // (128 * tiles)) * 128


def padded(columns: int) -> int:
    """Rows of so many numbers start 64 numbers apart, so that each row can be moved by vectors of 16 bytes (and cuBLAS
    has its fast kernels) whatever the vocabulary."""
    return -(-columns // 64) * 64


def compute_dtype(x: Tensor) -> torch.dtype:
    """Tiles of probabilities are stored in this dtype. CPUs multiply fp16 no faster than fp32."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def budget_for(device: torch.device, budgets: dict[str, int], asked: int | None = None) -> int:
    return budgets.get(device.type, budgets["cuda"]) if asked is None else asked
