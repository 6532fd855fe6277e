"""The seam between the head's loop over vocabulary tiles (tiles.py, shared) and the backends
(backends.py), which differ only here.

Letters: U rows (target tokens), V vocabulary, v the columns of one tile, y a row's target, z a mapped logit
(after bias, softcap and temperature), s_v = 1 - tanh^2 the softcap's slope (1 without softcap; the constant
1/temperature is applied by tiles.py).

The target's column stands apart: sums run over the other columns, relative to their running maximum m. Then
    lse_others = m + log s,  logp = -log(1 + e^(lse_others - z_y)),  1 - p_y = sigmoid(lse_others - z_y)
are exact for confident tokens too, where 1 - p_y taken from a rounded p_y would be all error.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmfast.ops.head.gemm import torch_product
from mmfast.ops.head.spec import HeadSpec

# Rows of the running statistics, one [STATS, U] tensor (float32; float64 for float64 inputs). The tile with the first
# column sets them all.
M = 0  # maximum of the other columns seen so far, -inf while there is none
S = 1  # sum of e^(z - m) over the others
ZY = 2  # the target's mapped logit, set by the tile that holds it
SZ = 3  # sum of e^(z - m) (z - m) over the others; kept if spec.entropy
S2 = 4  # sum of e^(2 (z - m)) over the others; kept if spec.squares
TOTAL = 5  # sum of z over all columns, the target's too; kept if spec.total
CENTER = 6  # about the mean logit under the probabilities, fixed by a row's first tile; set if probs_z is asked for
BASE = 7  # what E is taken against: m, or on GPUs a little below (csrc/cuda/logprob.cu); kept, as WRITTEN, with probs
WRITTEN = 8  # sum of e^(z - base) over the others, as far as it shows in E, which is rounded: gradients divide by it
STATS = 9


class Tile(NamedTuple):
    """The columns first ... first + v of the logits, before bias, softcap and temperature."""

    logits: Tensor  # [U,v], fp32 (fp64); scratch: may be overwritten. Folds.low_precision_tiles: also bf16 or fp16
    bias: Tensor | None  # [v] of the accumulator's dtype
    targets: Tensor  # int64 [U], columns of the whole vocabulary
    first: int

    def target_columns(self) -> tuple[Tensor, Tensor]:
        """Returns whether a row's target lies in this tile [U], and its column clamped into the tile [U,1]."""
        width, local = self.logits.shape[1], self.targets - self.first
        return (local >= 0) & (local < width), local.clamp(0, width - 1)[:, None]


class Written(NamedTuple):
    """What a forward fold writes beside the statistics; None: not that."""

    probs: Tensor | None = None  # [U,v], out: E = s_v e^(z - base), target entry 0. May be the tile's logits
    probs_z: Tensor | None = None  # [U,v], out: E (z - center), target entry 0; beside probs. Never the tile's logits
    sums: Tensor | None = None  # [U,*]: what came of earlier tiles' E, brought to the base of this one's
    base: Tensor | None = None  # [U], out: a copy of the base, which later tiles may move


class Folds:
    """A backend supplies these. Every tensor is on its device; tiles may have a row stride (never a column stride)."""

    low_precision_tiles = False  # bf16 and fp16 tiles too (forward: where nothing is written); tiles stay as they are
    # unless they are an output too

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """out = a b or out += a b, accumulated in fp32; out is fp32 or of a's dtype. a, b may be transposed views."""
        torch_product(a, b, out, accumulate)

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, to: Written) -> None:
        """Folds one tile into the statistics. Tiles come in the order of their columns, the first one from column 0."""
        raise NotImplementedError

    def gradient(
        self,
        tile: Tile,
        lse: Tensor,  # [U], over all columns
        a: Tensor,  # [U]
        b: Tensor | None,  # [U]; None: zero
        d: Tensor,  # [U]
        spec: HeadSpec,
        out: Tensor,  # [U,v]; may be the tile's logits
    ) -> None:
        """out = s_v e^(z - lse) (a + b (z - lse)); the target's entry is d (its slope is in d already)."""
        raise NotImplementedError

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        """kept[t, v] *= scale[t, v // width] (most are 1), then kept[t, y_t] = entry[t]. kept is [U,V], contiguous."""
        raise NotImplementedError
