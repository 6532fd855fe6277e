"""Files of a cache that came from elsewhere: they run nothing, and are named with the way out or made again."""

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from mmfast.data import build as build_module
from mmfast.data.build import build
from mmfast.data.settings import DataSettings
from mmfast.data.store import ExampleStore
from mmfast.models import adapter_for
from mmfast.models.vision_cache import VisionCache
from mmfast.reference.cache import ReferenceCache, _shard_name
from mmfast.world.models import tiny_model
from tests.data.test_bad_input import Evil
from tests.data.test_store import pair

FOREIGN = {
    "pickle": lambda marker: pickle.dumps(Evil(marker)),
    "empty": lambda marker: b"",
    "json": lambda marker: b"[]",
    "other arrays": lambda marker: save({"x": np.zeros(3, np.float32)}),
}


@pytest.fixture
def start(llava_dir, rows, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK", 8)
    picture("a.png")
    path = rows("p.jsonl", [pair(i) for i in range(12)])

    def run():
        data = DataSettings(path=str(path), workers=1)
        return build(data, llava_dir, tmp_path / "c", progress=False, report_to=lambda text: None)

    return run


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("name", ["examples.safetensors", "images.json", "report.json", "manifest.json"])
def test_a_file_of_a_store(name, foreign, start, tmp_path):
    store = start()
    (store.path / name).write_bytes(FOREIGN[foreign](tmp_path / "ran"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"are damaged .*: delete that folder, they are built again") as error:
            start()
        assert str(store.path) in str(error.value) and "\n" not in str(error.value)
    if foreign in ("pickle", "empty"):  # another rank, which does not compare files, does not run it either
        with pytest.raises(ValueError, match="are damaged"):
            opened = ExampleStore(store.path)
            assert opened[0] and opened.images and opened.report and opened.digest
    shutil.rmtree(store.path)
    again = start()
    assert again.digest == store.digest and len(again) == 12 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("pattern", ["examples/*/bindings/*", "digests/*"])
def test_a_note_of_the_cache_is_written_again(pattern, foreign, start, tmp_path):
    store = start()
    notes = {path: path.read_bytes() for path in (tmp_path / "c").glob(pattern)}
    assert notes
    for path in notes:
        path.write_bytes(FOREIGN[foreign](tmp_path / "ran"))
    assert start().digest == store.digest and not (tmp_path / "ran").exists()
    for path, old in notes.items():
        assert len(path.read_bytes()) == len(old)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_part_of_an_unfinished_build_is_built_again(foreign, start, tmp_path, monkeypatch):
    real = build_module.Maker.part
    monkeypatch.setattr(build_module.Maker, "part", lambda self, target, *_: (real(self, target, *_), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        start()
    monkeypatch.setattr(build_module.Maker, "part", real)
    (part,) = (tmp_path / "c").glob("examples/*/building-*/part-000000.safetensors")
    part.write_bytes(FOREIGN[foreign](tmp_path / "ran"))
    assert len(start()) == 12 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_file_of_the_vision_cache(foreign, tmp_path):
    from transformers import AutoConfig

    adapter = adapter_for(AutoConfig.from_pretrained(tiny_model("llava", tmp_path / "model")))
    (tmp_path / "v").mkdir()
    (tmp_path / "v/x.safetensors").write_bytes(FOREIGN[foreign](tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"x.safetensors is .*: (delete it|take it out)") as error:
        VisionCache(tmp_path / "v", adapter)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_file_of_the_reference_cache(foreign, tmp_path):
    data = FOREIGN[foreign](tmp_path / "ran")
    cache = ReferenceCache(tmp_path / "r", {"format": 1})
    cache.add({"00" * 32: np.zeros(2, np.float32)})
    named = tmp_path / "r" / f"{_shard_name(data)}.safetensors"  # its name is right: it was made so on purpose
    named.write_bytes(data)
    with pytest.raises(ValueError, match=r"is no shard of a reference cache: delete it"):
        ReferenceCache(tmp_path / "r")
    named.unlink()
    assert len(ReferenceCache(tmp_path / "r", {"format": 1})) == 1
    (tmp_path / "r/manifest.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"manifest.json is damaged: delete .*, the reference is") as error:
        ReferenceCache(tmp_path / "r", {"format": 1})
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_a_cut_off_shard_of_arrays_is_told(start):
    store = start()
    file = store.path / "examples.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"are damaged \(.* bytes of arrays where .* are announced"):
        ExampleStore(store.path)
    assert json.loads((store.path / "manifest.json").read_text())["own"].keys() == {
        "examples.safetensors", "images.json", "report.json",
    }  # fmt: skip
