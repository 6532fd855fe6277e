"""The store: built once, mapped, resumed, mixed, and refused where what it was built from has changed."""

import io
import json
import pickle

import numpy as np
import pytest

from mmfast.data import build as build_module
from mmfast.data.build import build
from mmfast.data.settings import DataSettings


def pair(i: int, image: str | None = "a.png") -> dict:
    row = {
        "prompt": [{"role": "user", "content": "What is this?"}],
        "chosen": [{"role": "assistant", "content": f"It is a red mug {i}."}],
        "rejected": [{"role": "assistant", "content": "It is a blue pen."}],
    }
    return row | ({"images": [image]} if image else {})


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK", 8)
    return {"progress": False, "report_to": lambda text: None}


def test_build_and_reopen(llava_dir, picture, rows, tmp_path, silent):
    picture("a.png")
    settings = DataSettings(path=str(rows("p.jsonl", [pair(i) for i in range(20)])), workers=1)
    store = build(settings, llava_dir, tmp_path / "cache", **silent)
    assert len(store) == 20 and store.preference
    example = store[3]
    assert example.source == "p.jsonl:3"
    (name,) = example.chosen.images
    assert store.images[name].tokens == 576 and (store.images[name].width, store.images[name].height) == (80, 60)
    assert store.open_image(name) == (tmp_path / "a.png").read_bytes()
    assert store.symbols.unshared[0] == len(store[0].chosen.ids) + 575
    assert np.diff(store.symbols.scored_bounds)[store.symbols.branch_of[3, 0]] == sum(
        b - a for a, b in example.chosen.spans
    )
    again = build(settings, llava_dir, tmp_path / "cache", **silent)
    assert again.path == store.path
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy[5].chosen.ids, store[5].chosen.ids)


def test_workers_agree_with_one_process(llava_dir, picture, rows, tmp_path, silent):
    picture("a.png")
    path = str(rows("p.jsonl", [pair(i) for i in range(40)]))
    one = build(DataSettings(path=path, workers=1), llava_dir, tmp_path / "one", **silent)
    two = build(DataSettings(path=path, workers=2), llava_dir, tmp_path / "two", **silent)
    for name, value in one.stored.arrays().items():
        assert np.array_equal(value, two.stored.arrays()[name]), name
    assert [e.id for e in one] == [e.id for e in two]


def test_resume_keeps_finished_parts(llava_dir, picture, rows, tmp_path, silent, monkeypatch):
    picture("a.png")
    settings = DataSettings(path=str(rows("p.jsonl", [pair(i) for i in range(40)])), workers=1)
    whole = build(settings, llava_dir, tmp_path / "whole", **silent)
    done = []
    real = build_module.Maker.part

    def killed(self, target, file, chunk):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(target.name)
        return real(self, target, file, chunk)

    monkeypatch.setattr(build_module.Maker, "part", killed)
    with pytest.raises(KeyboardInterrupt):
        build(settings, llava_dir, tmp_path / "cut", **silent)
    done.clear()
    monkeypatch.setattr(build_module.Maker, "part", lambda self, t, f, c: (done.append(t.name), real(self, t, f, c))[1])
    store = build(settings, llava_dir, tmp_path / "cut", **silent)
    assert done == ["part-000003.safetensors", "part-000004.safetensors"]
    for name, value in whole.stored.arrays().items():
        assert np.array_equal(value, store.stored.arrays()[name]), name


