"""Whatever is wrong with a paper's models and files is one line that names the thing and the fix; nothing starts."""

from __future__ import annotations

import json
import shlex
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.models.importing import import_model
from mmfast.reproduce import fetch, need, paper
from mmfast.world.dataset import WorldSpec, write_world
from tests.make import stand_ins
from tests.reproduce.test_stand_ins import changes

NAMES = ("dgpref_llava", "rlhfv", "rlaifv")  # transformers' layout, an imported one, LLaVA's own


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


@pytest.fixture(scope="module")
def sound(world, tmp_path_factory):
    """Of each paper a root where all is there, and its description."""
    found = {}
    for name in NAMES:
        root = stand_ins.write_files(name, tmp_path_factory.mktemp(name) / "root", world)
        one = stand_ins.write_models(paper.load_paper(name), root)
        for model in one.models:
            if model.imported:
                import_model(root / model.folder, root / model.imported)
        found[name] = root, one
    return found


@pytest.fixture
def asked(sound, world, tmp_path, monkeypatch):
    """The command on a copy of a sound root, which `change` may spoil."""
    monkeypatch.setattr(need, "memory", lambda *given: 1.0)
    monkeypatch.setattr(need, "tflops", lambda: 1.0)
    monkeypatch.setattr("mmfast.rounds.launch.Machine", None)  # nothing starts

    def ask(name, change=lambda root: None, *more):
        made, one = sound[name]
        root = shutil.copytree(made, tmp_path / "root")
        change(root)
        monkeypatch.setattr(paper, "load_paper", lambda name: one)
        command = ["reproduce", name, *changes(name, world), "--root", str(root), *more]
        return root, CliRunner().invoke(app, command)

    return ask


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_root_is_told_to_be_one(name, asked):
    root, said = asked(name, lambda root: None, "--check")
    assert said.exit_code == 0 and "MISSING" not in said.output and "disk: up to" in said.output, said.output
    assert not (root / "runs").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another(root):
    """A whole model of other sizes, in this one's place."""
    folder = root / "models/llava-1.5-7b-hf"
    shutil.rmtree(folder)
    stand_ins.qwen25_vl(folder)


def without_bytes(root):
    (file,) = (root / "data/RLHF-V-Dataset").iterdir()
    rows = pq.read_table(file).to_pylist()
    rows[3]["image"]["bytes"] = None
    pq.write_table(pa.Table.from_pylist(rows), file)


def of_rlaifv(root):
    """Another data set's file."""
    (file,) = (root / "data/RLHF-V-Dataset").iterdir()
    row = {"question": "What?", "chosen": "A.", "rejected": "B.", "image": {"bytes": b"x", "path": "a.jpg"}}
    pq.write_table(pa.Table.from_pylist([row]), file)


def renamed(root):
    graphs = root / "data/GQA/train_sceneGraphs.json"
    graphs.write_text(graphs.read_text().replace('"objects"', '"things"'))


