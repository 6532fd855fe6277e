"""Op tests run at every place of this machine: a test that takes `backend` once a backend and device, one that takes
`device` alone once a device. Either way torch makes its tensors there (torch.device as a context).

A GPU's cases carry the mark gpu. Where there is no GPU they are listed only if `-m gpu` asks for them, and skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.places import Place, places

NOT_IN_FP64 = "float64 runs on backend 'torch' there"  # the ops' own words


def devices(markers: str) -> tuple[str, ...]:
    """The devices whose cases are listed, for what -m says."""
    asked = "gpu" in markers and "not gpu" not in markers
    return ("cpu", "cuda") if asked or torch.cuda.is_available() else ("cpu",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        listed = places("backend" in metafunc.fixturenames, devices(metafunc.config.option.markexpr))
        cases = [pytest.param(p, id=str(p), marks=[pytest.mark.gpu] if p.device == "cuda" else []) for p in listed]
        metafunc.parametrize("place", cases, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with torch.device(request.param.device):
        yield request.param


@pytest.fixture
def backend(place: Place) -> str:
    return place.backend


@pytest.fixture
def device(place: Place) -> torch.device:
    return torch.device(place.device)


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """The GPU's folds leave fp64 to torch: a case that asks them for it is skipped there."""
    outcome = yield
    try:
        outcome.get_result()  # type: ignore[attr-defined]
    except ValueError as error:
        if NOT_IN_FP64 not in str(error) or not pyfuncitem.get_closest_marker("gpu"):
            return
        outcome.force_exception(pytest.skip.Exception(NOT_IN_FP64))  # type: ignore[attr-defined]
    except BaseException:
        return
