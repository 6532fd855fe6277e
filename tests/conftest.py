import os

import pytest

import mmfast

if folder := os.environ.get("MMFAST_NATIVE_DIR"):  # another build of the native module: `make sanitize`
    mmfast.__path__.insert(0, folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