def test_two_runs_at_once_build_once(llava_dir, picture, rows, tmp_path, silent, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    picture("a.png")
    settings = DataSettings(path=str(rows("p.jsonl", [pair(i) for i in range(24)])), workers=1)
    done = []
    real = build_module.Maker.part
    monkeypatch.setattr(build_module.Maker, "part", lambda self, t, f, c: (done.append(t.name), real(self, t, f, c))[1])
    with ThreadPoolExecutor(2) as pool:
        stores = [pool.submit(build, settings, llava_dir, tmp_path / "c", **silent) for _ in range(2)]
    assert sorted(done) == [f"part-{n:06}.safetensors" for n in range(3)]
    assert len(stores[0].result()) == len(stores[1].result()) == 24


def test_key_holds_data_settings_and_images(llava_dir, picture, rows, tmp_path, silent):
    picture("a.png")
    path = rows("p.jsonl", [pair(i) for i in range(3)])
    first = build(DataSettings(path=str(path), workers=1), llava_dir, tmp_path / "c", **silent)
    other = build(DataSettings(path=str(path), workers=1, template="vicuna_v1"), llava_dir, tmp_path / "c", **silent)
    assert first.path != other.path
    rows("p.jsonl", [pair(i) for i in range(4)])
    assert len(build(DataSettings(path=str(path), workers=1), llava_dir, tmp_path / "c", **silent)) == 4
    old = next(iter(first.images))
    picture("a.png", seed=1)
    with pytest.raises(ValueError, match="has changed since the examples were built"):
        first.open_image(old)
    rebuilt = build(DataSettings(path=str(path), workers=1), llava_dir, tmp_path / "c", **silent)
    assert next(iter(rebuilt.images)) != old


def test_mixing_weights(llava_dir, rows, tmp_path, silent):
    a = rows("a.jsonl", [pair(i, None) | {"id": f"a{i}"} for i in range(10)])
    b = rows("b.jsonl", [pair(i, None) | {"id": f"b{i}"} for i in range(20)])
    mix = [{"path": str(a), "weight": 2}, {"path": str(b), "weight": 0.25}]
    store = build(DataSettings(path=mix, workers=1), llava_dir, tmp_path / "c", **silent)
    ids = [e.id for e in store]
    assert sorted(ids[:20]) == sorted([f"a{i}" for i in range(10)] * 2)
    assert len(ids) == 25 and len(set(ids[20:])) == 5 and all(i.startswith("b") for i in ids[20:])
    assert ids == [e.id for e in build(DataSettings(path=mix, workers=1), llava_dir, tmp_path / "c", **silent)]
    with pytest.raises(ValueError, match=r"data.path.*weight: .*greater than 0"):
        build(DataSettings(path=[{"path": str(a), "weight": 0}]), llava_dir, tmp_path / "c", **silent)


def test_embedded_images_are_kept_by_content(llava_dir, picture, rows, tmp_path, silent):
    import base64

    data = picture("a.png").read_bytes()
    text = "base64:" + base64.b64encode(data).decode()
    path = rows("p.jsonl", [pair(0, text), pair(1, text)])
    store = build(DataSettings(path=str(path), workers=1), llava_dir, tmp_path / "c", **silent)
    assert len(store.images) == 1
    (name,) = store.images
    assert store.open_image(name) == data and store.images[name].source.startswith(str(tmp_path / "c"))


def test_images_in_every_guise_are_one(picture, tmp_path):
    from PIL import Image

    from mmfast.data.images.index import image_bytes

    path = picture("a.png")
    data = path.read_bytes()
    given = ("a.png", str(path), f"file://{path}", data, {"bytes": data, "path": "x"}, {"bytes": None, "path": "a.png"})
    for guise in given:
        assert image_bytes(guise, tmp_path)[0] == data
    with Image.open(path) as image:
        again = image_bytes(image, tmp_path)[0]
        assert Image.open(io.BytesIO(again)).tobytes() == image.tobytes()


def test_nothing_left_is_an_error(llava_dir, rows, tmp_path, silent):
    path = rows("p.jsonl", [pair(0, "gone.png")])
    with pytest.raises(ValueError, match="no example is left: 0 examples from 1 rows; dropped: 1 image-missing"):
        build(DataSettings(path=str(path), on_error="drop", workers=1), llava_dir, tmp_path / "c", **silent)
    assert json.loads(next((tmp_path / "c/examples").glob("*/*/report.json")).read_text())["dropped"][0]["kind"]
