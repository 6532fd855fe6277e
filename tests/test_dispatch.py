import pytest
import torch

from mmfast.ops.dispatch import choose

CPU = torch.device("cpu")


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
