"""What the head does once a call, in one CUDA kernel each, against the same in plain torch in fp64: the numbers of a
row from its statistics, and the combination of rows. Emulated where there is no device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmfast.ops.head.folds import BASE, CENTER, S2, STATS, SZ, WRITTEN, ZY, M, S
from mmfast.ops.head.outcome import ENTRY, FACTOR, LOGP, NUMBERS, OTHERS, Kernels
from mmfast.ops.head.spec import HeadSpec
from tests.kernels.test_logprob_folds import DEVICE, close, folds_of

SPECS = [
    HeadSpec(),
    HeadSpec(entropy=True, squares=True, total=True, entropy_grad=True),
    HeadSpec(4.0, 0.7, True, True, True, True),
]


def statistics(rows: int, capped: bool) -> Tensor:
    g = torch.Generator().manual_seed(rows)
    stats = torch.rand(STATS, rows, generator=g, dtype=torch.float64) + 0.5
    stats[M] = 5 * torch.randn(rows, generator=g)
    stats[ZY] = stats[M] + 3 * torch.randn(rows, generator=g)
    stats[ZY, ::4] = stats[M, ::4] + 30  # a token that is nearly sure, and one that is nearly out of the question
    stats[ZY, 1::4] = stats[M, 1::4] - 80
    stats[S], stats[SZ], stats[S2] = 1 + stats[S], -stats[SZ], 1 + stats[S2]
    stats[BASE], stats[WRITTEN], stats[CENTER] = stats[M] - 2, 8 * stats[S], stats[M] - 1
    if rows > 3:
        stats[ZY, 2] = stats[ZY, 2] if capped else -torch.inf  # a masked target
        stats[M, 3], stats[BASE, 3] = -torch.inf, -torch.inf  # no other column that counts
        stats[[S, SZ, S2, WRITTEN], 3] = 0
    return stats.float().double()


@pytest.mark.parametrize("spec", SPECS, ids=["log-probs", "all", "softcap"])
@pytest.mark.parametrize(("rows", "tiles", "normalise"), [(1, 0, False), (70, 0, False), (70, 3, False), (9, 2, True)])
def test_outcome(rows: int, tiles: int, normalise: bool, spec: HeadSpec) -> None:
    stats = statistics(rows, spec.softcap > 0)
    bases = None if not tiles else stats[BASE] - torch.arange(tiles).flip(0)[:, None]  # the last is the row's own
    if bases is not None and rows > 3:
        bases[0, 1] = -torch.inf  # the first tile held nothing but the target
    got_bases = None if bases is None else bases.float().to(DEVICE)
    e = rows > 1
    got = folds_of("cuda").outcome(stats.float().to(DEVICE), got_bases, 1000, spec, e, normalise)
    want = Kernels().outcome(stats, bases, 1000, spec, e, normalise)
    assert got[0].shape == want[0].shape == ((2, rows) if spec.entropy_grad else (rows,))
    for i in range(NUMBERS):
        finite = want[1][i].isfinite()
        assert torch.equal(got[1][i].cpu().double()[~finite], want[1][i][~finite]), i
        torch.testing.assert_close(got[1][i].cpu().double(), want[1][i], rtol=2e-5, atol=1e-30 if i == LOGP else 2e-6)
    torch.testing.assert_close(got[0].cpu(), want[0].float(), rtol=2e-5, atol=2e-6)
    if bases is not None and got_bases is not None:
        torch.testing.assert_close(got_bases.cpu(), bases.float(), rtol=2e-5, atol=0)
        assert got[1][FACTOR].any() and got[1][ENTRY].any()
    else:
        assert not got[1][FACTOR].any() and got[1][OTHERS].any() == e


@pytest.mark.parametrize("terms", ["a", "a scale", "a b", "a b c", "index a b c", "a inverse", "a b inverse"])
@pytest.mark.parametrize("width", [40, 7, 1, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_combine(dtype: torch.dtype, width: int, terms: str) -> None:
    """Coefficients of any stride, sums with a row stride, q and r in fp32 or in the dtype of all."""
    g = torch.Generator().manual_seed(width)
    rows = 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    for low in (False, True) if "b" in terms else (False,):
        a, b, c, scale = normal(rows, 3)[:, 1], normal(1).expand(rows), normal(rows), normal(rows)
        padded = -(-width // 64) * 64
        q, r = (normal(rows, 2 * padded)[:, :width].to(dtype if low else torch.float32) for _ in range(2))
        index = torch.tensor([8, 0, 8, 3, 7]) if "index" in terms else None
        p = normal(9 if "index" in terms else rows, width).to(dtype)
        given = {"index": index, "scale": scale if "scale" in terms else None}
        given |= {"b": b, "q": q} if "b" in terms else {}
        given |= {"c": c, "r": r} if "c" in terms.split() else {}
        copies = torch.tensor([3, 0, 2, 4])  # rows 0, 2 and 4 of nothing, row 3 of three
        inverse = (copies, torch.tensor([0, 0, 1, 1, 4, 4])) if "inverse" in terms else None
        here = {k: None if t is None else t.to(DEVICE) for k, t in given.items()}
        got = folds_of("cuda").combine(dtype, a.to(DEVICE), p.to(DEVICE), **here,
            inverse=inverse and tuple(t.to(DEVICE) for t in inverse))  # fmt: skip
        wide = {k: None if t is None else t if k == "index" else t.double() for k, t in given.items()}
        want = Kernels().combine(torch.float64, a.double(), p.double(), **wide, inverse=inverse)
        assert got.dtype == dtype
        close(got.cpu().double(), want, {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype])


@pytest.mark.parametrize("width", [40, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_coefficients_may_share_memory(dtype: torch.dtype, width: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, one = torch.randn(6, width, generator=g).to(dtype).to(DEVICE), torch.randn(6, generator=g).to(DEVICE)
    got = folds_of("cuda").combine(dtype, one[:5], x, None, one[:5], one[1:], x[1:], one[:5], x[:5])
    wide, c = x.cpu().double(), one.cpu().double()
    want = Kernels().combine(torch.float64, c[:5], wide[:5], None, c[:5], c[1:], wide[1:], c[:5], wide[:5])
    close(got.cpu().double(), want, {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype])
