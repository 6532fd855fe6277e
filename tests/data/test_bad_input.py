"""Every way a row can be bad: its message, and that dropping it loses nothing else."""

import json
import pickle
import re

import pytest

from mmfast.data.build import build
from mmfast.data.containers.read import iterate
from mmfast.data.settings import DataSettings

GOOD = {
    "images": ["a.png"],
    "prompt": [{"role": "user", "content": "What is this?"}],
    "chosen": [{"role": "assistant", "content": "It is red."}],
    "rejected": [{"role": "assistant", "content": "It is blue."}],
}
LONG = [{"role": "assistant", "content": "Two cows graze. " * 60}]
MARKED = [{"role": "user", "content": "<image>\n<image>\nWhat?"}]

CASES = {
    "json": ('{"images": [', "json", "not valid JSON"),
    "array": ("[1, 2]", "json", "a JSON list, not an object"),
    "missing image": (GOOD | {"images": ["gone.png"]}, "image-missing", "gone.png cannot be read (No such file"),
    "address": (
        GOOD | {"images": ["http://x/a.png"]},
        "image-missing",
        "is an address, which is not fetched: download",
    ),
    "truncated image": (GOOD | {"images": ["cut.png"]}, "image-corrupt", "cut.png: an image cannot be decoded"),
    "not an image": (GOOD | {"images": ["text.png"]}, "image-corrupt", "text.png: an image cannot be decoded"),
    "bad base64": (GOOD | {"images": ["base64:@@"]}, "image-corrupt", "base64 cannot be decoded"),
    "token without image": (GOOD | {"prompt": MARKED}, "image-count", "2 image tokens for 1 images"),
    "image without token": (
        GOOD | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]},
        "image-count",
        "0 image tokens for 1 images",
    ),
    "too long": (
        GOOD | {"chosen": LONG},
        "too-long",
        re.compile(r"chosen: \d+ tokens \(images included\) are over data.max_length = 700; raise it, or set"),
    ),
    "empty": (GOOD | {"chosen": [{"role": "assistant", "content": " \n"}]}, "empty-response", "an empty answer"),
    "no answer": (GOOD | {"rejected": []}, "empty-response", "rejected does not end with an answer"),
    "identical": (GOOD | {"rejected": GOOD["chosen"]}, "identical", "chosen and rejected are the same tokens"),
    "no chosen": ({k: v for k, v in GOOD.items() if k != "chosen"}, "format", "the row has a prompt but no chosen"),
    "wrong type": (GOOD | {"prompt": 3}, "format", "prompt is not a list of messages"),
    "role": (GOOD | {"prompt": [{"role": "judge", "content": "x"}]}, "format", "unknown role 'judge'"),
    "weight": (GOOD | {"weight": "heavy"}, "format", "could not convert string to float"),
    "weight not a number": (GOOD | {"weight": float("nan")}, "weight", "weight is nan: it must be a number from 0 on"),
    "infinite weight": (GOOD | {"weight": float("inf")}, "weight", "weight is inf"),
    "weight beyond float32": (GOOD | {"weight": 1e300}, "weight", "weight is 1e+300"),
    "negative weight": (GOOD | {"weight": -3}, "weight", "weight is -3"),
    "half a character": (
        GOOD | {"chosen": [{"role": "assistant", "content": "A smile \ud83d"}]},
        "text",
        "chosen[0].content holds \\ud83d, half of a character, after 'A smile '",
    ),
    "half a character in an id": (GOOD | {"id": "\udc00"}, "text", "id holds \\udc00"),
    "half a character in a name": (GOOD | {"images": ["\ud800.png"]}, "text", "images[0] holds"),
    "half a character in a key": (GOOD | {"meta": {"\ud800": 1}}, "text", "a name in meta holds"),
    "private use": (
        GOOD | {"prompt": [{"role": "user", "content": "What is \U000f0000?"}]},
        "text",
        "private-use character U+F0000 stands",
    ),
    "image name with a zero byte": (GOOD | {"images": ["a\0.png"]}, "image-missing", "cannot be read (embedded null"),
    "image is a folder": (GOOD | {"images": ["."]}, "image-missing", "cannot be read (it is no file)"),
    "image is a device": (GOOD | {"images": ["/dev/zero"]}, "image-missing", "cannot be read (it is no file)"),
    "image is a number": (GOOD | {"images": [3]}, "image-missing", "an image given as int"),
    "segment": (GOOD | {"segments": {"chosen": [[5, 2]]}}, "format", "a segment is [start, end]"),
}


