"""Schedules, parameter groups, clipping, and a step that is skipped because it is not finite."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfast.config import Optim
from mmfast.training.optim import build_optimizer, clip_gradients, guarded_step, rate_at, set_rate


def test_schedules():
    s = Optim(schedule="cosine", warmup=0.1, lr=1.0)
    shares = [rate_at(s, k, 100) for k in range(1, 101)]
    assert shares[:10] == pytest.approx([0.1 * k for k in range(1, 11)]) and shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5))) and shares[-1] < 1e-3
    assert rate_at(Optim(schedule="linear", warmup=0), 51, 100) == pytest.approx(0.5)
    assert rate_at(Optim(schedule="constant", warmup=5), 99, 100) == 1.0
    assert rate_at(Optim(schedule="linear", warmup=0, min_lr=0.1), 100, 100) == pytest.approx(0.109)
    w = Optim(schedule="wsd", warmup=0, decay_share=0.2)
    assert rate_at(w, 80, 100) == 1.0 and rate_at(w, 91, 100) == pytest.approx(0.5)
    assert rate_at(Optim(warmup=100), 50, 1000) == 0.5  # steps, not a share


def _model():
    torch.manual_seed(0)
    return nn.ModuleDict({"language": nn.Linear(4, 4), "projector": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def test_groups():
    model = _model()
    spec = Optim(lr=1.0, projector_lr=0.5, weight_decay=0.1)
    made = build_optimizer(
        spec, dict(model.named_parameters()), {id(p) for p in model["projector"].parameters()}, set()
    )
    found = {id(p): (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    assert found[id(model["language"].weight)] == (1.0, 0.1) and found[id(model["language"].bias)] == (1.0, 0.0)
    assert found[id(model["projector"].weight)] == (0.5, 0.1) and found[id(model["norm"].weight)] == (1.0, 0.0)
    set_rate(made, 0.5)
    assert sorted({g["lr"] for g in made.param_groups}) == [0.25, 0.5]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_non_finite_step_moves_nothing(name, eager):
    model = _model()
    made = build_optimizer(Optim(name=name, lr=0.1), dict(model.named_parameters()), set(), set())
    for value in (1.0, float("nan"), float("inf")):
        before = [p.detach().clone() for p in model.parameters()]
        set_rate(made, 1.0)
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        norm = clip_gradients(model.parameters(), 1.0)
        bad = guarded_step(made, norm, torch.tensor(0.0))
        assert bool(bad) == (not math.isfinite(value))
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(moved) if value == 1.0 else not any(moved)
    set_rate(made, 1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert not guarded_step(made, clip_gradients(model.parameters(), 1.0), torch.tensor(0.0))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert guarded_step(made, clip_gradients(model.parameters(), 1.0), torch.tensor(float("nan")))


@pytest.mark.parametrize("rate", ["as built", "cpu", "device"])
@pytest.mark.parametrize("name,master", [("adamw", "fp32"), ("adamw8bit", "fp32"), ("adamw", "bf16-stochastic")])
def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_nothing(name, master, rate):
    """FakeTensors on "cuda": an operation across devices raises, and so does reading a value back to the host.

    torchao's own step is a compiled kernel, which no FakeTensor gets through without CUDA; it is given its arguments.
    """
    torchao = name != "adamw" or master != "fp32"
    if torchao:
        pytest.importorskip("torchao")
    elif rate != "as built":
        pytest.skip("ours is a number there")
    with FakeTensorMode(allow_non_fake_inputs=True):
        p, bias = (nn.Parameter(torch.zeros(*shape, device="cuda")) for shape in ((64, 128), (64,)))
        made = build_optimizer(Optim(name=name, master=master, lr=0.1), {"a.weight": p, "a.bias": bias}, set(), set())
        for group in made.param_groups if rate != "as built" else ():
            group["lr"] = torch.tensor(0.1, device={"cpu": "cpu", "device": "cuda"}[rate])
        rates = [group["lr"] for group in made.param_groups]
        stepped = []

        def step():
            for group in made.param_groups:
                for q in group["params"]:
                    assert isinstance(group["lr"], torch.Tensor) and group["lr"].device == q.device
                    stepped.append(q.detach() - group["lr"] * q.grad)

        if torchao:
            made.step = step
        for _ in range(2):
            set_rate(made, 0.5)
            for q in (p, bias):
                q.grad = torch.ones_like(q)
            norm = clip_gradients((p, bias), 1.0)
            bad = guarded_step(made, norm, torch.zeros((), device="cuda"))
            assert bad.device.type == norm.device.type == p.grad.device.type == "cuda"
        assert len(stepped) == (4 if torchao else 0)
        after = [group["lr"] for group in made.param_groups]
        assert all(a is b for a, b in zip(after, rates, strict=True) if isinstance(b, torch.Tensor))


@pytest.mark.parametrize("rate", ["cpu tensor", "float"])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_skipped_step_leaves_the_rate(name, rate, eager):
    if name == "adamw8bit":
        pytest.importorskip("torchao")
        if rate == "float":
            pytest.skip("torchao refuses a rate that is no tensor")
    model = _model()
    made = build_optimizer(Optim(name=name, lr=0.1), dict(model.named_parameters()), set(), set())
    for group in made.param_groups:
        group["lr"] = torch.tensor(0.1) if rate == "cpu tensor" else 0.1
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert guarded_step(made, clip_gradients(model.parameters(), 1.0), torch.tensor(0.0))
    assert all(float(group["lr"]) == pytest.approx(0.1) for group in made.param_groups)


def test_clipping_is_torchs():
    model, twin = _model(), _model()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    norm = clip_gradients(model.parameters(), 0.5)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
