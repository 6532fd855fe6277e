"""On a machine with a GPU the kernels' tests run on it: then they are part of `make gpu`. Without one, those that run
emulated CUDA kernels do so once in every order of threads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.emulation import ORDERS, cuda_headers, run_in

FAR = 1 << 31
Sparse = Callable[[int, torch.dtype], Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    emulating = {"emulated", "emulate_cuda", "folds_on_a_gpu"} & set(vars(metafunc.module))
    if emulating and metafunc.module.__name__ != "tests.kernels.test_order" and not torch.cuda.is_available():
        metafunc.parametrize("order", ORDERS, indirect=True)


@pytest.fixture(autouse=True)  # pytest forgets a fixture that no test asks for, parametrised or not
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    if not hasattr(request, "param") or not emulates(request.node) or cuda_headers() is None:
        yield
        return
    run_in(request.param)
    yield
    run_in(ORDERS[0])


@pytest.fixture
def sparse(tmp_path: Path) -> Sparse:
    """Zeros of which only what is touched takes room."""
    number = count()
    return lambda size, dtype: torch.from_file(str(tmp_path / str(next(number))), True, size, dtype=dtype)


def emulates(item: pytest.Item) -> bool:
    """Triton's kernels are interpreted and the CPU's run, in no order of threads."""
    return not {"triton", "cpu"} & set(re.split(r"\W|_", item.name))


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if torch.cuda.is_available():
        for item in here:
            if "DEVICE" in vars(getattr(item, "module", None)):
                item.add_marker(pytest.mark.gpu)
    once = [item for item in here if not emulates(item) and hasattr(item, "callspec")]
    again = {id(item) for item in once if item.callspec.params.get("order", ORDERS[0]) != ORDERS[0]}
    items[:] = [item for item in items if id(item) not in again]
