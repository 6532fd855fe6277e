"""On a machine with a GPU the kernels' tests run on it: then they are part of `make gpu`. Without one, those that run
emulated CUDA kernels do so once in every order of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.kernels.emulation import ORDERS, cuda_headers, run_in


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    emulating = {"emulated", "emulate_cuda", "folds_on_a_gpu"} & set(vars(metafunc.module))
    if emulating and metafunc.module.__name__ != "tests.kernels.test_order" and not torch.cuda.is_available():
        metafunc.fixturenames.append("order")
        metafunc.parametrize("order", ORDERS, indirect=True)


@pytest.fixture
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    if of_triton(request.node) or cuda_headers() is None:
        yield  # nothing is emulated
        return
    run_in(request.param)
    yield
    run_in(ORDERS[0])


def of_triton(item: pytest.Item) -> bool:
    """Interpreted, in no order of threads."""
    return "triton" in item.name


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if torch.cuda.is_available():
        for item in here:
            if "DEVICE" in vars(getattr(item, "module", None)):
                item.add_marker(pytest.mark.gpu)
    again = {id(item) for item in here if of_triton(item) and item.callspec.params.get("order", ORDERS[0]) != ORDERS[0]}
    items[:] = [item for item in items if id(item) not in again]
