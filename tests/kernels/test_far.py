"""Tensors of which an element stands more than 2^31 elements from the first: products of a row and a stride that does
fit 32 bits, and rows of tables and log-probs as large as that. Their memory is a sparse file, of which only what is
touched takes room. CUDA is emulated, Triton interpreted."""

from __future__ import annotations

import pytest
import torch

from mmfast import ops
from mmfast.ops.preference import preference_raw
from mmfast.ops.preference_kernels import PreferenceTensors
from mmfast.ops.preference_math import make_spec
from mmfast.ops.rows import segment_sum, segment_sum_torch
from tests.kernels.conftest import FAR, Sparse
from tests.kernels.emulation import emulate_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no sparse memory")


@pytest.fixture(params=["cuda", "triton", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        emulate_cuda(monkeypatch)
    elif request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("width", [72, 71])
def test_rows_of_logits(backend: str, sparse: Sparse, width: int, inplace: bool) -> None:
    stride = FAR // 4 + (0 if width % 8 == 0 else 1)  # vectors of 16 bytes, and element by element
    rows = 6
    far = sparse(rows * stride, torch.float32).as_strided((rows, width), (stride, 1))
    near = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, 0, width - 1, 7, 7, 1])
    results = []
    for values, backend_of in ((far.copy_(near), backend), (near, "torch")):
        leaf = values.detach().requires_grad_()
        logits = leaf.view_as(leaf)
        logp, entropy = ops.selective_logprob(
            logits, targets, return_entropy=True, entropy_grad=True, inplace_backward=inplace, backend=backend_of
        )
        (grad,) = torch.autograd.grad(logp.sum() + 0.3 * entropy.sum(), logits)
        results.append((logp, entropy, grad))
    assert not inplace or results[0][2].data_ptr() == far.data_ptr(), "else nothing is written far out"
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [512, 511])
def test_rows_of_a_table(backend: str, sparse: Sparse, width: int) -> None:
    rows = FAR // 511 + 9
    table = sparse(rows * width, torch.bfloat16).view(rows, width)
    tokens = torch.tensor([rows - 1, 0, 5, FAR // width + 1, rows - 2])
    near = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    table[tokens] = near
    features = torch.tensor([-1, -1, 0, -1, -1])
    images = torch.ones(1, width).bfloat16()
    want = near.clone()
    want[2] = 1
    assert torch.equal(ops.splice_embeddings(tokens, table, images, features, backend=backend), want)
    bounds = torch.tensor([0, 2, 2, 5])
    got = segment_sum(table, tokens, bounds, backend)
    torch.testing.assert_close(got, segment_sum_torch(near, torch.arange(5), bounds))


def test_log_probs(backend: str, sparse: Sparse) -> None:
    far = sparse(FAR + 64, torch.float32)
    index = torch.tensor([FAR + 63, 0, FAR - 1, FAR, 17, FAR + 1])
    near = -torch.rand(6, generator=torch.Generator().manual_seed(0))
    far[index] = near
    ref, responses, pairs = -torch.rand(6), torch.tensor([0, 3, 6], dtype=torch.int32), torch.tensor([[0, 1], [1, 0]])
    spec = make_spec("sigmoid", pairs=2)
    tensors = PreferenceTensors(far, index, None, ref, responses, pairs, None, None)
    loss, metrics, _ = preference_raw(tensors, spec, False, backend)  # a gradient would be as large as the log-probs
    want, wanted, _ = preference_raw(tensors._replace(logps=near, rows=None), spec, False, "torch")
    torch.testing.assert_close((loss, metrics), (want, wanted))
