"""On a machine with a GPU the kernels' tests run on it: then they are part of `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if torch.cuda.is_available() else ():
        if Path(__file__).parent in item.path.parents and "DEVICE" in vars(getattr(item, "module", None)):
            item.add_marker(pytest.mark.gpu)
