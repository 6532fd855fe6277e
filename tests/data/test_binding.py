"""A store and the pictures it was built from: bound by content once a root, never one's pixels for another's."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest

from mmfast.data import binding
from mmfast.data import build as build_module
from mmfast.data.build import build
from mmfast.data.examples import ExampleBuilder
from mmfast.data.images import index as imagefiles
from mmfast.data.settings import DataSettings
from tests.data.test_store import pair

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def calls(monkeypatch):
    """What was done since it was last cleared: rows built, images decoded, contents read."""
    found = []
    monkeypatch.setattr(build_module, "CHUNK", 8)

    def watch(owner, name, note):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (found.append(note), real(*given))[1])

    watch(build_module.Maker, "part", "part")
    watch(imagefiles, "image_size", "decoded")
    watch(binding, "content", "read")
    watch(ExampleBuilder, "build", "made")
    return found


@pytest.fixture
def data(rows, picture, tmp_path):
    """A folder with 12 pairs about three pictures."""
    for i in range(3):
        picture(f"a/{i}.png", seed=i)
    return rows("a/p.jsonl", [pair(i, f"{i % 3}.png") for i in range(12)]).parent


@pytest.fixture
def start(llava_dir, tmp_path):
    def run(folder, **more):
        given = {"workers": 1, "cache": tmp_path / "cache", "name": "p.jsonl", **more}
        cache = given.pop("cache")
        settings = DataSettings(path=str(folder / given.pop("name")), **given)
        return build(settings, llava_dir, cache, progress=False, report_to=lambda text: None)

    return run


def pixels(store):
    """What each image that the store names is, read as training reads it."""
    return {store.open_image(name) for name in store.images}


def files(folder, pattern="*.png"):
    return {path.read_bytes() for path in folder.glob(pattern)}


def test_the_same_data_elsewhere_is_the_same_store(data, start, calls, tmp_path):
    first = start(data)
    shutil.copytree(data, tmp_path / "other/disk")
    shutil.rmtree(data)
    calls.clear()
    again = start(tmp_path / "other/disk")
    assert (again.digest, again.path) == (first.digest, first.path)
    assert calls.count("read") == 3 + 3 and set(calls) == {"read"}, "each image once, and the store's own files"
    assert all(i.source.startswith(str(tmp_path / "other/disk")) for i in again.images.values())
    assert pixels(again) == files(tmp_path / "other/disk")
    calls.clear()
    assert start(tmp_path / "other/disk").digest == first.digest and not calls
    assert str(tmp_path) not in (first.path / "manifest.json").read_text() + (first.path / "images.json").read_text()


def test_a_linked_data_file_has_the_pictures_beside_the_link(data, picture, start, calls, tmp_path):
    for i in range(3):
        picture(f"b/{i}.png", seed=10 + i, size=(30, 40))
    (tmp_path / "b/p.jsonl").symlink_to(data / "p.jsonl")
    a, b = start(data), start(tmp_path / "b")
    assert a.digest != b.digest and a.manifest["key"] == b.manifest["key"]
    assert pixels(a) == files(data) and pixels(b) == files(tmp_path / "b")
    assert {(i.width, i.height) for i in b.images.values()} == {(30, 40)}
    calls.clear()
    for folder, store in ((data, a), (tmp_path / "b", b)) * 2:
        assert start(folder).path == store.path and not calls
    assert len(list(a.path.parent.glob("bindings/*"))) == 2


def test_only_what_changed_is_read_and_decoded_again(data, picture, start, calls):
    first = start(data)
    os.utime(data / "1.png")
    calls.clear()
    assert start(data).path == first.path
    assert calls == ["read"] * 4, "the touched image, and the store's own files"
    calls.clear()
    assert start(data).path == first.path and not calls
    old = next(name for name, info in first.images.items() if info.source.endswith("2.png"))
    picture("a/2.png", seed=7)
    second = start(data)
    assert calls.count("decoded") == 1 and pixels(second) == files(data) and second.digest != first.digest
    assert calls.count("made") == 4, "the rows about the picture that is another one"
    with pytest.raises(ValueError, match=r"2.png has changed since the examples were built; start again"):
        first.open_image(old)
    picture("a/2.png", seed=2)
    calls.clear()
    assert start(data).path == first.path and "part" not in calls


@pytest.mark.parametrize("segments", ["none", "clean"])
def test_rows_taken_from_another_variant_are_as_if_built(segments, data, picture, rows, start, calls, tmp_path):
    """Bad rows, cut ones, text-only ones and embedded images between them; the changed picture has another size."""
    import base64

    text = "base64:" + base64.b64encode((data / "0.png").read_bytes()).decode()
    long = pair(0, "1.png") | {"chosen": [{"role": "assistant", "content": "Two cows graze. " * 60}]}
    odd = [pair(20, None), pair(21, text), pair(22, "gone.png"), "{", long]
    rows("a/p.jsonl", [row for i in range(6) for row in (pair(i, f"{i % 3}.png"), *odd)])
    more = {"on_error": "drop", "truncate": "response", "max_length": 700, "segments": segments}
    start(data, **more)
    picture("a/2.png", seed=7, size=(20, 90))
    calls.clear()
    second = start(data, **more)
    assert 0 < calls.count("made") < 12
    fresh = start(data, **more, cache=tmp_path / "fresh")
    assert second.digest == fresh.digest and second.path.name == fresh.path.name
    for name in ("images.json", "report.json", "examples.safetensors"):
        assert (second.path / name).read_bytes() == (fresh.path / name).read_bytes(), name


def test_a_picture_of_the_same_size_in_bytes_is_told_apart(data, start):
    first = start(data)
    bits = bytearray((data / "0.png").read_bytes())
    (data / "0.png").write_bytes((data / "1.png").read_bytes()[: len(bits)].ljust(len(bits), b"\0"))
    assert pixels(start(data)) == files(data) and start(data).digest != first.digest


def test_a_missing_picture_is_noticed_when_it_comes_and_when_it_goes(data, start):
    away = data.parent / "away.png"
    (data / "1.png").rename(away)
    with pytest.raises(ValueError, match=r"p.jsonl:1: image .*1.png cannot be read"):
        start(data)
    few = start(data, on_error="drop")
    assert len(few) == 8 and few.report.counts() == {"image-missing": 4}
    assert start(data, on_error="drop").digest == few.digest
    away.rename(data / "1.png")
    whole = start(data, on_error="drop")
    assert len(whole) == 12 and whole.digest != few.digest
    (data / "1.png").rename(away)
    assert start(data, on_error="drop").path == few.path


def test_images_inside_rows_follow_the_cache(rows, picture, start, calls, tmp_path):
    import base64

    text = "base64:" + base64.b64encode(picture("x.png").read_bytes()).decode()
    (tmp_path / "d").mkdir()
    rows("d/p.jsonl", [pair(0, text), pair(1, text)])
    first = start(tmp_path / "d")
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    calls.clear()
    moved = start(tmp_path / "d", cache=tmp_path / "moved")
    assert moved.digest == first.digest and not calls and pixels(moved) == {(tmp_path / "x.png").read_bytes()}
    shutil.rmtree(tmp_path / "moved/images")
    again = start(tmp_path / "d", cache=tmp_path / "moved")
    assert again.path == moved.path and pixels(again) == pixels(moved)


def test_a_renamed_file_is_named_by_its_new_name_and_resumes(data, start):
    first = start(data)
    (data / "p.jsonl").rename(data / "q.jsonl")
    second = start(data, name="q.jsonl")
    assert second.digest == first.digest and second[3].source == "q.jsonl:3"


def test_dgpref_lists_beside_the_pickle_are_part_of_the_key(data, start):
    import pickle

    (data / "c.pkl").write_bytes(pickle.dumps({"0_0": "A red mug.", "1_0": "A pen."}))
    (data / "names.json").write_text('["0", "1"]')
    digests, given = set(), {"image": "{name}.png"}
    asked = set()
    for text in ("What is it?", "Describe it."):
        for place in (data / "prompts.txt", data.parent / "lines"):
            place.write_text(text)
        for options in (given, {**given, "prompts": str(data.parent / "lines")}):
            store = start(data, name="c.pkl", options=options)
            digests.add(store.digest)
            asked.add((text, store[0].chosen.ids.tobytes()))
    assert len(digests) == 4 and len(asked) == 2
    (data / "copy").mkdir()
    shutil.move(data.parent / "lines", data / "copy/lines")
    assert start(data, name="c.pkl", options={**given, "prompts": str(data / "copy/lines")}).digest in digests


def test_mixing_weights_are_part_of_the_digest(data, start, llava_dir, tmp_path):
    shutil.copy(data / "p.jsonl", data / "q.jsonl")

    def digest(*weights):
        path = [
            {"path": str(data / name), "weight": w} for name, w in zip(("p.jsonl", "q.jsonl"), weights, strict=True)
        ]
        settings = DataSettings(path=path, workers=1)
        return build(settings, llava_dir, tmp_path / "c", progress=False, report_to=lambda text: None).digest

    assert len({digest(1, 1), digest(1, 2), digest(2, 1)}) == 3 and digest(1, 2) == digest(1, 2)


def test_a_picture_that_changes_during_the_build(data, picture, start, monkeypatch):
    real, seeds = build_module.Maker.part, [5]

    def changing(self, target, file, chunk):
        if target.name == "part-000001.safetensors" and seeds:
            picture("a/0.png", seed=seeds.pop())
        return real(self, target, file, chunk)

    monkeypatch.setattr(build_module, "CHUNK", 8)
    monkeypatch.setattr(build_module.Maker, "part", changing)
    assert pixels(start(data)) == files(data)
    seeds += range(20, 60)
    picture("a/0.png", seed=6)
    with pytest.raises(ValueError, match="change while examples are built from them"):
        start(data)


def test_data_that_changes_during_the_build(data, start, monkeypatch):
    real = build_module.Maker.part
    monkeypatch.setattr(build_module, "CHUNK", 8)

    def changing(self, target, file, chunk):
        with open(data / "p.jsonl", "a") as f:
            f.write(json.dumps(pair(100, "0.png")) + "\n")
        return real(self, target, file, chunk)

    monkeypatch.setattr(build_module.Maker, "part", changing)
    with pytest.raises(ValueError, match="the data changed while examples were built from it; start again"):
        start(data)
    monkeypatch.setattr(build_module.Maker, "part", real)
    assert len(start(data)) == 14


def test_a_root_behind_a_link_is_where_the_system_finds_it(data, picture, start, tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    for i in range(3):
        picture(f"far/x/{i}.png", seed=40 + i)
        picture(f"x/{i}.png", seed=50 + i)
    store = start(data, images=str(tmp_path / "link/../x"))
    assert pixels(store) == files(tmp_path / "far/x")
    picture("far/x/1.png", seed=60)
    assert pixels(start(data, images=str(tmp_path / "link/../x"))) == files(tmp_path / "far/x")


def test_parts_of_a_killed_build_are_not_mixed_with_other_pictures(data, picture, start, monkeypatch):
    real = build_module.Maker.part

    def killed(self, target, file, chunk):
        if target.name == "part-000001.safetensors":
            raise KeyboardInterrupt
        return real(self, target, file, chunk)

    monkeypatch.setattr(build_module, "CHUNK", 8)
    monkeypatch.setattr(build_module.Maker, "part", killed)
    with pytest.raises(KeyboardInterrupt):
        start(data)
    monkeypatch.setattr(build_module.Maker, "part", real)
    for i in range(3):
        picture(f"a/{i}.png", seed=30 + i)
    assert pixels(start(data)) == files(data)


def slowly(folder, start, log, delay):
    """A start whose comparing writes a byte a file and takes its time."""
    real = binding.content

    def content(path):
        with open(log, "ab") as f:
            f.write(b".")
        time.sleep(delay)
        return real(path)

    binding.content = content
    start(folder)


def test_killed_while_comparing(data, start, calls, tmp_path):
    first = start(data)
    shutil.move(data, tmp_path / "b")
    log = tmp_path / "log"
    process = FORK.Process(target=slowly, args=(tmp_path / "b", start, log, 60))
    process.start()
    while not (log.exists() and log.stat().st_size):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list(first.path.parent.glob("bindings/*"))) == 1, "nothing is remembered of a pass that did not end"
    calls.clear()
    again = start(tmp_path / "b")
    assert again.path == first.path and pixels(again) == files(tmp_path / "b") and calls.count("read") == 6


def test_two_processes_compare_once(data, start, tmp_path):
    first = start(data)
    shutil.move(data, tmp_path / "b")
    log = tmp_path / "log"
    both = [FORK.Process(target=slowly, args=(tmp_path / "b", start, log, 0.1)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0] and log.stat().st_size == 3 + 3
    assert start(tmp_path / "b").digest == first.digest


def as_nobody(work, pipe):
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    written = []
    sys.addaudithook(lambda event, given: written.append(given[0]) if event == "open" and _writes(given[2]) else None)
    try:
        pipe.send((work(), written))
    except Exception as error:
        pipe.send((error, written))


def _writes(flags):
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def elsewhere(work):
    """The outcome of `work` in a process that may not write, and the files it opened for writing."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=as_nobody, args=(work, there))
    process.start()
    found = here.recv()
    process.join()
    return found


