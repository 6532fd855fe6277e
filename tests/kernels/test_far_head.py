"""The head's kernels more than 2^31 elements from the first: rows of a tile, of E and of what is kept that lie far
apart, and so many rows that the statistics themselves are as large. Memory is sparse; of a grid as large as that one
block runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfast.ops.dispatch import available
from mmfast.ops.head.backends import FOLDS
from mmfast.ops.head.folds import BASE, STATS, WRITTEN, Tile, Written
from mmfast.ops.head.folds_native import NativeFolds
from mmfast.ops.head.outcome import NUMBERS, Kernels
from mmfast.ops.head.spec import HeadSpec
from mmfast.ops.rows import DTYPE_CODES
from tests.kernels.conftest import FAR, Sparse
from tests.kernels.emulation import emulated
from tests.kernels.test_logprob_outcome import statistics

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no sparse memory")
SPEC = HeadSpec(0.0, 0.7, True, True, True, True)
ROWS = 6
MANY = FAR // 8 + 64  # rows, of which 8 arrays are more than 2^31 numbers


def folds_of(backend: str) -> Kernels:
    if backend == "cuda":
        return NativeFolds("cuda", emulated())
    if reason := available(backend, torch.device("cpu")):
        if backend != "triton":
            pytest.skip(reason)
        pytest.importorskip("triton")
    return FOLDS[backend]()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def folded(folds: Kernels, width: int, out: torch.dtype, place: Callable[[torch.dtype], Tensor]) -> list[Tensor]:
    """All that the folds make of two tiles in rows that `place` gives; the second moves every base."""
    tile, probs, probs_z, grad, sums = (place(dtype) for dtype in (torch.float32, out, out, out, torch.float32))
    stats, bases, z = torch.full((STATS, ROWS), torch.nan), torch.zeros(2, ROWS), 3 * normal(2, ROWS, width)
    z[1] += 60
    targets = torch.tensor([3, width - 1, 0, width + 5, 2 * width - 1, width])
    bias, made = normal(width, seed=1), []
    for k in range(2):
        tile.copy_(z[k])
        to = Written(probs, probs_z, sums.fill_(1.0) if k else None, bases[k])
        folds.forward(Tile(tile, bias, targets, k * width), stats, SPEC, to)
        made += [probs.clone(), probs_z.clone()]
    tile.copy_(z[0])
    lse, a, b, d = normal(4, ROWS, seed=2) + 9
    folds.gradient(Tile(tile, bias, targets, 0), lse, a, b, d, SPEC, grad)
    folds.finish(probs, torch.linspace(0.5, 1, 2 * ROWS).view(2, ROWS), 40, targets % width, d)
    assert (sums < 0.1).all() and all((t[-1] != 0).any() for t in (*made, grad, probs))
    return [*made, grad.clone(), probs.clone(), sums.clone(), stats, bases]


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [72, 71])
@pytest.mark.parametrize("backend", ["cuda", "triton", "cpu"])
def test_rows_that_lie_far_apart(backend: str, sparse: Sparse, width: int, out: torch.dtype) -> None:
    """As those that lie near, to the bit: by vectors of 16 bytes, and where no row fits them."""
    more, results = 0 if width % 8 == 0 else 1, []
    for stride, room in ((FAR // 4 + more, sparse), (72 + more, lambda size, dtype: torch.zeros(size, dtype=dtype))):
        place = lambda dtype: room(ROWS * stride, dtype).as_strided((ROWS, width), (stride, 1))  # noqa: B023, E731
        results.append(folded(folds_of(backend), width, out, place))
    assert all(torch.equal(far, near) for far, near in zip(*results, strict=True))


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Of a launch with so many rows that only one can run: the block of the last (Triton's interpreter: the first)."""

    def choose(backend: str, block: int) -> None:
        if backend == "cuda":
            emulated().only(block)
            return
        from mmfast.kernels import logprob

        class First:
            kernel = logprob.fold_forward_kernel

            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return self.kernel[(1,)]

        monkeypatch.setattr(logprob, "fold_forward_kernel", First())

    return choose


@pytest.fixture(autouse=True)
def _all_blocks() -> Any:
    yield
    if emulated.cache_info().currsize:
        emulated().only(-1)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_statistics_of_many_rows(backend: str, sparse: Sparse, one_block: Callable[[str, int], None]) -> None:
    folds, width, t = folds_of(backend), 8, MANY - 1 if backend == "cuda" else 0
    z, targets = normal(2, 1, width), sparse(MANY, torch.int64)
    results = []
    for rows, row, room in ((1, 0, lambda size, dtype: torch.zeros(size, dtype=dtype)), (MANY, t, sparse)):
        if rows > 1:
            one_block(backend, row)
        stats, tile = room(STATS * rows, torch.float32).view(STATS, rows), room(rows * width, torch.float32)
        probs = room(rows * width, torch.bfloat16).view(rows, width)
        for k in range(2):
            tile.view(rows, width)[row] = z[k] + 2 * k
            here = targets[:1] if rows == 1 else targets
            folds.forward(Tile(tile.view(rows, width), None, here, k * width), stats, SPEC, Written(probs))
        results.append((stats[:, row].clone(), probs[row].clone()))
    assert all(torch.equal(far, near) for far, near in zip(*results, strict=True))
    assert results[1][0][WRITTEN] > 1


