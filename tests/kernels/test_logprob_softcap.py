"""The softcap of the CUDA folds, tanh by the hardware's exponential and reciprocal: its error at worst and in use.

The exponential is taken to be off by two units in the last place and the reciprocal by one, relative 2^-22 and 2^-23;
every other step rounds once.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfast.ops.head.folds import STATS, ZY, M, Tile, Written
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.spec import HeadSpec
from tests.kernels.emulation import emulated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAP, BOUND = 30.0, 4e-7  # of tanh: 1.2e-5 of a logit under a cap of 30, where a log-prob may be 1e-4 off
EX2, RCP = 2.0**-22, 2.0**-23
single = np.float32


def capped(x: np.ndarray, ex2: float, rcp: float) -> tuple[np.ndarray, np.ndarray]:
    """tanh x and its slope as csrc/cuda/logprob.cu makes them, with such relative errors of the two functions."""
    with np.errstate(over="ignore"):
        e = single(np.exp2(single(np.abs(x) * single(2 * np.log2(np.e))).astype(np.float64)) * (1 + ex2))
        r = single(1 / single(single(1) + e).astype(np.float64) * (1 + rcp))
    tanh = np.copysign(single(1 - 2 * r.astype(np.float64)), x)
    return tanh, single(4 * single(r - r.astype(np.float64) ** 2))


def test_the_error_is_bounded_whatever_the_hardware_rounds() -> None:
    near = np.geomspace(1e-8, 50, 200_000)
    x = single(np.concatenate([[0.0], near, -near, np.linspace(-12, 12, 400_001)]))
    exact = np.tanh(x.astype(np.float64))
    slope = 1 / np.cosh(x.astype(np.float64)) ** 2
    worst = 0.0
    for ex2 in (-EX2, 0, EX2):
        for rcp in (-RCP, 0, RCP):
            found, bend = capped(x, ex2, rcp)
            worst = max(worst, np.abs(found - exact).max())
            assert np.abs(bend - slope).max() < 5e-7
    assert BOUND / 2 < worst < BOUND
    assert [float(t) for t in capped(single([np.inf, -np.inf]), 0, 0)[0]] == [1, -1]


@pytest.mark.parametrize("column", [0, 300], ids=["looked at by column", "by vector"])
def test_the_kernel_keeps_to_the_bound(column: int) -> None:
    """A row's one high logit: the target, or in a chunk without one, where it is the maximum."""
    module = None if DEVICE == "cuda" else emulated()
    wanted = torch.cat([torch.linspace(-80, 80, 95), torch.tensor([1e-6, -1e-6, torch.inf])])
    z = torch.full((len(wanted), 512), -torch.inf)  # the softcap makes them -30
    z[:, column] = wanted
    targets = torch.full((len(wanted),), column if column == 0 else 1)
    stats = torch.empty(STATS, len(wanted), device=DEVICE)
    tile = Tile(z.to(DEVICE), None, targets.to(DEVICE), 0)
    NativeFolds("cuda", module).forward(tile, stats, HeadSpec(softcap=CAP), Written())
    found = stats[ZY if column == 0 else M].cpu().double()
    assert (found - CAP * torch.tanh(wanted.double() / CAP)).abs().max() < CAP * BOUND
