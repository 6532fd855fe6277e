"""Data sets by hub id: which commit, subset and split, with a server that stands in for the hub and an empty cache."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.data.build import build
from mmfast.data.containers.hub import address_of
from mmfast.data.containers.read import iterate, located
from mmfast.data.settings import DataSettings
from tests.make.hub_server import COMMIT, NAME

LATER = "beef0000" * 5


def line(name, answer="A mug.", **more):
    return json.dumps({"prompt": "What is this?", "chosen": answer, "rejected": "A cat.", "id": name} | more) + "\n"


def ids(*paths, **given):
    (source,) = located(paths or [NAME], tell=lambda text: None, **given)
    return [row.value["id"] for row in iterate(source)]


SPLITS = {"data/train.jsonl": line("a") + line("b"), "data/test.jsonl": line("c")}
CONFIGS = """---
license: mit
configs:
- config_name: plain
  default: true
  data_files:
  - split: prefs
    path: [one/*.jsonl, two.csv]
  - split: test
    path: one/deep/*.jsonl
- config_name: other
  data_files: "one/**/*.jsonl"
- config_name: lost
  data_files: pictures.zip
- config_name: inner
  data_dir: one/deep
---
# A card
"""
CARDED = {
    "README.md": CONFIGS,
    "one/a.jsonl": line("a"),
    "one/deep/b.jsonl": line("b"),
    "pictures.zip": "",
    "two.csv": "id,prompt,chosen,rejected\nc,What?,A mug.,A cat.\n",
}
FOLDERS = {
    "README.md": "no block of settings",
    "harmless/train.jsonl": line("a"),
    "harmless/test.jsonl": line("b"),
    "helpful/train.jsonl": line("c"),
    "dataset_infos.json": "{}",
}


@pytest.mark.parametrize(
    ("files", "path", "given", "found"),
    [
        (SPLITS, NAME, {"split": "train"}, ["a", "b"]),
        (SPLITS, NAME, {"split": "test", "revision": "main"}, ["c"]),
        (SPLITS, f"hf://datasets/{NAME}/data/te*", {}, ["c"]),
        (SPLITS, f"hf://datasets/{NAME}@{COMMIT}/data/train.jsonl", {}, ["a", "b"]),
        (SPLITS, Path(f"hf://datasets/{NAME}@main/data"), {"split": "test"}, ["c"]),
        (CARDED, NAME, {"split": "prefs"}, ["a", "c"]),
        (CARDED, NAME, {"split": "test"}, ["b"]),
        (CARDED, NAME, {"subset": "other"}, ["a", "b"]),
        (CARDED, NAME, {"subset": "other", "split": "train"}, ["a", "b"]),
        (CARDED, NAME, {"subset": "inner"}, ["b"]),
        (FOLDERS, NAME, {"subset": "harmless", "split": "test"}, ["b"]),
        (FOLDERS, NAME, {"subset": "helpful"}, ["c"]),
    ],
)
def test_the_split_that_is_asked_for_is_read_and_no_other_file_fetched(files, path, given, found, serve, tmp_path):
    with serve(files) as asked:
        assert ids(path, notes=tmp_path / "notes", **given) == found
    got = {request.rpartition("/")[2] for request in asked if request.startswith("GET /datasets/")} - {"README.md"}
    assert len(got) <= len(found) and "pictures.zip" not in got
    assert ids(path, notes=tmp_path / "notes", **given) == found  # and again without a network


MISTAKES = [
    (
        SPLITS,
        NAME,
        {},
        "holds several splits (test, train): name the files of one, such as "
        f'"hf://datasets/{NAME}/data/train.jsonl", or set data.split = "train"',
    ),
    (SPLITS, NAME, {"split": "dev"}, f'{NAME} has no split "dev": it has test, train'),
    (SPLITS, NAME, {"subset": "en"}, f'{NAME} has no subset, and no folder, "en"'),
    (SPLITS, NAME, {"revision": "v2"}, f'data.revision: {NAME} on the hub has no branch, tag or commit "v2"'),
    (SPLITS, f"{NAME}@main", {"revision": "v2"}, 'has a revision, and data.revision = "v2" is another: give one'),
    (SPLITS, f"hf://datasets/{NAME}/data/te*", {"split": "test"}, "data.split has no effect"),
    (SPLITS, f"hf://datasets/{NAME}/data", {"subset": "data", "split": "train"}, "data.subset has no effect"),
    (SPLITS, "no/such", {}, 'data.path: "no/such" is no file or folder here, and the hub has no such data set, or'),
    (SPLITS, "no..such/set", {}, "no hub id either (those are written OWNER/NAME)"),
    (CARDED, NAME, {"subset": "lost"}, "names pictures.zip as its split train, such as pictures.zip, none of which"),
    (CARDED, NAME, {}, "holds several splits (prefs, test)"),
    (FOLDERS, NAME, {}, "holds its files in several folders (harmless, helpful): name one with data.subset"),
    ({"README.md": CONFIGS.replace("  default: true\n", "")}, NAME, {}, "several subsets (inner, lost, other, plain)"),
    (
        {"README.md": "---\nconfigs:\n- [a: b: c\n---\n", "a.jsonl": line("a")},
        NAME,
        {},
        f"the card (README.md) of {NAME}",
    ),
    ({"a.zip": ""}, NAME, {}, f"{NAME} holds no file of these: .parquet, .arrow"),
]


@pytest.mark.parametrize(("files", "path", "given", "said"), MISTAKES)
def test_a_mistake_is_one_line(files, path, given, said, serve):
    with serve(files), pytest.raises(ValueError, match=re.escape(said)) as error:
        ids(path, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["split", "subset", "revision"])
def test_a_key_that_cannot_act_is_refused(key, tmp_path):
    (tmp_path / "a.jsonl").write_text(line("a"))
    with pytest.raises(ValueError, match=f"data.{key} has no effect"):
        ids(tmp_path / "a.jsonl", **{key: "train"})


@pytest.mark.parametrize("path", ["data/pairs.jsonl", "/data/set", "./owner/name", "name", "a/b/c", "a/b.csv.gz"])
def test_a_path_of_this_machine_is_no_hub_id(path):
    assert address_of(path) is None
    with pytest.raises(ValueError, match=r"does not exist$"):
        located([path])


def test_what_is_here_is_read_from_here(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        Path("someone/tiny").mkdir(parents=True, exist_ok=True)
        Path("someone/tiny", f"{split}.jsonl").write_text(line(split))
    assert ids(NAME, split="test") == ["test"]


def test_a_commit_stays_where_it_was_seen_first_and_the_newest_is_asked_for_by_name(serve, tmp_path):
    notes, commits = tmp_path / "notes", [COMMIT]
    with serve({"train.jsonl": line("a")}, commits=commits):
        told = []
        (source,) = located([NAME], notes=notes, tell=told.append)
        assert source.told == f"{NAME}@{COMMIT}" and f"commit {COMMIT[:12]} of its main branch" in told[0]
    with serve({"train.jsonl": line("b")}, commits=[COMMIT, LATER]) as asked:
        assert ids(notes=notes) == ["a"] and not asked
        assert ids(notes=notes, revision="main") == ["b"] and ids(notes=notes, revision=LATER) == ["b"]
        assert ids(notes=notes) == ["a"]
        assert ids(notes=tmp_path / "others") == ["b"]  # a cache of examples that saw nothing yet
    located([NAME], revision="main", notes=notes, tell=told.append)  # without a network: as it was last seen
    assert told[1:] == [f"{NAME}: the hub cannot be reached; main as last seen, {LATER[:12]}"]
    assert ids(notes=notes, revision="main") == ["b"]
    (tmp_path / "notes" / "someone--tiny.json").write_text("[]")  # no note of ours: what the hub's cache holds
    assert ids(notes=notes, revision=LATER) == ["b"]


def test_without_a_network_the_message_names_the_id_and_the_way_out(serve, home):
    with serve({"train.jsonl": line("a"), "test.jsonl": line("b")}):
        ids(split="train")
    want = f'"{NAME}" is no file or folder here, and as a data set of the hub it could not be reached'
    with pytest.raises(ValueError, match=re.escape(want)) as error:
        ids(split="test")  # no note, and not whole in the hub's cache
    assert f"run `hf download {NAME} --repo-type dataset`" in str(error.value) and "\n" not in str(error.value)


def test_a_copy_that_was_downloaded_whole_is_enough(serve, tmp_path):
    from huggingface_hub import snapshot_download

    with serve(SPLITS):
        snapshot_download(NAME, repo_type="dataset")
    assert ids(split="test") == ["c"]


def test_an_interrupted_download_goes_on(serve, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    text = "".join(line(str(n)) for n in range(2000))
    with serve({"train.jsonl": text}, cut={"train.jsonl"}) as asked:
        assert len(ids()) == 2000
    assert any(request.startswith("from ") for request in asked), asked


def test_examples_are_built_of_a_hub_id_with_its_pictures_and_are_the_same_elsewhere(
    serve, tmp_path, llava_dir, picture
):
    data = picture("a.png").read_bytes()
    row = line("a", images=["pictures/a.png"])
    files = {"train.jsonl": row, "test.jsonl": line("b", "A pen."), "pictures/a.png": data}

    def store(path=NAME, cache="cache", **given):
        settings = DataSettings(path=path, workers=1, **given)
        return build(settings, llava_dir, tmp_path / cache, progress=False, report_to=lambda text: None)

    with serve(files) as asked:
        first = store(split="train")
        count = len(asked)
        assert store(split="train").digest == first.digest and len(asked) == count  # found, nothing asked
        mixed = store([{"path": NAME, "weight": 2.0}, {"path": f"hf://datasets/{NAME}/test.jsonl"}], split="train")
    assert [e.source for e in first] == ["train.jsonl:0"] and len(first.images) == 1 and len(mixed) == 3
    assert (tmp_path / "cache" / "hub" / "someone--tiny.json").exists()
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    (tmp_path / "here" / "train.jsonl").write_text(row)
    (tmp_path / "here" / "pictures" / "a.png").write_bytes(data)
    assert store(str(tmp_path / "here"), "another").digest == first.digest


def test_commands_take_a_hub_id(serve, tmp_path, llava_dir):
    run, out = CliRunner().invoke, tmp_path / "out.jsonl"
    where = ["--split", "train", "--revision", "main"]
    with serve(SPLITS):
        result = run(app, ["convert", f"hf://datasets/{NAME}", str(out), *where])
        assert result.exit_code == 0 and [r.value["id"] for r in iterate(out)] == ["a", "b"], result.output
        model = ["--model", str(llava_dir)]
        result = run(app, ["show", NAME, *where, *model, "-n", "1"])
        assert result.exit_code == 0 and "train.jsonl:0" in result.output
        result = run(app, ["check", NAME, *where, *model, "--cache", str(tmp_path / "cache"), "--json"])
        assert json.loads(result.stdout)["examples"] == 2
        result = run(app, ["convert", NAME, str(out), "--split", "dev"])
    assert "has no split" in str(result.exception)


def test_a_cache_that_cannot_be_written_is_told(serve, tmp_path):
    (tmp_path / "notes").write_text("a file, where a folder should be")
    told = []
    with serve({"train.jsonl": line("a")}):
        located([NAME], notes=tmp_path / "notes", tell=told.append)
    assert "cannot be written" in told[0] and "asks anew" in told[0]


def test_a_pinned_path_is_what_a_config_keeps(serve, tmp_path):
    sources = [{"path": NAME, "weight": 2.0}, {"path": str(tmp_path / "a.jsonl")}]
    (tmp_path / "a.jsonl").write_text(line("b"))
    with serve({"train.jsonl": line("a")}):
        one = DataSettings(path=NAME, revision="main").here(tmp_path / "c", lambda text: None)
        two = DataSettings(path=sources).here(tmp_path / "c", lambda text: None)
    assert one.pinned_path() == f"{NAME}@{COMMIT}"
    assert [(s.path, s.weight) for s in two.pinned_path()] == [(f"{NAME}@{COMMIT}", 2.0), (sources[1]["path"], 1.0)]
    again = DataSettings(path=one.pinned_path()).here(tmp_path / "d", lambda text: None)  # a fresh cache, no network
    assert again.roots() == one.roots()