def test_outcome_of_many_rows(sparse: Sparse, one_block: Callable[[str, int], None]) -> None:
    """64 rows, a block, behind all others."""
    some, tiles, results = statistics(64, False).float(), 9, []
    bases = (some[BASE] - torch.arange(tiles).flip(0)[:, None]).contiguous()
    for rows, room in ((64, lambda size, dtype: torch.zeros(size, dtype=dtype)), (MANY, sparse)):
        if rows == MANY:
            one_block("cuda", MANY // 64 - 1)
        given = {"stats": STATS, "told": 2, "numbers": NUMBERS, "bases": tiles}
        stats, told, numbers, moved = (room(n * rows, torch.float32).view(n, rows) for n in given.values())
        stats[:, -64:], moved[:, -64:] = some, bases
        emulated().cuda_head_outcome(
            stats, stats[BASE], stats[WRITTEN], told, numbers, moved, rows, 1000, tiles, *SPEC[:6], True, 0
        )
        results.append([t[:, -64:].clone() for t in (told, numbers, moved)])
    assert all(torch.equal(far, near) for far, near in zip(*results, strict=True))
    assert results[0][1].any(1).sum() >= NUMBERS - 1


@pytest.mark.parametrize("width", [512, 511])
def test_rows_that_are_combined(sparse: Sparse, width: int) -> None:
    """Chosen rows of a table, sums with a far stride, and coefficients that lie as far apart."""
    rows, apart = FAR // 511 + 9, FAR // 4 + (0 if width == 512 else 1)
    table, folds = sparse(rows * width, torch.bfloat16).view(rows, width), folds_of("cuda")
    index = torch.tensor([rows - 1, 0, 5, FAR // width + 1, rows - 2])
    near = [normal(5, width).bfloat16(), normal(5, width, seed=1), normal(5, width, seed=2)]
    table[index] = near[0]
    a, b, c, scale = normal(4, 5, seed=3)
    want = folds.combine(torch.bfloat16, a, near[0], None, scale, b, near[1], c, near[2])
    q, r = (sparse(5 * apart, torch.float32).as_strided((5, width), (apart, 1)).copy_(t) for t in near[1:])
    a, b = (sparse(5 * apart, torch.float32).as_strided((5,), (apart,)).copy_(t) for t in (a, b))
    assert torch.equal(folds.combine(torch.bfloat16, a, table, index, scale, b, q, c, r), want)


def test_many_rows_are_combined(sparse: Sparse, one_block: Callable[[str, int], None]) -> None:
    """The last of them, in order, into a result as large as that."""
    width, results = 512, []
    p, q, r = normal(3, width)
    for rows, room in ((1, lambda size, dtype: torch.zeros(size, dtype=dtype)), (FAR // width + 9, sparse)):
        if rows > 1:
            one_block("cuda", rows - 1)
        out, table = (room(rows * width, torch.bfloat16).view(rows, width) for _ in range(2))
        sums = [room(rows * width, torch.float32).view(rows, width) for _ in range(2)]
        a, scale, b, c = numbers = [room(rows, torch.float32) for _ in range(4)]
        table[-1], sums[0][-1], sums[1][-1] = p.bfloat16(), q, r
        for k, t in enumerate(numbers):
            t[-1] = 0.3 + k
        emulated().cuda_head_combine(
            out, table, *sums, None, None, None, a, scale, b, c, rows, width, 1, 1, width,
            DTYPE_CODES[torch.bfloat16], DTYPE_CODES[torch.float32], 0,
        )  # fmt: skip
        results.append(out[-1].clone())
    near, far = results
    assert torch.equal(far, near) and (near != 0).any()


def test_scales_of_many_rows(sparse: Sparse, one_block: Callable[[str, int], None]) -> None:
    """`finish` of the last row's last tile."""
    tiles, results = 9, []
    for rows, room in ((1, lambda size, dtype: torch.zeros(size, dtype=dtype)), (MANY, sparse)):
        one_block("cuda", tiles * rows - 1)
        kept = room(rows * tiles * 8, torch.bfloat16).view(rows, 8 * tiles)
        scale, entry = room(tiles * rows, torch.float32), room(rows, torch.float32)
        targets = room(rows, torch.int64)
        kept[-1], scale[-1], entry[-1], targets[-1] = normal(72).bfloat16(), 0.4, 7.0, 70
        NativeFolds("cuda", emulated()).finish(kept, scale.view(tiles, rows), 8, targets, entry)
        results.append(kept[-1].clone())
    near, far = results
    assert torch.equal(far, near) and near[70] == 7
    want = normal(72).bfloat16()
    assert torch.equal(near[:64], want[:64]) and not torch.equal(near[64:70], want[64:70])


def test_the_watch_itself(one_block: Callable[[str, int], None]) -> None:
    """One block is one: the others' rows stay."""
    one_block("cuda", 2)
    kept = torch.ones(4, 8)
    NativeFolds("cuda", emulated()).finish(
        kept, torch.full((1, 4), 0.5), 8, torch.zeros(4, dtype=torch.int64), torch.ones(4)
    )
    assert [row.eq(1).all().item() for row in kept] == [True, True, False, True]
