"""A folder of several splits asks which one; a folder of one is read whole."""

import json
import re

import pytest

from mmfast.data.containers.read import data_files, located
from mmfast.data.formats.known import read_records

ROW = json.dumps({"prompt": "What?", "chosen": "A mug.", "rejected": "A cat."}) + "\n"


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([json.loads(ROW) | {"id": name}]), path)
        else:
            path.write_text(ROW)


SEVERAL = {
    "hub shards": (("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
                    "data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
                   "test, train, validation", "data/train-0000*"),
    "hub's own names": (("train_prefs-00000-of-00001.parquet", "test_prefs-00000-of-00001.parquet"),
                        "test_prefs, train_prefs", "test_prefs-00000-of-00001.parquet"),
    "folders": (("train/a/0.parquet", "train/b/0.parquet", "val/0.parquet"), "train, validation", "train"),
    "lines": (("train.jsonl", "dev.jsonl"), "train, validation", "train.jsonl"),
    "named lines": (("pairs_train_0.jsonl", "pairs_train_1.jsonl", "pairs_test.jsonl"), "test, train",
                    "pairs_train_*"),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_a_folder_of_several_splits_asks_which(case, tmp_path):
    names, splits, example = SEVERAL[case]
    write(tmp_path, *names)
    said = f"data.path: the folder {tmp_path} holds several splits ({splits}): name the files of one, such as"
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        list(read_records(tmp_path))
    named = re.search('such as "(.*)" ', str(error.value))[1]
    assert named == str(tmp_path / example)
    found = [str(f.relative_to(tmp_path)) for f in data_files(named)]  # the way out is one
    assert found == [n for n in names if n.startswith(example.removesuffix("*"))]
    assert len(list(read_records(named))) == len(found)


@pytest.mark.parametrize("case", SEVERAL)
def test_data_split_names_one(case, tmp_path, llava_dir):
    from mmfast.data.build import build
    from mmfast.data.settings import DataSettings

    names, splits, _ = SEVERAL[case]
    write(tmp_path, *names)
    found = {split: located([tmp_path], split=split)[0].files for split in splits.split(", ")}
    assert sorted(f for files in found.values() for f in files) == sorted(tmp_path / name for name in names)
    assert all(split[:3] in str(f.relative_to(tmp_path)) for split in found if split[:3] != "val" for f in found[split])
    with pytest.raises(ValueError, match=re.escape(f'has no split "other": it has {splits}')):
        located([tmp_path], split="other")
    data = DataSettings(path=str(tmp_path), split=min(found), workers=1)
    store = build(data, llava_dir, tmp_path / "cache", progress=False, report_to=lambda text: None)
    assert len(store) == len(found[min(found)])


def test_a_card_beside_files_says_which_split_is_which(tmp_path):
    write(tmp_path, "a.jsonl", "b.jsonl")
    entries = "".join(
        f"  - split: {split}\n    path: {name}\n" for split, name in (("train", "b.jsonl"), ("dev", "a.*"))
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files:\n{entries}---\n")
    assert located([tmp_path], split="train")[0].files == (tmp_path / "b.jsonl",)
    with pytest.raises(ValueError, match=r"several splits \(dev, train\)"):
        located([tmp_path])


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("a.jsonl", "b.jsonl"),
        ("train.jsonl", "more.jsonl"),
        ("contest.jsonl", "latest.jsonl"),  # words that only hold a split's name
        ("train_a.jsonl", "train_b.jsonl"),
    ],
)
def test_a_folder_of_one_split_is_read_whole(names, tmp_path):
    write(tmp_path / "test", *names)  # the folder's own name is no split of it
    assert len(list(read_records(tmp_path / "test"))) == len(names)


def test_a_saved_dict_of_data_sets_asks_which(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([json.loads(ROW)])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    said = f"the folder {tmp_path / 'two'} holds several splits (test, train): name the folder of one, such as"
    with pytest.raises(ValueError, match=re.escape(f'{said} "{tmp_path / "two" / "train"}"')):
        list(read_records(tmp_path / "two"))
    assert len(list(read_records(tmp_path / "two" / "train"))) == 1
    assert located([tmp_path / "two"], split="test")[0].files[0].parent == tmp_path / "two" / "test"
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "one")
    assert len(list(read_records(tmp_path / "one"))) == 1


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"train-\*\.parquet does not exist"):
        data_files(tmp_path / "train-*.parquet")
    write(tmp_path, "train[1].jsonl")  # a file's own name is no pattern
    assert data_files(tmp_path / "train[1].jsonl") == [tmp_path / "train[1].jsonl"]


def test_examples_are_built_from_a_pattern(tmp_path, llava_dir, picture):
    from mmfast.data.build import build
    from mmfast.data.settings import DataSettings

    picture("rows/a.png")
    for split, answers in {"train-0": ("A mug.", "A pen."), "train-1": ("A cup.",), "test-0": ("A cat.",)}.items():
        rows = [json.loads(ROW) | {"chosen": text, "rejected": "No.", "images": ["a.png"]} for text in answers]
        (tmp_path / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = DataSettings(path=str(tmp_path / "rows" / "train-*.jsonl"), workers=1)
    for _ in range(2):  # built, and found again
        store = build(data, llava_dir, tmp_path / "cache", progress=False, report_to=lambda text: None)
        assert [e.source for e in store] == ["train-0.jsonl:0", "train-0.jsonl:1", "train-1.jsonl:0"]
