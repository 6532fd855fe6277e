"""float32 is float32 on a GPU: no model of it runs in TF32, which torch leaves on for convolutions."""

import pytest
import torch

from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.models.float32 import keep_float32
from mmfast.models.loading import load


@pytest.fixture
def tf32():
    """Everything on, as in a container that asks for it; afterwards as before."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield lambda: (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("opened", [load, Plain, Local], ids=lambda opened: opened.__name__)
def test_a_model_of_float32_runs_without_tf32(tiny, tf32, opened):
    opened(str(tiny[0]), dtype="bfloat16")
    assert tf32() == (True, "high")
    opened(str(tiny[0]), dtype="float32")
    assert tf32() == (False, "highest")


@pytest.mark.gpu
def test_a_convolution_does_not_depend_on_what_is_beside_it(tf32):
    """The patches of one picture, alone and among others, against fp64."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 1024, 14, stride=14, bias=False, device="cuda")
    pictures = torch.randn(48, 3, 336, 336, device="cuda")
    exact = torch.nn.functional.conv2d(pictures[:1].double(), convolution.weight.double(), stride=14)
    off = {}
    for exactly in (False, True):
        if exactly:
            keep_float32(torch.float32)
        with torch.no_grad():
            off[exactly] = max(float((convolution(pictures[:n])[:1] - exact).abs().max()) for n in (1, 2, 7, 48))
    print("largest error of a patch, with TF32 and without:", off)
    assert off[True] < 2e-5 * float(exact.abs().max())
