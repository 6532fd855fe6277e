"""Vocabularies that no vector divides run as 32,000 does: whatever a kernel or a GEMM of the head goes through row by
row, the rows start a multiple of 64 numbers apart, and every tile at an address of 16 bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.logprob_host import EmptyFolds
from mmfast.ops import linear_logprob
from mmfast.ops.head import backends, spec, tiles
from mmfast.ops.head.folds import Tile, Written
from mmfast.ops.head.spec import HeadSpec

VOCABULARIES = (32001, 49155, 50257, 151669)
ROWS, WIDTH = 5, 16384  # columns of a tile, about
PATHS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether the head is trained, options
    "stats": (False, {}),
    "direct": (False, {}),
    "direct, entropy": (False, {"return_entropy": True, "entropy_grad": True}),
    "kept": (True, {}),
    "recompute": (True, {"keep_budget": 0}),
    "recompute, entropy": (True, {"return_entropy": True, "entropy_grad": True}),
}


class Watched(EmptyFolds):
    """Kernels without bodies, and what each was given that has rows."""

    def __init__(self) -> None:
        super().__init__([])
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def look(self, what: str, t: Tensor | None) -> None:
        if t is None:
            return
        self.seen[what] += 1
        step, at = t.stride(), t.storage_offset() * t.itemsize
        if step[1] != 1 or step[0] % 64 or at % 16 or t.untyped_storage().data_ptr() % 16:
            self.wrong.append(f"{what} {list(t.shape)}: strides {step}, {at} bytes behind the start")

    def forward(self, tile: Tile, stats: Tensor, spec: HeadSpec, to: Written) -> None:
        for what, t in (("tile", tile.logits), ("E", to.probs), ("E z", to.probs_z), ("sums", to.sums)):
            self.look(what, t)
        assert tile.bias is None or tile.bias.data_ptr() % 16 == 0
        super().forward(tile, stats, spec, to)

    def gradient(self, tile: Tile, *others: Any) -> None:
        self.look("tile", tile.logits)
        self.look("dL/dlogits", others[-1])
        super().gradient(tile, *others)

    def finish(self, kept: Tensor, scale: Tensor, width: int, targets: Tensor, entry: Tensor) -> None:
        self.look("kept", kept)
        assert width % 128 == 0
        super().finish(kept, scale, width, targets, entry)

    def product(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """Of a tile of logits, of E in both uses (E W, and kept^T X)."""
        if a.shape[0] == ROWS and out.shape[1] > 64:
            self.look("logits", out)
        elif a.shape[1] == ROWS:
            self.look("transposed", a.T)
        else:
            self.look("left", a)
        super().product(a, b, out, accumulate)


def watched(monkeypatch: pytest.MonkeyPatch, vocab: int, path: str, dtype: torch.dtype) -> Watched:
    trained, options = PATHS[path]
    folds = Watched()
    monkeypatch.setitem(backends.FOLDS, "torch", lambda: folds)
    make = lambda *shape: torch.zeros(shape, dtype=dtype)  # noqa: E731
    hidden, weight, u, b = make(ROWS, 64), make(vocab, 64), make(ROWS, 8), make(vocab, 8)
    bias, targets = torch.zeros(vocab), torch.arange(ROWS) * (vocab // ROWS)
    for t in (hidden, u) if path != "stats" else ():
        t.requires_grad_()
    for t in (weight, b) if trained else ():
        t.requires_grad_()
    found = linear_logprob(
        hidden, weight, targets, bias=bias, lora=(u, b), **options, tile_budget=4 * ROWS * WIDTH, backend="torch"
    )
    told = found if isinstance(found, tuple) else (found,)
    if path != "stats":
        torch.autograd.backward(
            [t for t in told if t.requires_grad], [torch.ones(ROWS) for t in told if t.requires_grad]
        )
    return folds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_every_row_starts_where_a_vector_may(
    monkeypatch: pytest.MonkeyPatch, vocab: int, path: str, dtype: torch.dtype
) -> None:
    folds = watched(monkeypatch, vocab, path, dtype)
    assert not folds.wrong
    want = {"tile", "logits"}
    want |= set() if path == "stats" else {"left"}
    want |= {"E"} if "direct" in path or path == "kept" else set()
    want |= {"E z"} if path == "direct, entropy" else set()
    want |= {"kept", "transposed"} if path == "kept" else {"dL/dlogits", "transposed"} if "recompute" in path else set()
    in_place = path == "kept" and dtype == torch.float32  # logits lie where E is kept: tiles may be four times as wide
    count = -(-vocab // (4 * WIDTH if in_place else WIDTH))
    want |= {"sums"} if "E" in want and count > 1 else set()
    assert set(folds.seen) == want
    assert folds.seen["tile"] == count * (2 if "recompute" in path else 1)


def test_rows_as_dense_as_they_come_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself."""
    for place in (spec, tiles):
        monkeypatch.setattr(place, "padded", lambda columns: columns)
    found = watched(monkeypatch, 50257, "kept", torch.bfloat16)
    assert {line.split()[0] for line in found.wrong} >= {"E", "kept", "transposed"}
