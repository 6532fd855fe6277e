import os
import sys

import pytest
import torch

import mmfast

if not torch.cuda.is_available():  # Triton's kernels run in its interpreter: asked for before it is imported
    assert "triton" not in sys.modules, "triton was imported before tests/conftest.py"
    os.environ["TRITON_INTERPRET"] = "1"

if folder := os.environ.get("MMFAST_NATIVE_DIR"):  # another build of the native module: `make sanitize`
    mmfast.__path__.insert(0, folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
