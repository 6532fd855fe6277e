"""No file of a run folder runs code, however it was made: each place that a pickle could be read from holds one."""

import collections
import io
import json
import os
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint import metadata as kinds

from mmfast.files import sha256_of
from mmfast.job.checkpoint_files import Reader, damage, read_sealed, seal
from mmfast.train import train
from mmfast.training.checkpoint import Checkpointer, materialise, training_state
from mmfast.training.export import export
from tests.training.test_checkpoint import _made
from tests.training.test_resume import config_of


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("mmfast.train.report", lambda folders: (folders[0] / "report.html").write_text("plots"))


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """A run of 4 steps that is not finished; one checkpoint."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.train.report", lambda folders: None)
        train(config_of(folder, tiny, **{"train.steps": 2, "export.formats": []}))
    return folder


def forge(path):
    """As one who knows the format: sizes and digests fit what lies there now."""
    info = read_sealed(path / "state.json")
    info["files"] = {name: [(path / name).stat().st_size, sha256_of(path / name)] for name in info["files"]}
    (path / "state.json").write_text(json.dumps(seal(info)))


def zipped(marker):
    """What torch.save writes of an object that runs code when it is loaded."""
    buffer = io.BytesIO()
    torch.save(Evil(marker), buffer)
    return buffer.getvalue()


def as_bytes_entries(path, marker):
    """.metadata that calls every tensor a byte string: DCP gives those to an unrestricted torch.load."""
    found = pickle.loads((path / ".metadata").read_bytes())
    found.state_dict_metadata = dict.fromkeys(found.state_dict_metadata, kinds.BytesStorageMetadata())
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(zipped(marker))
    for entry in found.storage_data.values():
        entry.offset, entry.length, entry.relative_path = 0, shard.stat().st_size, shard.name
    (path / ".metadata").write_bytes(pickle.dumps(found))


def plant(path, where, marker):
    evil = pickle.dumps(Evil(marker))
    run = path.parent.parent
    if where == "bytes entries":
        as_bytes_entries(path, marker)
    elif where == "shard":
        next(path.glob("*.distcp")).write_bytes(zipped(marker))
    elif where == "inside metadata":
        found = pickle.loads((path / ".metadata").read_bytes())
        found.planner_data = Evil(marker)
        (path / ".metadata").write_bytes(pickle.dumps(found))
    elif where == "allowed callables":
        evil = pickle.dumps(collections.OrderedDict(a=1))  # harmless, but no class of a checkpoint
        (path / ".metadata").write_bytes(evil)
    elif where in ("metrics.jsonl", "samples.jsonl", "started.json", "finished.json", "stopped"):
        (run / where).write_bytes(evil)
    elif where == "rolling-back.json":
        (path.parent / where).write_bytes(evil)
    else:
        (path / where).write_bytes(evil)


PLACES = (
    *(".metadata", "inside metadata", "allowed callables", "bytes entries", "shard", "config.toml", "state.json"),
    *("evaluation.json", "metrics.jsonl", "samples.jsonl", "started.json", "finished.json", "stopped"),
    "rolling-back.json",
)


@pytest.mark.parametrize("where", PLACES)
def test_a_planted_pickle_is_never_run(half, tiny, tmp_path, where):
    """By a resumed run, by one from a named checkpoint, and by mmfast export."""
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    run, marker = tmp_path / "run", tmp_path / "marker"
    path = run / "checkpoints" / "step-2"
    plant(path, where, marker)
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    for forged in (False, True):
        if forged and where == "state.json":
            continue
        for resume in ("auto", str(path), "export"):
            shutil.rmtree(run)
            shutil.copytree(kept, run)
            if forged:
                forge(path)
            try:
                if resume == "export":
                    export(run, ("hf",))
                else:
                    train(config_of(tmp_path, tiny, **{"train.steps": 3, "train.resume": resume, "export.formats": []}))
            except (ValueError, RuntimeError) as error:
                assert str(error) and "\n" not in str(error)
            assert not marker.exists(), (where, forged, resume)


def test_the_plants_do_run_where_pickles_are_trusted(half, tmp_path):
    """Else the test above would show nothing."""
    for where in (".metadata", "inside metadata", "bytes entries", "shard"):
        path = tmp_path / where / "checkpoints" / "step-2"
        shutil.copytree(half / "run" / "checkpoints" / "step-2", path)
        plant(path, where, tmp_path / f"marker of {where}")
        if "metadata" in where:
            pickle.loads((path / ".metadata").read_bytes())
        else:
            torch.load(next(path.glob("*.distcp")), weights_only=False)
        assert (tmp_path / f"marker of {where}").exists()


def test_what_dcp_writes_is_read_back_whole(tmp_path):
    model, optimizer = _made(0)
    materialise(optimizer)
    saver = Checkpointer(tmp_path)
    saver.save(1, training_state(model, optimizer), {}, wait=True)
    path = tmp_path / "step-1"
    plain = pickle.loads((path / ".metadata").read_bytes())
    ours = Reader(path).read_metadata()
    assert ours.state_dict_metadata == plain.state_dict_metadata
    assert ours.storage_data == plain.storage_data and ours.planner_data == plain.planner_data
    assert damage(path) == ""


def test_metadata_cannot_name_files_outside(tmp_path):
    model, optimizer = _made(0)
    materialise(optimizer)
    Checkpointer(tmp_path).save(1, training_state(model, optimizer), {}, wait=True) or None
    saver = Checkpointer(tmp_path)
    saver.save(2, training_state(model, optimizer), {}, wait=True)
    path = tmp_path / "step-2"
    found = pickle.loads((path / ".metadata").read_bytes())
    for entry in found.storage_data.values():
        entry.relative_path = "../../elsewhere"
    (path / ".metadata").write_bytes(pickle.dumps(found))
    forge(path)
    assert "elsewhere, which is not a file of it" in damage(path)


def test_every_torch_load_is_weights_only():
    from pathlib import Path

    for file in Path("mmfast").rglob("*.py"):
        for line in file.read_text().splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, (file, line)
