"""A module that runs emulated kernels does so in every order of threads, and in the last one each access to memory is
watched: the modes themselves (tests/kernels/conftest.py)."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.emulation import ORDERS, emulated

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is emulated on a machine with a GPU")


def test_a_test_runs_in_the_order_of_its_name(request: pytest.FixtureRequest) -> None:
    mode = request.node.callspec.params["order"]
    out = torch.full((96,), -1, dtype=torch.int32)
    word = torch.zeros(1, dtype=torch.int32)
    if mode == ORDERS[-1]:
        with pytest.raises(RuntimeError, match="race on shared memory"):
            emulated().pass_on(out.data_ptr(), 96, True, False)
        with pytest.raises(RuntimeError, match="race on global memory"):
            emulated().count_blocks(word.data_ptr(), 2)
    else:  # the first warp writes what all read: right where it comes first
        emulated().pass_on(out.data_ptr(), 96, True, False)
        assert bool((out == 7).all()) == (mode == "ascending")
        emulated().count_blocks(word.data_ptr(), 2)