@pytest.fixture
def folder(tmp_path, picture):
    whole = picture("a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    return tmp_path


def settings(path, **more):
    return DataSettings(path=str(path), **{"workers": 1, "max_length": 700, "format": "trl", **more})


def run(data, llava_dir, folder):
    return build(data, llava_dir, folder / "cache", progress=False, report_to=lambda text: None)


@pytest.mark.parametrize("name", CASES)
def test_each_case(name, folder, rows, llava_dir):
    row, kind, message = CASES[name]
    path = rows("p.jsonl", [GOOD, row, GOOD])
    pattern = message.pattern if isinstance(message, re.Pattern) else re.escape(message)
    with pytest.raises(ValueError, match=r"p.jsonl:1: .*" + pattern) as error:
        run(settings(path), llava_dir, folder)
    assert f"[{kind}]" in str(error.value) and "set data.on_error = 'drop'" in str(error.value)
    store = run(settings(path, on_error="drop"), llava_dir, folder)
    assert [e.source for e in store] == ["p.jsonl:0", "p.jsonl:2"]
    (problem,) = store.report.dropped
    assert problem.source == "p.jsonl:1" and problem.kind == kind and re.search(pattern, problem.message)


def test_half_a_character_inside_json_text_is_found(folder, rows, llava_dir):
    """RLHF-V's text column is JSON within JSON: the row itself is plain ASCII."""
    text = json.dumps({"question": "What?", "chosen": "Red \ud83d", "rejected": "Blue"})
    path = rows("p.jsonl", [{"image": "a.png", "text": text, "image_path": "a.png"}])
    with pytest.raises(ValueError, match=r"p.jsonl:0: chosen\[0\].content holds \\ud83d.*\[text\]"):
        run(settings(path, format="rlhfv"), llava_dir, folder)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e300, 0])
def test_bad_weights_of_segments(weight, folder, rows, llava_dir):
    """Of a cut answer the end mark is cut too: then nothing is left that weighs anything."""
    segments = {"chosen": [[0, 9999, weight]]}
    path = rows("p.jsonl", [GOOD, GOOD | {"chosen": LONG, "segments": segments}])
    told = "every scored token of an answer weighs 0" if weight == 0 else "a segment's weight is"
    with pytest.raises(ValueError, match=rf"p.jsonl:1: {told}.*\[weight\]"):
        run(settings(path, segments="record", truncate="response", template="vicuna_v1"), llava_dir, folder)


def test_a_row_may_weigh_nothing(folder, rows, llava_dir):
    store = run(settings(rows("p.jsonl", [GOOD, GOOD | {"weight": 0}])), llava_dir, folder)
    assert [e.weight for e in store] == [1.0, 0.0]


def test_truncation_keeps_prompt_and_image(folder, rows, llava_dir):
    path = rows("p.jsonl", [GOOD | {"chosen": LONG}, GOOD])
    store = run(settings(path, truncate="response"), llava_dir, folder)
    assert store.symbols.unshared[store.symbols.branch_of[0, 0]] == 700 and len(store) == 2
    (note,) = store.report.notes
    assert note.kind == "truncated" and re.search(r"\d+ response tokens were cut", note.message)
    with pytest.raises(ValueError, match="the prompt alone leaves no room for a response"):
        run(settings(path, truncate="response", max_length=580), llava_dir, folder)


def test_a_cut_can_make_sides_equal(folder, rows, llava_dir):
    tail = {"rejected": [{"role": "assistant", "content": LONG[0]["content"] + "No."}]}
    path = rows("p.jsonl", [GOOD | {"chosen": LONG} | tail])
    with pytest.raises(ValueError, match="same tokens"):
        run(settings(path, truncate="response"), llava_dir, folder)


def test_text_only_model_refuses_images(folder, rows, tmp_path):
    from mmfast.world.models import tiny_tokenizer

    tiny_tokenizer("llama").save_pretrained(tmp_path / "llama")
    (tmp_path / "llama/config.json").write_text('{"model_type": "llama"}')
    path = rows("p.jsonl", [GOOD])
    with pytest.raises(ValueError, match="the row has an image, but the model reads none"):
        run(settings(path), tmp_path / "llama", folder)
    path = rows("t.jsonl", [GOOD | {"images": []}])
    assert len(run(settings(path), tmp_path / "llama", folder)) == 1


