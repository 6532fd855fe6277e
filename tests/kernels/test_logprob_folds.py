"""The folds of every backend against the plain torch folds in fp64: the same tiles, statistics and outputs.

Without a device the CUDA kernels run in the emulation of csrc/cuda/emulate.h and the Triton kernels in the interpreter.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmfast.ops.head.backends import TorchFolds, TritonFolds
from mmfast.ops.head.folds import CENTER, FACTOR, S2, STATS, SZ, TOTAL, ZY, Folds, M, S, Tile
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.spec import HeadSpec
from tests.kernels.emulation import emulated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # the interpreter truncates to bf16
EVERYTHING = {"entropy": True, "squares": True, "total": True}
SPECS = [HeadSpec(**EVERYTHING), HeadSpec(4.0, 0.7, **EVERYTHING)]


def folds_of(backend: str) -> Folds:
    if backend == "triton":
        pytest.importorskip("triton")
        return TritonFolds()
    return NativeFolds("cuda") if DEVICE == "cuda" else NativeFolds("cuda", emulated())


def logits(rows: int, width: int, dtype: torch.dtype = torch.float32, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(rows * 1000 + width)
    z = 3 * torch.randn(rows, width, generator=g) + shift
    z[::3, 0] = -torch.inf  # a masked token
    z[1 % rows, :] *= 40  # a row of nearly one-hot probabilities, with exponents far below the floor
    return z.to(dtype)


def new_stats(rows: int, dtype: torch.dtype) -> Tensor:
    stats = torch.zeros(STATS, rows, dtype=dtype)
    stats[M] = -torch.inf
    return stats


def run(
    folds: Folds, z: Tensor, bias: Tensor | None, targets: Tensor, spec: HeadSpec, widths: list[int], out: torch.dtype,
    device: str, wants: str = "pz",
) -> dict[str, Tensor]:  # fmt: skip
    """Folds all tiles; statistics after the last, factors and outputs of each."""
    to = lambda t: None if t is None else t.to(device)  # noqa: E731
    stats = to(new_stats(z.shape[0], torch.float64 if z.dtype == torch.float64 else torch.float32))
    pieces: dict[str, list[Tensor]] = {"p": [], "z": [], "factor": []}
    start = 0
    for width in widths:
        tile = to(z[:, start : start + width].contiguous())
        part = None if bias is None else to(bias[start : start + width].to(stats.dtype))
        probs, probs_z = (torch.full_like(tile, torch.nan, dtype=out) if c in wants else None for c in "pz")
        folds.forward(Tile(tile, part, to(targets), start), stats, spec, probs, probs_z)
        pieces["factor"].append(stats[FACTOR].cpu().clone())
        for name, value in (("p", probs), ("z", probs_z)):
            if value is not None:
                pieces[name].append(value.cpu())
        start += width
    result = {name: torch.cat(parts, 1).double() for name, parts in pieces.items() if parts and name != "factor"}
    return result | {"stats": stats.cpu().double(), "factor": torch.stack(pieces["factor"]).double()}


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    finite = want.isfinite()
    assert torch.equal(got[~finite], want[~finite])
    scale = torch.where(finite, want, 0.0).abs().max()
    error = torch.where(finite, got - want, 0.0).abs().max()
    assert error <= tolerance * scale, f"{error} against {scale}"


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "softcap"])
@pytest.mark.parametrize(
    "rows, widths, dtype, out",
    [
        (5, [64, 256, 33], torch.float32, torch.float32),
        (3, [4100, 1], torch.float32, torch.bfloat16),
        (4, [40, 40], torch.float32, torch.float16),
        (3, [96, 7], torch.bfloat16, torch.bfloat16),
        (1, [1], torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_forward(
    backend: str, rows: int, widths: list[int], dtype: torch.dtype, out: torch.dtype, spec: HeadSpec
) -> None:
    z = logits(rows, sum(widths), dtype)
    g = torch.Generator().manual_seed(1)
    targets = torch.randint(0, sum(widths), (rows,), generator=g)
    bias = torch.randn(sum(widths), generator=g) if rows != 4 else None
    got = run(folds_of(backend), z, bias, targets, spec, widths, out, DEVICE)
    wide_bias = None if bias is None else bias.double()
    want = run(TorchFolds(), z.double(), wide_bias, targets, spec, widths, torch.float64, "cpu")
    for row in (M, S, ZY, SZ, S2, TOTAL, CENTER):
        close(got["stats"][row], want["stats"][row], 3e-5)
    close(got["factor"], want["factor"], 3e-5)
    tolerance = TOLERANCE[out]
    close(got["p"], want["p"], tolerance)
    close(got["z"], want["z"], tolerance)


@pytest.mark.parametrize("wants", ["", "p"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_outputs_are_optional_and_may_be_the_tile(backend: str, wants: str) -> None:
    z, targets = logits(4, 72), torch.tensor([0, 71, 5, 40])
    spec = SPECS[1]
    want = run(TorchFolds(), z.double(), None, targets, spec, [72], torch.float64, "cpu")
    got = run(folds_of(backend), z, None, targets, spec, [72], torch.float32, DEVICE, wants)
    close(got["stats"][:6], want["stats"][:6], 3e-5)
    wide = torch.zeros(4, 100, device=DEVICE)  # a tile inside a larger tensor, overwritten by its exponentials
    tile = wide[:, 8:80]
    tile.copy_(z)
    stats = new_stats(4, torch.float32).to(DEVICE)
    folds_of(backend).forward(Tile(tile, None, targets.to(DEVICE), 0), stats, spec, tile, None)
    close(tile.cpu().double(), want["p"], 3e-5)
    assert wide[:, :8].abs().sum() == wide[:, 80:].abs().sum() == 0


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "softcap"])
@pytest.mark.parametrize("dtype, out", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("width, entropy", [(64, False), (2500, True), (33, True)])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradient(
    backend: str, width: int, entropy: bool, dtype: torch.dtype, out: torch.dtype, spec: HeadSpec
) -> None:
    rows, first = 4, 100
    z = logits(rows, width, dtype)
    g = torch.Generator().manual_seed(2)
    a, b, d = torch.randn(3, rows, generator=g)
    targets = torch.tensor([first, first + width - 1, 3, first + width])  # in the tile twice, before it, after it
    lse = torch.logsumexp(z.double().nan_to_num(neginf=-1e9), 1).float() + 0.5
    to = lambda t: None if t is None else t.to(DEVICE)  # noqa: E731
    result = torch.full((rows, width), torch.nan, dtype=out, device=DEVICE)
    folds_of(backend).gradient(
        Tile(to(z), None, to(targets), first), to(lse), to(a), to(b) if entropy else None, to(d), spec, result
    )
    want = torch.empty(rows, width, dtype=torch.float64)
    lse, a, b, d = lse.double(), a.double(), b.double(), d.double()
    TorchFolds().gradient(Tile(z.double(), None, targets, first), lse, a, b if entropy else None, d, spec, want)
    close(result.cpu().double(), want, TOLERANCE[out])


@pytest.mark.parametrize("width", [64, 1030, 7])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_rescale(backend: str, width: int) -> None:
    acc = torch.randn(5, width, generator=torch.Generator().manual_seed(3))
    factor = torch.tensor([1.0, 0.5, 1.0, 0.0, 0.25])
    got = acc.clone().to(DEVICE)
    folds_of(backend).rescale(got, factor.to(DEVICE))
    assert torch.equal(got.cpu(), acc * factor[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns, width", [(200, 64), (2600, 1024), (33, 64)])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_finish(backend: str, columns: int, width: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    kept = torch.randn(4, columns, generator=g).to(dtype)
    scale = torch.rand(-(-columns // width), 4, generator=g)
    scale[-1] = 1  # the last tile's maximum is the final one
    targets = torch.tensor([0, columns - 1, columns // 2, 1])
    entry = torch.randn(4, generator=g)
    want = kept.double()
    TorchFolds().finish(want, scale.double(), width, targets, entry.double())
    got = kept.clone().to(DEVICE)
    folds_of(backend).finish(got, scale.to(DEVICE), width, targets.to(DEVICE), entry.to(DEVICE))
    close(got.cpu().double(), want, TOLERANCE[dtype])


def test_nothing_to_fold() -> None:
    z, targets = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)
    for backend in ("cuda", "triton"):
        stats = new_stats(0, torch.float32).to(DEVICE)
        folds_of(backend).forward(Tile(z.to(DEVICE), None, targets.to(DEVICE), 0), stats, SPECS[0], z.to(DEVICE), None)
