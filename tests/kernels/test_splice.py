"""Splice and segment sum in CUDA (emulated where there is no device) and Triton (interpreted) against plain torch."""

import pytest
import torch
from torch import Tensor

from mmfast.ops.dispatch import native
from mmfast.ops.launch import stream
from mmfast.ops.rows import DTYPE_CODES
from tests.kernels.emulation import emulated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BACKENDS = ["cuda", "triton"]


def module():  # type: ignore[no-untyped-def]
    return native() if DEVICE == "cuda" else emulated()


def splice(backend: str, *given: Tensor) -> Tensor:
    """tokens, table, images, features."""
    tokens, table, images, features = (t.to(DEVICE) for t in given)
    if backend == "triton":
        pytest.importorskip("triton")
        from mmfast.kernels.splice import splice as kernel

        return kernel(tokens, table, images, features).cpu()
    out = torch.full((len(tokens), table.shape[1]), torch.nan, dtype=table.dtype, device=DEVICE)
    addresses = (t.data_ptr() for t in (tokens, features, table, images, out))
    module().cuda_splice(*addresses, len(tokens), table.shape[1] * table.element_size(), stream(out))
    return out.cpu()


def segment_sum(backend: str, *given: Tensor) -> Tensor:
    """values, order, offsets."""
    values, order, offsets = (t.to(DEVICE) for t in given)
    if backend == "triton":
        pytest.importorskip("triton")
        from mmfast.kernels.splice import segment_sum as kernel

        return kernel(values, order, offsets).cpu()
    segments, width = len(offsets) - 1, values.shape[1]
    out = torch.full((segments, width), torch.nan, dtype=values.dtype, device=DEVICE)
    addresses = (t.data_ptr() for t in (values, order, offsets, out))
    module().cuda_segment_sum(*addresses, segments, width, DTYPE_CODES[values.dtype], stream(out))
    return out.cpu()


@pytest.mark.parametrize("width", [1, 100, 256, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_splice_copies_every_row(backend: str, dtype: torch.dtype, width: int) -> None:
    g = torch.Generator().manual_seed(width)
    tokens = torch.randint(0, 50, (37,), generator=g)
    features = torch.full((37,), -1)
    features[3:12] = torch.randperm(9, generator=g)
    table = torch.randn(50, width, generator=g, dtype=dtype)
    images = torch.randn(9, width, generator=g, dtype=dtype)
    want = torch.where((features >= 0)[:, None], images[features.clamp(min=0)], table[tokens])
    assert torch.equal(splice(backend, tokens, table, images, features), want)


@pytest.mark.parametrize("width", [70, 96])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_segment_sum_in_order(backend: str, dtype: torch.dtype, width: int) -> None:
    g = torch.Generator().manual_seed(1)
    keys = torch.randint(-1, 40, (300,), generator=g)  # some of the 50 segments stay empty, -1 is left out
    values = torch.randn(300, width, generator=g, dtype=dtype)
    order = torch.argsort(keys, stable=True)
    offsets = torch.searchsorted(keys[order], torch.arange(51))
    out = segment_sum(backend, values, order, offsets)
    want = torch.zeros(50, width, dtype=torch.float64)
    want.index_add_(0, keys[keys >= 0], values[keys >= 0].double())
    assert (out.double() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max() + 1e-12
    assert torch.equal(out[40:], torch.zeros(10, width, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_copy(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    table = torch.randn(5, 8)
    assert splice(backend, none, table, table[:0], none).shape == (0, 8)
    assert segment_sum(backend, table, none, torch.zeros(4, dtype=torch.int64)).abs().sum() == 0