HF, MUFFIN, NATIVE = "models/llava-1.5-7b-hf", "models/RLHF-V-SFT", "models/llava-v1.5-7b"
SHARD, FIRST = "pytorch_model-00002-of-00002.bin", "pytorch_model-00001-of-00003.bin"
WRONG = {
    "a missing shard": (
        "dgpref_llava", lambda root: (root / HF / "model-00002-of-00003.safetensors").unlink(),
        "is not whole: model-00002-of-00003.safetensors, which its index names, is missing", "hf download llava-hf",
    ),
    "a cut shard": (
        "dgpref_llava", lambda root: cut(root / HF / "model-00003-of-00003.safetensors"),
        "model-00003-of-00003.safetensors is damaged or cut short", "hf download llava-hf/llava-1.5-7b-hf",
    ),
    "another model's weights": (
        "dgpref_llava", another, "is not llava-hf/llava-1.5-7b-hf: it has 512 words", "hf download llava-hf",
    ),
    "a missing pickle": (
        "rlaifv", lambda root: (root / NATIVE / SHARD).unlink(),
        f"is not whole: {SHARD}", "hf download liuhaotian",
    ),
    "a cut pickle": (
        "rlaifv", lambda root: cut(root / NATIVE / SHARD), f"{SHARD} is damaged", "hf download liuhaotian",
    ),
    "no tower": (
        "rlaifv", lambda root: shutil.rmtree(root / "models/clip-vit-large-patch14-336"),
        "clip-vit-large-patch14-336 is missing (licence: ", "hf download openai/clip-vit-large-patch14-336",
    ),
    "a cut tower": (
        "rlaifv", lambda root: cut(root / "models/clip-vit-large-patch14-336/pytorch_model.bin"),
        "pytorch_model.bin is damaged or cut short", "hf download openai/clip",
    ),
    "no import": (
        "rlhfv", lambda root: shutil.rmtree(root / f"{MUFFIN}-imported"), "has to be imported", "mmfast import",
    ),
    "a cut import": (
        "rlhfv", lambda root: cut(next(iter((root / f"{MUFFIN}-imported").glob("*.safetensors")))),
        "is damaged or cut short", "rm -r",
    ),
    "a cut pickle before its import": (
        "rlhfv",
        lambda root: (shutil.rmtree(root / f"{MUFFIN}-imported"), cut(root / MUFFIN / FIRST)),
        f"{FIRST} is damaged", "hf download Yirany/RLHF-V-SFT",
    ),
    "images that are not there": (
        "dgpref_llava", lambda root: [one.unlink() for one in (root / "data/VisualGenome/VG_100K").iterdir()],
        "the picture is not in", "curl -L",
    ),
    "rows without their images": ("rlhfv", without_bytes, "1 of its rows hold no picture", "hf download openbmb"),
    "another header": ("dgpref_llava", renamed, "has no column objects (it has width, height, things)", "curl -L"),
    "another data set": ("rlhfv", of_rlaifv, "has no column ds_name", "hf download openbmb/RLHF-V-Dataset"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_with_its_fix_and_nothing_starts(what, asked):
    name, change, told, fix = WRONG[what]
    root, said = asked(name, change)
    assert isinstance(said.exception, ValueError), said.output
    line = str(said.exception)
    assert line.startswith("1 of ") and told in line and "\n" not in line, line
    lines = said.output.splitlines()
    at = next(n for n, text in enumerate(lines) if text.startswith("MISSING"))
    assert told in lines[at] and lines[at + 1].strip().startswith(fix), lines[at : at + 2]
    assert not (root / "runs").exists()


def test_the_line_for_a_damaged_import_mends_it(asked):
    root, said = asked("rlhfv", WRONG["a cut import"][1])
    (fix,) = [text.strip() for text in said.output.splitlines() if text.strip().startswith("rm -r")]
    remove, _, command = fix.partition(" && ")
    shutil.rmtree(shlex.split(remove)[2])
    made = CliRunner().invoke(app, shlex.split(command)[1:])
    assert made.exit_code == 0, made.output
    one = paper.load_paper("rlhfv").models[0]
    assert fetch.weights.tried(one, root / one.used)[1] == ""


def test_a_fetch_whose_licence_is_not_accepted_is_one_line(asked):
    def gone(root):
        shutil.rmtree(root / HF)

    root, said = asked("dgpref_llava", gone, "--fetch")
    assert "--fetch needs --accept-licences" in str(said.exception) and "llava-hf" in str(said.exception)
    assert "\n" not in str(said.exception) and not (root / HF).exists() and not (root / "runs").exists()


def test_a_fetch_does_not_begin_where_a_damaged_import_would_stop_it(asked):
    root, said = asked("rlhfv", WRONG["a cut import"][1], "--fetch", "--accept-licences")
    assert f"{root / MUFFIN}-imported is no whole Yirany/RLHF-V-SFT: remove it" in str(said.exception)


def test_what_is_published_whole_is_imported_without_a_fetch(asked, monkeypatch):
    fetched = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **more: fetched.append(name))
    root, said = asked("rlhfv", WRONG["no import"][1], "--fetch", "--accept-licences", "--check")
    assert said.exit_code == 0 and fetched == ["openbmb/RLHF-V-Dataset"]  # of whose rows only ten are there
    assert json.loads((root / f"{MUFFIN}-imported" / "config.json").read_text())["image_token_id"]


def test_a_disk_too_small_for_the_run_is_said_before_it_starts(asked, monkeypatch):
    monkeypatch.setattr(need.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1 << 20))
    root, said = asked("dgpref_llava")
    assert "GiB free, and the run may write" in str(said.exception) and "\n" not in str(said.exception)
    assert not (root / "runs").exists()
