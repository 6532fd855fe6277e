"""Checkpoints come back bit for bit, are whole or not there, and a damaged one is named."""

import json

import pytest
import torch
from torch import nn

from mmfast.training.checkpoint import Checkpointer, best_checkpoint, complete, find, materialise, training_state


def _made(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    params = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(params, lr=0.1, fused=True)


def _train(model, optimizer, steps):
    for k in range(steps):
        model(torch.full((2, 5), float(k))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_round_trip_is_bit_exact(tmp_path):
    model, optimizer = _made(0)
    _train(model, optimizer, 3)
    saver = Checkpointer(tmp_path / "checkpoints")
    saver.begin()
    saver.save(3, training_state(model, optimizer), {"note": 1})
    _train(model, optimizer, 2)  # the copy in flight must not see these
    saver.finish()
    other, fresh = _made(1)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight)
    materialise(fresh)
    info = Checkpointer(tmp_path / "checkpoints").load(
        find(tmp_path / "checkpoints", "auto"), training_state(other, fresh)
    )
    assert info["step"] == 3 and info["note"] == 1
    _train(other, fresh, 2)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_materialise_moves_nothing():
    model, optimizer = _made(0)
    before = [p.clone() for p in model.parameters()]
    materialise(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_keeps_the_last_and_the_best(tmp_path):
    model, optimizer = _made(0)
    materialise(optimizer)
    saver = Checkpointer(tmp_path, keep_last=2, best_metric="eval/loss")
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)):
        saver.save(step, training_state(model, optimizer), {"metrics": {"eval/loss": loss}}, wait=True)
    assert [p.name for p in complete(tmp_path)] == ["step-2", "step-3", "step-4"]
    assert best_checkpoint(tmp_path, "eval/loss").name == "step-2"


def test_damage_is_named_and_older_state_stands(tmp_path):
    model, optimizer = _made(0)
    materialise(optimizer)
    saver = Checkpointer(tmp_path)
    for step in (1, 2):
        saver.save(step, training_state(model, optimizer), {}, wait=True)
    shard = next((tmp_path / "step-2").glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-2.*damaged.*older"):
        saver.load(find(tmp_path, "auto"), training_state(model, optimizer))
    assert saver.load(tmp_path / "step-1", training_state(model, optimizer))["step"] == 1
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        saver.load(tmp_path / "step-2", training_state(model, optimizer))


def test_a_failed_write_is_told_and_leaves_the_older(tmp_path, monkeypatch):
    model, optimizer = _made(0)
    materialise(optimizer)
    saver = Checkpointer(tmp_path)
    saver.save(1, training_state(model, optimizer), {}, wait=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    with pytest.raises(RuntimeError, match=r"step 2.*No space left"):
        saver.save(2, training_state(model, optimizer), {}, wait=True)
    assert [p.name for p in complete(tmp_path)] == ["step-1"]
    Checkpointer(tmp_path).begin()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_checkpoint_is_never_written_over(tmp_path):
    """Its folder was removed before the new one was renamed: a kill between lost both."""
    model, optimizer = _made(0)
    materialise(optimizer)
    saver = Checkpointer(tmp_path)
    saver.save(1, training_state(model, optimizer), {"note": "first"}, wait=True)
    with pytest.raises(RuntimeError, match="step-1 is there already"):
        saver.save(1, training_state(model, optimizer), {"note": "second"}, wait=True)
    assert saver.load(tmp_path / "step-1", training_state(model, optimizer))["note"] == "first"


def test_read_only_folder_and_bad_names(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match="cannot write checkpoints"):
        Checkpointer(blocked / "checkpoints").begin()
    with pytest.raises(ValueError, match=r"state\.json"):
        find(tmp_path, str(tmp_path))
    assert find(tmp_path, "never") is None and find(tmp_path, "auto") is None
    (tmp_path / "step-9").mkdir()  # no state.json: not complete
    assert find(tmp_path, "auto") is None
    (tmp_path / "step-9" / "state.json").write_text(json.dumps({}))
    assert find(tmp_path, "auto").name == "step-9"
