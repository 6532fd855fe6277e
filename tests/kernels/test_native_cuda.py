"""The CUDA half as it is linked: importable without a driver, and its failures named."""

import shutil
import subprocess

import pytest
import torch

from mmfast.ops.dispatch import native

module = native()
if module is None or not module.have_cuda:
    pytest.skip("mmfast._C was built without its CUDA half", allow_module_level=True)


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
def test_it_needs_neither_driver_nor_cuda_libraries() -> None:
    assert module is not None
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed and not any(name in needed for name in ("libcuda", "libcudart", "cublas"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_failed_launch_names_the_op() -> None:
    assert module is not None
    with pytest.raises(RuntimeError, match="splice_embeddings: CUDA launch failed"):
        module.cuda_splice(0, 0, 0, 0, 0, 1, 16, 0)
    with pytest.raises(ValueError, match="no CUDA kernel for dtype code 9"):
        module.cuda_segment_sum(0, 0, 0, 0, 1, 1, 9, 0)
