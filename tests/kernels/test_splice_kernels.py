"""The Triton splice and segment sum against plain torch (interpreted on a CPU, compiled on a device)."""

import pytest
import torch

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("width", [1, 100, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_splice_copies_every_row(dtype: torch.dtype, width: int) -> None:
    from mmfast.kernels.splice import splice

    generator = torch.Generator().manual_seed(width)
    tokens = torch.randint(0, 50, (37,), generator=generator)
    features = torch.full((37,), -1)
    features[3:12] = torch.randperm(9, generator=generator)
    table = torch.randn(50, width, generator=generator, dtype=dtype)
    images = torch.randn(9, width, generator=generator, dtype=dtype)
    want = torch.where((features >= 0)[:, None], images[features.clamp(min=0)], table[tokens])
    out = splice(tokens.to(DEVICE), table.to(DEVICE), images.to(DEVICE), features.to(DEVICE))
    assert torch.equal(out.cpu(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_segment_sum_in_order(dtype: torch.dtype) -> None:
    from mmfast.kernels.splice import segment_sum

    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(0, 40, (300,), generator=generator)  # some of the 50 segments stay empty
    values = torch.randn(300, 70, generator=generator, dtype=dtype)
    order = torch.argsort(keys, stable=True)
    offsets = torch.searchsorted(keys[order], torch.arange(51))
    out = segment_sum(values.to(DEVICE), order.to(DEVICE), offsets.to(DEVICE)).cpu()
    want = torch.zeros(50, 70, dtype=torch.float64).index_add_(0, keys, values.double())
    eps = torch.finfo(dtype).eps
    assert (out.double() - want).abs().max() <= 8 * eps * want.abs().max() + 1e-12
    assert torch.equal(out[40:], torch.zeros(10, 70, dtype=dtype))


def test_nothing_to_copy() -> None:
    from mmfast.kernels.splice import segment_sum, splice

    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    table = torch.randn(5, 8, device=DEVICE)
    assert splice(none, table, table[:0], none).shape == (0, 8)
    assert segment_sum(table, none, torch.zeros(4, dtype=torch.int64, device=DEVICE)).abs().sum() == 0