def test_one_percent_broken_in_ten_thousand(folder, llava_dir):
    """Neither the run stops nor a good row goes, and the report names each broken one."""
    kinds = [CASES[k][0] for k in ("json", "missing image", "empty", "identical", "token without image")]
    broken, lines = {}, []
    for i in range(10_000):
        row = GOOD | {"id": str(i), "images": ["a.png"] if i % 10 == 0 else []}
        if i % 100 == 37:
            broken[i] = kinds[i // 100 % len(kinds)]
            row = broken[i]
        lines.append(row if isinstance(row, str) else json.dumps(row))
    (folder / "p.jsonl").write_text("\n".join(lines))
    store = run(settings(folder / "p.jsonl", on_error="drop", workers=2), llava_dir, folder)
    assert [p.source for p in store.report.dropped] == [f"p.jsonl:{i}" for i in broken]
    assert [e.id for e in store] == [str(i) for i in range(10_000) if i not in broken]
    assert store.report.summary() == (
        "9900 examples from 10000 rows; dropped: 20 empty-response, 20 identical, 20 image-count, "
        "20 image-missing, 20 json"
    )


def test_json_array_streams_and_names_the_break(tmp_path):
    rows = [{"n": i, "text": "x" * (i * 977 % 4000), "nested": {"a": [1, {"b": "]}"}]}} for i in range(700)]
    path = tmp_path / "a.json"
    path.write_text("\n [" + ",\n".join(json.dumps(r) for r in rows) + " ]\n")
    assert [r.value for r in iterate(path)] == rows
    path.write_text("[" + ", ".join(json.dumps(r) for r in rows[:3]) + ", {oops}]")
    with pytest.raises(ValueError, match="the JSON array breaks at element 4"):
        list(iterate(path))
    path.write_text(json.dumps([{"a": 1}, 5]))
    assert str(list(iterate(path))[1].value) == "a JSON int, not an object"


def test_a_big_file_is_never_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "big.json"
    row = json.dumps({"text": "x" * 500})
    path.write_text("[" + ",\n".join([row] * 100_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in iterate(path)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 50_000_000 and peak < 10_000_000


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n\n{"a": 2}\n')
    found = list(iterate(path))
    assert [r.number for r in found] == [0, 1, 3] and str(found[1].value).startswith("not UTF-8")


def test_unknown_paths(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        list(iterate(tmp_path / "none.jsonl"))
    (tmp_path / "a.xlsx").write_text("a,b")
    with pytest.raises(ValueError, match=r"unknown file type; known are \.parquet, \.arrow"):
        list(iterate(tmp_path / "a.xlsx"))
    with pytest.raises(ValueError, match="holds no"):
        list(iterate(tmp_path))
    (tmp_path / "a.parquet").write_text("a,b")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        list(iterate(tmp_path / "a.parquet"))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def test_pickles_run_nothing(tmp_path):
    import numpy as np
    import torch

    path, marker = tmp_path / "a.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"a": Evil(marker)}))
    with pytest.raises(ValueError, match=r"refused by the restricted unpickler: it asks for (posix|nt).system"):
        list(iterate(path))
    assert not marker.exists()
    path.write_bytes(pickle.dumps({"0_0": {"logp": -1.0, "per_token_logp": torch.zeros(3)}}))
    with pytest.raises(ValueError, match=r"it holds a torch tensor .*write it again with torch.save"):
        list(iterate(path))
    torch.save({"0_0": {"logp": -1.0, "per_token_logp": torch.zeros(3)}}, path)
    (row,) = iterate(path)
    assert row.value["value"]["per_token_logp"].tolist() == [0, 0, 0]
    torch.save({"0_0": Evil(marker)}, path)
    with pytest.raises(ValueError, match="refused by torch's weights-only load"):
        list(iterate(path))
    assert not marker.exists()
    plain = {"a": np.arange(3.0), "b": {1, 2}, "c": (1, "x", None, 2.5, b"y"), "d": np.float32(0.5)}
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(plain, protocol=protocol))
        values = {r.value["key"]: r.value["value"] for r in iterate(path)}
        assert values["a"].tolist() == [0, 1, 2] and values["b"] == {1, 2} and values["c"] == plain["c"]
        assert values["d"] == 0.5
    path.write_bytes(pickle.dumps({"a": np.asarray([Evil(marker)], object)}))
    with pytest.raises(ValueError, match="restricted unpickler"):
        list(iterate(path))
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(ValueError, match="restricted unpickler"):
        list(iterate(path))
    assert not marker.exists()
