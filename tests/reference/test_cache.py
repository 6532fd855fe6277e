"""The reference cache: it comes back, survives a killed write, and names what is damaged or not its own."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmfast.files import weight_digests
from mmfast.reference.cache import ReferenceCache, ShardWriter, compare, manifest_id

MANIFEST = {
    "format": 1,
    "weights": {"a": "1", "b": "2"},
    "dtype": "float32",
    "template": "auto",
    "recorded": {"torch": "x"},
}


def _rows(names):
    rng = np.random.default_rng(0)
    return {hashlib.sha256(n.encode()).hexdigest(): rng.normal(size=1 + len(n)).astype(np.float32) for n in names}


def test_round_trip_append_and_digest(tmp_path):
    cache = ReferenceCache(tmp_path / "c", MANIFEST)
    first, second = _rows(["x", "yy"]), _rows(["zzz"])
    cache.add(first)
    cache.add(second)
    again = ReferenceCache(tmp_path / "c", MANIFEST)
    assert len(again) == 3
    for key, value in {**first, **second}.items():
        assert np.array_equal(again[key], value) and again[key].dtype == np.float32
    assert again.digest(list(first)) == cache.digest(list(first)) != cache.digest(list(second))
    with pytest.raises(KeyError):
        again["00" * 32]


def test_a_killed_write_leaves_the_rest(tmp_path):
    cache = ReferenceCache(tmp_path, MANIFEST)
    cache.add(_rows(["x"]))
    (tmp_path / ".shard-0.safetensors.77.tmp").write_bytes(b"half")
    assert len(ReferenceCache(tmp_path, MANIFEST)) == 1


def test_damage_and_mismatch_are_named(tmp_path):
    cache = ReferenceCache(tmp_path, MANIFEST)
    cache.add(_rows(["x"]))
    with pytest.raises(ValueError, match=r"weights: 1 of 2 differ, the first is b; template is \"v1\" here"):
        ReferenceCache(tmp_path, {**MANIFEST, "weights": {"a": "1", "b": "3"}, "template": "v1"})
    ReferenceCache(tmp_path, {**MANIFEST, "recorded": {"torch": "y"}})  # recorded only
    shard = next(tmp_path.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    with pytest.raises(ValueError, match="damaged"):
        ReferenceCache(tmp_path, MANIFEST)
    with pytest.raises(ValueError, match="not a reference cache"):
        ReferenceCache(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        ReferenceCache(tmp_path / "file" / "c", MANIFEST)


def test_names_of_manifests():
    assert manifest_id(MANIFEST) == manifest_id({**MANIFEST, "recorded": {}})
    assert manifest_id(MANIFEST) != manifest_id({**MANIFEST, "dtype": "bfloat16"})
    assert compare(MANIFEST, MANIFEST) == []


def test_weight_digests_see_one_changed_value(tmp_path):
    tensors = {"w": torch.randn(4, 5), "b": torch.zeros(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = weight_digests(tmp_path)
    tensors["w"][2, 3] += 1e-3
    save_file(tensors, tmp_path / "model.safetensors")
    after = weight_digests(tmp_path)
    assert set(before) == {"w", "b"} and before["b"] == after["b"] and before["w"] != after["w"]
    with pytest.raises(ValueError, match="safetensors"):
        weight_digests(tmp_path / "none")


def test_writer_flushes(tmp_path):
    cache = ReferenceCache(tmp_path, MANIFEST)
    writer = ShardWriter(cache, seconds=-1.0)
    for key, value in _rows(["a", "bb"]).items():
        writer.put(key, value)
    writer.flush()
    assert len(ReferenceCache(tmp_path, MANIFEST)) == 2
