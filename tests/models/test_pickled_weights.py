"""Weights from elsewhere that are pickles: no way in runs what they hold."""

import pickle

import pytest
import torch
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.models.merge import merge
from mmfast.train import train
from tests.make.tiny_run import make_config, make_model, write_pairs


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def plant(folder, name, marker):
    """A file that torch.load(weights_only=False), as any plain unpickling, would run code from."""
    folder.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        pickle.dump({"weight": Marker(marker)}, file)
    return folder


@pytest.fixture
def planted(tmp_path):
    """(base model, an adapter whose weights are a pickle, the file that appears if code runs)"""
    base, marker = make_model(tmp_path), tmp_path / "marker"
    adapter = plant(tmp_path / "adapter", "adapter_model.bin", marker)
    (adapter / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], '
        f'"base_model_name_or_path": "{base}"}}'
    )
    with pytest.raises(pickle.UnpicklingError):  # what torch itself would say; without weights_only it runs
        torch.load(adapter / "adapter_model.bin", weights_only=True)
    with (adapter / "adapter_model.bin").open("rb") as file:
        pickle.load(file)
    assert marker.exists()
    marker.unlink()
    return base, adapter, marker


def test_merge_refuses_an_adapter_that_is_a_pickle(planted, tmp_path):
    base, adapter, marker = planted
    for given in ("", str(base)):
        with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle"):
            merge(adapter, tmp_path / "out", given)
    result = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "out")])
    assert isinstance(result.exception, ValueError)
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_base_that_is_a_pickle_is_refused(planted, tmp_path, name):
    base, adapter, marker = planted
    (base / "model.safetensors").unlink()
    plant(base, name, marker)
    data = write_pairs(tmp_path, 4)
    with pytest.raises(ValueError, match=f"^model.path: .*{name} is a pickle"):
        train(make_config(tmp_path, base, data, **{"train.steps": 1}))
    with pytest.raises(ValueError, match="is a pickle"):
        merge(adapter, tmp_path / "out")
    assert not marker.exists()


def test_an_initial_adapter_that_is_a_pickle_is_refused(planted, tmp_path):
    base, adapter, marker = planted
    data = write_pairs(tmp_path, 4)
    changes = {"model.adapter": str(adapter), "train.steps": 1}
    with pytest.raises(ValueError, match=r"^model\.adapter: .*adapter_model\.bin is a pickle"):
        train(make_config(tmp_path, base, data, **changes))
    assert not marker.exists()
