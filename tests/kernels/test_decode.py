"""A decode step's attention over pieces against plain torch in fp64, and the device's noise against numpy's."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmfast.engines.decode_attention import PAGE, Stack
from mmfast.engines.pieces import Tables
from mmfast.engines.prefill import Node
from mmfast.engines.sampling import count, noise, stream_of
from mmfast.kernels import decode, decode_noise
from tests.make import pieces_oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@dataclass
class Row:
    of: SimpleNamespace
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)


def stack(generator: torch.Generator, places: int, groups: int, length: int, size: int, dtype: torch.dtype) -> Stack:
    keys, values = torch.randn(2, places, groups, length, size, generator=generator).to(dtype)
    nothing = torch.zeros(0)
    return Stack([keys], [values], nothing, nothing, nothing)


def rows_over(generator: random.Random, root: Stack, leaves: Stack, pages: int) -> list[Row]:
    """Eleven rows below two roots, some with a node of their own, pages in any order."""
    roots = [Node(root, 0, 150, 0), Node(root, 1, 7, 0)]
    own = [Node(leaves, place, 1 + 2 * place, 150 if place % 3 else 7) for place in range(6)]
    free, rows = generator.sample(range(1, pages), pages - 1), []
    for r in range(11):
        nodes = [roots[0 if r % 3 else 1], *([own[r]] if r < 6 else [])]
        start = sum(node.length for node in nodes)
        tokens = [0] * generator.choice([1, 2, PAGE, PAGE + 1, 2 * PAGE + 9])
        held = [free.pop() for _ in range(-(-len(tokens) // PAGE))]
        rows.append(Row(SimpleNamespace(nodes=nodes, ordinal=start, position=start), tokens, held))
    return rows


def moved(one: Stack, device: torch.device) -> Stack:
    return Stack([one.keys[0].to(device)], [one.values[0].to(device)], one.lengths, one.starts, one.rows)


@pytest.mark.parametrize(
    ("dtype", "groups", "each", "size", "window"),
    [
        (torch.float32, 2, 2, 16, None),
        (torch.float32, 1, 7, 24, None),
        (torch.float32, 3, 1, 80, 40),
        (torch.bfloat16, 2, 4, 128, None),
        (torch.float16, 2, 1, 64, 1),
    ],
)
def test_attention_over_pieces(dtype, groups, each, size, window):
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter multiplies no bf16")
    generator, some = torch.Generator().manual_seed(0), random.Random(0)
    stacks = [stack(generator, n, groups, length, size, dtype) for n, length in ((40, PAGE), (2, 150), (6, 12))]
    there = [moved(one, DEVICE) for one in stacks]
    rows = rows_over(some, stacks[1], stacks[2], 40)
    sizes = [16 * heads * size for heads in (groups * each, groups, groups)]  # one memory, as a model leaves them
    inputs = [part.view(16, -1, size) for part in torch.randn(sum(sizes), generator=generator).to(dtype).split(sizes)]
    found = []
    for (pool, *nodes), device in ((stacks, torch.device("cpu")), (there, DEVICE)):
        for row in rows:
            row.of.nodes = [
                Node(nodes[0 if node.stack.keys[0].shape[2] == 150 else 1], node.place, node.length, node.start)
                for node in row.of.nodes
            ]
        anchor = torch.empty(64, dtype=dtype, device=device)
        tables = Tables(rows, pool, anchor)
        assert tables.shape.rows == 16 and tables.shape.stacks == 16
        words = tables.shape.split(torch.from_numpy(tables.advance(rows)).to(device))
        attend = pieces_oracle.attend if not found else decode.attend
        out = attend(
            *(tensor.to(device) for tensor in inputs), anchor, words.bases[0, 0], words.bases[0, 1], words.pieces,
            words.begin, words.ordinals, words.place, tables.stride, tables.shape.parts, scale=0.3, window=window,
        )  # fmt: skip
        found.append((out.cpu(), pool.keys[0].cpu(), pool.values[0].cpu()))
    (want, *pages), (got, *written) = found
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(got.float(), want.float(), atol=tolerance, rtol=tolerance)
    assert float(want[:11].float().abs().min(-1).values.max()) > 0 and not want[11:].any() and not got[11:].any()
    # Every row's key went to its place, and nothing else was written but the spare rows' page
    assert all(torch.equal(a[1:], b[1:]) for a, b in zip(pages, written, strict=True))
    for r, row in enumerate(rows):
        assert torch.equal(written[0][row.pages[-1], :, (len(row.tokens) - 1) % PAGE], inputs[1][r])


def test_the_devices_noise_is_numpys():
    rows = [SimpleNamespace(stream=stream_of(f"{n}", n, 5), step=n * 70) for n in range(3)]
    for length in (1, 8, 2500):
        names = np.array([(*row.stream, row.step) for row in rows], np.uint64).view(np.int64)
        got = decode_noise.noise(torch.from_numpy(names).to(DEVICE), length).cpu().numpy()
        want = np.empty_like(got)
        for row, out in zip(rows, want, strict=True):
            count(row.stream, row.step, out)
        assert np.array_equal(got, want)
        assert np.array_equal(noise(rows, length, DEVICE).cpu().numpy(), want)
