"""The backend of an op: the first that suits is chosen, and one that cannot run says why."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mmfast import doctor
from mmfast.ops import attention, dispatch
from mmfast.ops.dispatch import available, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
OURS = "80-real,90a-real,100-real,80-virtual"


def test_override_that_cannot_be_honoured_raises_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"some_op: backend 'cuda' .* needs CUDA tensors"):
        choose("some_op", CPU, {"cuda": "", "torch": ""}, backend="cuda")
    with pytest.raises(ValueError, match="unknown backend"):
        choose("some_op", CPU, {"torch": ""}, backend="tpu")
    with pytest.raises(ValueError, match="V is odd"):
        choose("some_op", CPU, {"cpu": "V is odd", "torch": ""}, backend="cpu")


def test_first_backend_that_suits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMFAST_BACKEND", raising=False)
    assert choose("some_op", CPU, {"cuda": "", "triton": "", "cpu": "", "torch": ""}) == "cpu"
    assert choose("some_op", CPU, {"cpu": "no", "torch": ""}) == "torch"
    monkeypatch.setenv("MMFAST_BACKEND", "torch")
    assert choose("some_op", CPU, {"cpu": "", "torch": ""}) == "torch"


def pretend(
    monkeypatch: pytest.MonkeyPatch, driver: int, runtime: int, capability: tuple[int, int], built_for: str = OURS
) -> None:
    """A GPU of `capability` under a driver, and a CUDA half built with `runtime`."""
    module = SimpleNamespace(
        have_cuda=True, cuda_driver_version=lambda: driver, cuda_runtime_version=lambda: runtime,
        cuda_architectures=built_for, cpu_isa=lambda: "baseline",
    )  # fmt: skip
    monkeypatch.setattr(dispatch, "native", lambda: module)
    monkeypatch.setattr(doctor, "native", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    dispatch.cuda_half_fault.cache_clear()


@pytest.mark.parametrize(
    "driver, runtime, capability, built_for, reason",
    [
        (13000, 13000, (9, 0), OURS, ""),
        (13010, 13000, (8, 9), OURS, ""),  # code for 8.0 runs on 8.9
        (12040, 12080, (9, 0), OURS, ""),  # one major version: the older driver runs it
        (
            12080,
            13000,
            (9, 0),
            OURS,
            "the driver is for CUDA 12.8, the CUDA half was built with 13.0: update the driver",
        ),
        (12040, 12080, (12, 0), OURS, "cannot compile the newer one's PTX"),
        (13000, 13000, (12, 0), OURS, ""),  # PTX of 8.0, compiled by the driver
        (13000, 13000, (7, 5), OURS, "this GPU is 7.5: build again with TORCH_CUDA_ARCH_LIST=7.5"),
        (13000, 13000, (8, 0), "90a-real", "was built for 90a-real, this GPU is 8.0"),
        (13000, 13000, (10, 0), "90a-real,90a-virtual", "this GPU is 10.0"),  # code with a letter is for that GPU alone
        (13000, 13000, (8, 6), "89", "this GPU is 8.6"),
        (13000, 13000, (12, 0), "89", ""),  # a bare number is both code and PTX
        (13000, 13000, (7, 5), "native", ""),
        (0, 13000, (8, 0), OURS, ""),
    ],
)
def test_the_cuda_half_is_used_only_where_driver_and_gpu_can_run_it(
    monkeypatch: pytest.MonkeyPatch,
    driver: int,
    runtime: int,
    capability: tuple[int, int],
    built_for: str,
    reason: str,
) -> None:
    monkeypatch.delenv("MMFAST_BACKEND", raising=False)
    pretend(monkeypatch, driver, runtime, capability, built_for)
    found = available("cuda", CUDA)
    assert (reason in found) if reason else not found, found
    supported = {"cuda": "", "triton": "", "torch": ""}
    assert choose("some_op", CUDA, supported) == ("triton" if reason else "cuda")
    if reason:
        with pytest.raises(ValueError, match="backend 'cuda' was asked for but cannot be used"):
            choose("some_op", CUDA, supported, backend="cuda")


def test_doctor_says_why_the_cuda_half_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 12080, 13000, (9, 0))
    problems: list[str] = []
    facts = doctor._native(CUDA, problems)
    assert facts["cuda driver"] == "12.8" and facts["cuda runtime"] == "13.0" and facts["device code"] == OURS
    assert len(problems) == 1 and "'cuda' is not used: the driver is for CUDA 12.8" in problems[0]


@pytest.fixture(autouse=True)
def forget_the_pretended() -> Iterator[None]:
    yield
    dispatch.cuda_half_fault.cache_clear()


def test_questions_about_the_machine_are_constants_to_a_compiler() -> None:
    """torch.compile traced into the cached question, and its graph ended at the imports and at mmfast._C in it: no op
    compiled whole on a GPU."""
    asked: list[str] = []

    @dispatch.constant
    def question(name: str) -> str:
        asked.append(name)
        return str(importlib.import_module("mmfast.ops").__name__) + name

    def whole(x: torch.Tensor) -> torch.Tensor:
        assert attention._installed("varlen") is not None
        return x + 1 if question("!") == "mmfast.ops!" and dispatch.cuda_half_fault(CUDA) is not None else x

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(2)).tolist() == [1, 1] and whole(torch.zeros(2)).tolist() == [1, 1]
    assert asked == ["!"]
    question.cache_clear()
    assert question("!") == "mmfast.ops!" and asked == ["!", "!"]
