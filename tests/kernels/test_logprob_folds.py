"""The folds of every backend against the plain torch folds in fp64: the same tiles, statistics and outputs.

Without a device the CUDA kernels run in the emulation of emulate.h and the Triton kernels in the interpreter.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmfast.ops.head.backends import TorchFolds, TritonFolds
from mmfast.ops.head.folds import BASE, CENTER, S2, STATS, SZ, TOTAL, WRITTEN, ZY, Folds, M, S, Tile, Written
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


def run(
    folds: Folds, z: Tensor, bias: Tensor | None, targets: Tensor, spec: HeadSpec, widths: list[int], out: torch.dtype,
    device: str, wants: str = "pz", stride: int = 64,
) -> dict[str, Tensor]:  # fmt: skip
    """Folds all tiles, each in rows `stride` columns apart (or a multiple); statistics after the last, E and
    E (z - center) of all tiles brought to the last base, and the sums that a caller keeps: here E's, in a column."""
    to = lambda t: None if t is None else t.to(device)  # noqa: E731
    rows, acc = z.shape[0], torch.float64 if z.dtype == torch.float64 else torch.float32
    stats = torch.full((STATS, rows), torch.nan, dtype=acc, device=device)
    sums = torch.zeros(rows, 5, dtype=acc, device=device)
    pieces: dict[str, list[Tensor]] = {"p": [], "z": [], "base": []}
    start = 0
    for width in widths:
        wide = torch.full((rows, -(-width // stride) * stride), torch.nan)
        tile, probs, probs_z = (wide.clone().to(device, dtype)[:, :width] for dtype in (z.dtype, out, out))
        tile.copy_(z[:, start : start + width])
        part = None if bias is None else to(bias[start : start + width].to(acc))
        base = torch.empty(rows, dtype=acc, device=device)
        written = Written(probs if "p" in wants else None, probs_z if "z" in wants else None, sums[:, :3], base)
        folds.forward(Tile(tile, part, to(targets), start), stats, spec, written)
        pieces["base"].append(base.cpu().double())
        for name, value in (("p", probs), ("z", probs_z)):
            if name in wants:
                pieces[name].append(value.cpu().double())
        if "p" in wants:
            sums += probs.to(acc).sum(1, keepdim=True)
        start += width
    bases = torch.stack(pieces["base"], 1)
    assert torch.equal(stats[BASE].cpu().double(), bases[:, -1])
    scale = torch.where(bases > -torch.inf, (bases - bases[:, -1:]).exp(), 1.0).repeat_interleave(
        torch.tensor(widths), 1
    )
    result = {name: torch.cat(pieces[name], 1) * scale for name in wants}
    return result | {"stats": stats.cpu().double(), "bases": bases, "sums": sums.cpu().double()}


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    finite = want.isfinite()
    assert torch.equal(got[~finite], want[~finite])
    scale = torch.where(finite, want, 0.0).abs().max()
    error = torch.where(finite, got - want, 0.0).abs().max()
    assert error <= tolerance * scale, f"{error} against {scale}"


def check(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """The same statistics; the same E, against whatever bases; and what follows from E's own rounding."""
    for row in (M, S, ZY, SZ, S2, TOTAL):
        close(got["stats"][row], want["stats"][row], 3e-5)
    base, m = (t["bases"].clamp_min(-1e30) for t in (got, want))  # the plain folds' bases are the maxima
    assert ((base <= m + 1e-4 * m.abs()) & ((base >= m - 30) | (base == m))).all()
    to_m = (base[:, -1:] - m[:, -1:]).exp()
    if "p" not in got:
        return
    close(got["p"] * to_m, want["p"], tolerance)
    close(got["sums"][:, :3] * to_m, want["sums"][:, :3], tolerance)
    assert torch.equal(got["sums"][:, 3], got["sums"][:, 4])  # beside them nothing is touched
    close(got["stats"][WRITTEN, :, None] * to_m, want["stats"][S, :, None], tolerance)
    if "z" in got:
        centers = [t["stats"][CENTER] for t in (got, want)]
        assert ((centers[0] - centers[1]).abs() <= 30).all()
        moved = got["z"] * to_m + got["p"] * to_m * (centers[0] - centers[1])[:, None]
        close(moved, want["z"], tolerance * (1 + (centers[0] - centers[1]).abs().max()))


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "softcap"])
@pytest.mark.parametrize(
    "rows, widths, dtype, out",
    [
        (5, [64, 256, 33], torch.float32, torch.float32),
        (3, [4160, 1], torch.float32, torch.bfloat16),
        (4, [64, 40], torch.float32, torch.float16),
        (3, [1024, 576, 31], torch.float32, torch.bfloat16),
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
    wide_bias = None if bias is None else bias.double()
    want = run(TorchFolds(), z.double(), wide_bias, targets, spec, widths, torch.float64, "cpu")
    for wants, stride in (("pz", 64), ("p", 1)):  # any stride will do: rows then start at any address
        check(run(folds_of(backend), z, bias, targets, spec, widths, out, DEVICE, wants, stride), want, TOLERANCE[out])


@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_maxima_that_move(backend: str, out: torch.dtype, extras: bool) -> None:
    """From tile to tile, and within the first: by little (one pass), by so much that a row is read again, from nothing
    at all (masked columns, the target alone), and back. fp16 holds no exponent for one pass."""
    jumps = torch.tensor([[0, 5, 9, -7], [0, 29, 31, 29], [0, 31, 25, 85], [0, 300, -300, 700], [-9, -300, 0, 80]])
    widths = [16384 + 640, 1216, 64, 640]  # more columns than a block's first ones
    g = torch.Generator().manual_seed(5)
    z = 2 * torch.randn(8, sum(widths), generator=g)
    z[:5] += jumps.repeat_interleave(torch.tensor(widths), 1)
    z[5, :16500] = z[6, :17100] = z[7] = -torch.inf
    z[7, 5], z[0, 16600], z[1, 16700] = 3.0, 70.0, 25.0  # a row of its target alone; jumps behind the first columns
    targets = torch.tensor([0, 16500, 17023, 18303, 18200, 1, 17101, 5])
    spec = HeadSpec(**EVERYTHING) if extras else HeadSpec()
    want = run(TorchFolds(), z.double(), None, targets, HeadSpec(**EVERYTHING), widths, torch.float64, "cpu")
    wants = "pz" if extras else "p"
    got = run(folds_of(backend), z, None, targets, spec, widths, out, DEVICE, wants)
    if not extras:
        got["stats"][[SZ, S2, TOTAL]] = want["stats"][[SZ, S2, TOTAL]]
    moves = got["bases"].diff(dim=1)[:5]
    assert out == torch.float16 or (moves[0] == 0).all()  # one pass: the base stays
    check(got, want, TOLERANCE[out])


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradients_divide_by_what_was_written(backend: str) -> None:
    """Two rows of one token that has nearly all the weight, far above the base that the first tile gave: E is rounded
    there, and only its own sum takes the rounding out of the gradient again."""
    z = torch.full((2, 128), -20.0)
    z[:, 0], z[0, 70], z[1, 71] = 0.0, 7.3, 11.9
    targets = torch.tensor([1, 1])
    got = run(folds_of(backend), z, None, targets, HeadSpec(), [64, 64], torch.bfloat16, DEVICE, "p")
    assert (got["bases"] == 0).all()
    q = z.double().index_fill(1, torch.tensor([1]), -torch.inf).softmax(1)
    rounded, exact = (got["p"] / s[:, None] for s in (got["stats"][WRITTEN], got["stats"][S] * got["stats"][M].exp()))
    assert (rounded - q).abs().max() < 1e-5 < 1e-4 < (exact - q).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [71, 1000])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_low_precision_tiles(backend: str, width: int, dtype: torch.dtype) -> None:
    """Logits that a model made: read where they are, nothing written."""
    z, targets = logits(5, width, dtype), torch.tensor([0, width - 1, 5, 40, 63])
    for spec in SPECS:
        want = run(TorchFolds(), z.double(), None, targets, spec, [width], torch.float64, "cpu", "")
        for stride in (64, 1):
            check(run(folds_of(backend), z, None, targets, spec, [width], dtype, DEVICE, "", stride), want, 0)


@pytest.mark.parametrize("wants", ["", "p"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_output_may_be_the_tile(backend: str, wants: str) -> None:
    z, targets = logits(4, 72), torch.tensor([0, 71, 5, 40])
    spec = SPECS[1]
    want = run(TorchFolds(), z.double(), None, targets, spec, [72], torch.float64, "cpu")
    wide = torch.zeros(4, 100, device=DEVICE)  # a tile inside a larger tensor, overwritten by its exponentials
    tile = wide[:, 8:80]
    tile.copy_(z)
    stats = torch.full((STATS, 4), torch.nan, device=DEVICE)
    to = Written(tile if wants else None)
    folds_of(backend).forward(Tile(tile, None, targets.to(DEVICE), 0), stats, spec, to)
    close(stats[:6].cpu().double(), want["stats"][:6], 3e-5)
    close(tile.cpu().double(), want["p"] if wants else z.double(), 3e-5)
    assert wide[:, :8].abs().sum() == wide[:, 80:].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [72, 71])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_gradient_may_be_the_tile(backend: str, width: int, dtype: torch.dtype) -> None:
    """And its coefficients may be one vector."""
    z, targets, spec, one = logits(4, width, dtype), torch.tensor([0, 70, 5, 40]), SPECS[1], torch.linspace(1, 2, 4)
    want = torch.empty(4, width, dtype=torch.float64)
    tile = Tile(z.double(), None, targets, 0)
    TorchFolds().gradient(tile, *[one.double()] * 4, spec, want)
    wide = torch.zeros(4, 104, device=DEVICE, dtype=dtype)
    inside, same = wide[:, 8 : 8 + width], one.to(DEVICE)
    inside.copy_(z)
    folds_of(backend).gradient(Tile(inside, None, targets.to(DEVICE), 0), same, same, same, same, spec, inside)
    close(inside.cpu().double(), want, TOLERANCE[dtype])
    assert wide[:, :8].abs().sum() == wide[:, 8 + width :].abs().sum() == 0


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
    z, targets = torch.zeros(0, 8, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    for backend in ("cuda", "triton"):
        stats = torch.zeros(STATS, 0, device=DEVICE)
        folds_of(backend).forward(Tile(z, None, targets, 0), stats, SPECS[0], Written(z))
