"""Every kernel is launched on the GPU that holds its tensors, whichever one is current.

There is no second GPU here: FakeTensors stand on one, and a recorder stands in for torch.cuda.device while the public
ops run their emulated CUDA and interpreted Triton kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfast.ops import launch
from mmfast.ops.head import backends
from tests.kernels.emulation import emulate_cuda, emulated
from tests.ops import subjects
from tests.ops.layouts import outcomes

SUBJECTS = {
    "linear_logprob": lambda: subjects.linear_logprob("kept"),
    "linear_logprob, recompute": lambda: subjects.linear_logprob("recompute"),
    "selective_logprob": lambda: subjects.selective_logprob(False),
    "preference_loss": subjects.preference_loss,
    "linear_preference_loss": lambda: subjects.linear_preference_loss(True),
    "splice_embeddings": subjects.splice_embeddings,
    "tree_attention": subjects.tree_attention,
}


def test_the_guard_takes_the_tensors_device_and_so_does_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on cuda:1 while cuda:0 is current: this raised."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 1000 + index, raising=False)
    entered: list[int] = []

    @contextmanager
    def guard(device: int) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", guard)
    with FakeTensorMode():
        far, near = torch.zeros(3, device="cuda:1"), torch.zeros(3)

        @launch.on_its_device
        def body(none: None, values: torch.Tensor) -> int:
            return launch.stream(values)

        assert body(None, far) == 1001 and entered == [1]
        assert body(None, near) == 0 and len(entered) == 1


class Watched:
    """The emulated module; a launch outside a guard is an error."""

    def __init__(self, module: Any, inside: list[int], launches: list[str]) -> None:
        self.module, self.inside, self.launches = module, inside, launches

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not name.startswith("cuda_") or name == "cuda_preference_scratch":
            return found

        def call(*args: Any) -> Any:
            assert self.inside, f"{name} is launched outside launch.on_its_device"
            self.launches.append(name)
            return found(*args)

        return call


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Not empty while a guard is held."""
    depth: list[int] = []

    @contextmanager
    def guard(tensor: torch.Tensor | None) -> Iterator[None]:
        depth.append(1)
        yield
        depth.pop()

    monkeypatch.setattr(launch, "device_of", guard)
    return depth


@pytest.mark.skipif(torch.cuda.is_available(), reason="the emulation is for machines without a GPU")
@pytest.mark.parametrize("name", SUBJECTS)
def test_native_launches_are_guarded(name: str, inside: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []
    emulate_cuda(monkeypatch, Watched(emulated(), inside, launches))
    subject = SUBJECTS[name]()
    backend = None if name == "tree_attention" else "cuda"
    outcomes(subject, subject.arguments, lambda a: subject.call(a, backend), "plain")
    assert launches and not inside


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("name", ["linear_logprob", "preference_loss", "splice_embeddings", "fused"])
def test_triton_launches_are_guarded(name: str, inside: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from mmfast.kernels import logprob, logprob_fused, preference, splice

    launches = []

    class Kernel:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            assert inside, f"{self.kernel} is launched outside launch.on_its_device"
            launches.append(self.kernel)
            return self.kernel[grid]

    for module in (logprob, logprob_fused, preference, splice):
        for label in [label for label in vars(module) if label.endswith("_kernel")]:
            monkeypatch.setattr(module, label, Kernel(getattr(module, label)))
    subject = subjects.fused_logprob() if name == "fused" else SUBJECTS[name]()
    outcomes(subject, subject.arguments, lambda a: subject.call(a, "triton"), "plain")
    assert launches and not inside


def test_a_launch_outside_a_guard_is_seen(inside: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself."""
    emulate_cuda(monkeypatch, Watched(emulated(), inside, []))
    z, ones, targets = torch.ones(2, 8), torch.ones(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(AssertionError, match="cuda_fold_finish is launched outside"):
        backends.FOLDS["cuda"]().finish(z, ones[:, None], 8, targets, ones)