@pytest.fixture
def shared(data, llava_dir):
    """Data, model and a place for a cache that another user can read."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = type(data)(name)
        shutil.copytree(data, folder / "data")
        shutil.copytree(llava_dir, folder / "model")
        yield folder
        os.system(f"chmod -R u+w {name}")


def test_a_finished_cache_opens_where_nothing_can_be_written(shared):
    def opened(cache="cache", data="data", told=None):
        settings = DataSettings(path=str(shared / data / "p.jsonl"), workers=1)
        store = build(settings, shared / "model", shared / cache, progress=False, report_to=lambda t: told.append(t))
        return store.digest, pixels(store) == files(shared / data), told

    digest, *_ = opened(told=[])
    shutil.copytree(shared / "data", shared / "copy")
    os.system(f"chmod -R a+rX,a-w {shared}")
    opened(told=[])  # rights changed, and with them a file's times: its digest is noted anew
    assert elsewhere(lambda: opened(told=[])) == ((digest, True, []), [])
    outcome, written = elsewhere(lambda: opened(data="copy", told=[]))
    assert outcome[:2] == (digest, True) and "its images are compared anew at each start" in outcome[2][0]
    tried = {str(path).removeprefix(f"{shared}/cache/").split("/")[0] for path in written}
    assert tried <= {"digests", "examples"}, "tried, refused, and no harm"
    for cache, reason in (("empty", "Permission denied"), ("data/p.jsonl/x", "Not a directory")):
        error, _ = elsewhere(lambda cache=cache: opened(cache=cache, told=[]))
        assert isinstance(error, ValueError) and "\n" not in str(error)
        assert str(error).startswith("data.cache: ") and reason in str(error) and "a folder of your own" in str(error)
