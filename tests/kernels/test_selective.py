"""selective_logprob on the GPU's folds, which read the logits where they are. Without a device: see test_logprob.py."""

import pytest
import torch

from mmfast.ops.selective import selective_logprob
from tests.kernels.emulation import folds_on_a_gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_selective_reads_the_logits_where_they_are(
    backend: str, dtype: torch.dtype, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = folds_on_a_gpu(backend, monkeypatch)
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 205, generator=g)).to(DEVICE, dtype)
    targets = torch.randint(0, 205, (6,), generator=g).to(DEVICE)
    upstream = torch.randn(6, generator=g).to(DEVICE)
    wide = logits.double().requires_grad_()
    want = torch.log_softmax(wide / 0.7, -1).gather(-1, targets[:, None])[:, 0]
    (want_grad,) = torch.autograd.grad((want * upstream).sum(), wide)
    leaf = logits.clone().requires_grad_()
    given = leaf * 1 if inplace else leaf  # a leaf's own storage is nobody's to overwrite
    got = selective_logprob(given, targets, temperature=0.7, inplace_backward=inplace, backend=backend)
    (grad,) = torch.autograd.grad((got * upstream).sum(), leaf)
    assert (got - want).abs().max() < 1e-4
    assert (grad.double() - want_grad).abs().max() < 8 * torch.finfo(dtype).eps + 1e-6
