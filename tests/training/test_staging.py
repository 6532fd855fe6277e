"""A checkpoint's copy in host memory: of every kind of tensor that a run has, untouched by the steps that follow."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from mmfast.training.staging import Staging

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def group():
    dist.init_process_group("cpu:gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def a_state(device):
    torch.manual_seed(0)
    weights = {
        "plain": torch.randn(300, 70, device=device),
        "transposed": torch.randn(7, 5, device=device).T,
        "parameter": torch.nn.Parameter(torch.randn(9, device=device)).detach(),
        "half": torch.randn(64, device=device).bfloat16(),
    }
    mesh = init_device_mesh(device, (1,))
    for name, placement in (("sharded", Shard(0)), ("whole", Replicate())):
        weights[name] = DTensor.from_local(torch.randn(6, 4, device=device), mesh, [placement])
    return {"weights": weights, "optimizer": {"plain/step": torch.tensor(3.0, device=device)}}


def values(state):
    return {
        f"{part}/{name}": (t.to_local() if isinstance(t, DTensor) else t).clone().cpu()
        for part, of in state.items()
        for name, t in of.items()
    }


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_of_its_moment_and_its_buffers_are_kept(group, device):
    staging, state, before = Staging(), a_state(device), []
    for turn in range(3):
        wanted, staged = values(state), staging(state)
        for of in state.values():
            for t in of.values():
                t.mul_(-2).add_(1)  # the next step, before anything is written
        kinds = {name: type(t) for of in staged.values() for name, t in of.items()}
        assert kinds == {name: type(t) for of in state.values() for name, t in of.items()}
        found = values(staged)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        for of in staged.values():
            for name, t in of.items():
                local = t.to_local() if isinstance(t, DTensor) else t
                assert local.device.type == "cpu" and local.is_pinned() == (device == "cuda"), name
        places = [t.data_ptr() for t in staging.buffers.values()]
        assert turn == 0 or (places == before and len(set(places)) == len(places))
        before = places
    assert staged["weights"]["sharded"].placements == (Shard(0),)
    assert staged["weights"]["sharded"].shape == state["weights"]["sharded"].shape


def test_a_tensor_of_another_shape_gets_another_buffer():
    staging = Staging()
    first = staging({"weights": {"a": torch.ones(3)}})["weights"]["a"]
    second = staging({"weights": {"a": torch.zeros(4)}})["weights"]["a"]
    third = staging({"weights": {"a": torch.zeros(4).double()}})["weights"]["a"]
    assert first.tolist() == [1] * 3 and second.tolist() == [0] * 4 and third.dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_eight_bit_states_are_copied_too(device):
    low = pytest.importorskip("torchao.optim.subclass_8bit").OptimState8bit
    state = low.zeros((4096,), block_size=256, device=device)
    state.copy_(torch.linspace(-1, 1, 4096, device=device))
    staged = Staging()({"optimizer": {"a/exp_avg": state}})["optimizer"]["a/exp_avg"]
    wanted = state.dequantize().cpu()
    state.copy_(torch.zeros(4096, device=device))
    assert type(staged) is low and staged.device.type == "cpu" and torch.equal(staged.dequantize(), wanted)
