"""The four papers in miniature: what methods.py says fits together, what is made of answers is what it says, and the
whole driver at a tiny scale, stopped and started again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from mmfast import world
from mmfast.cli.app import app
from mmfast.config import build
from mmfast.engines.world import World
from mmfast.evals.world import TALLY, change, score
from mmfast.papers import data, results, run, work
from mmfast.papers.methods import BLIND, FILES, METHODS, STEPS, Made, Method, Scale, Step
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world
from mmfast.world.grammar import claims

TINY = Scale(scenes=60, pairs=40, pictures=12, seeing=20, base=3, prompts=40, steps=2, per_step=4)
WORLD = "7b60b7840d12"  # of what draws scenes, captions, flaws and the base, as WORLD_COMMIT left it


def test_the_world_is_the_one_that_methods_names():
    """Whoever changes it measures another world: a new WORLD_COMMIT, and every row anew."""
    files = [Path(world.__file__).parent / f"{name}.py" for name in ("base", "dataset", "grammar", "scenes")]
    told = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    assert told == WORLD


def test_every_method_stands_beside_a_control_that_differs_in_the_pictures_alone():
    for name, one in METHODS.items():
        if one.blind or one.system == "base":
            assert not one.control
            continue
        twin = METHODS[one.control]
        start = one.start and one.start + BLIND
        assert twin == replace(one, name=name + BLIND, label=twin.label, blind=True, control="", start=start)
    assert {one.of for one in METHODS.values()} - {""} == {one.name for one in FILES}, "a file that nothing reads"
    read = {one.of for one in (*FILES, *STEPS)} - {""}
    assert read == {one.name for one in STEPS}, "a step that nothing reads"


def test_gamma_alone_differs_within_each_five():
    for how in ("sum", "average", "sft"):
        five = [METHODS[f"rlhfv-{how}-{gamma}"].settings for gamma in range(1, 6)]
        assert [settings["gamma"] for settings in five] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert len({json.dumps(dict(settings) | {"gamma": 0}) for settings in five}) == 1


def test_every_piece_comes_behind_what_it_reads_and_every_config_is_valid(tmp_path):
    pieces, seen = run.pieces_of(tmp_path, 3, Scale()), set()
    for name, piece in pieces.items():
        assert set(run.reads(piece.what)) <= seen
        seen.add(name)
        if isinstance(piece.what, Method) and piece.what.system != "base":
            config = build(work.settings_of(piece))
            assert config.data.path.endswith(BLIND + ".jsonl") == piece.what.blind
            assert config.seed == 3 and config.train.steps == Scale().steps and not config.data.eval_path
    assert len(pieces) == len(METHODS) + len(STEPS) + len(FILES)


def test_a_stamp_changes_with_settings_and_with_what_is_read(tmp_path, monkeypatch):
    before = {name: piece.stamp for name, piece in run.pieces_of(tmp_path, 0, TINY).items()}
    step = next(one for one in STEPS if one.name == "sima-answers-1")
    changed = replace(step, options=dict(step.options) | {"seed": 7})
    monkeypatch.setattr(run, "STEPS", tuple(changed if one is step else one for one in STEPS))
    after = {name: piece.stamp for name, piece in run.pieces_of(tmp_path, 0, TINY).items()}
    moved = {name for name in before if before[name] != after[name]}
    assert {"step sima-answers-1", "made sima-self-pairs-1", "method sima-self-2", "step sima-self-answers-2"} <= moved
    assert all("sima" in name for name in moved)
    assert before != {name: piece.stamp for name, piece in run.pieces_of(tmp_path, 1, TINY).items()}


# what is made of answers


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A seed's folder whose answers come from the world, a third of them wrong: every step is made."""
    folder = tmp_path_factory.mktemp("papers")
    write_world(folder / "world", WorldSpec(seed=5, base=10, pairs=40, groups=1, test=4))
    data.write_prompts(folder, folder / "world", replace(TINY, scenes=10), 5)
    patch = pytest.MonkeyPatch()
    patch.setattr(data, "answerer", lambda model, runtime: World(folder / "world", noise=0.35))
    for step in STEPS:
        if step.name.startswith(("mllm", "dgpref", "rlaifv")) and not step.name.endswith("-2"):
            data.take(step, folder, folder, 5)
    patch.undo()
    return folder


def named(name: str) -> Made:
    return next(one for one in FILES if one.name == name)


def test_prompts_are_pictures_that_the_base_never_described_each_with_its_truth(asked):
    rows, scenes = read_lines(asked / "prompts.jsonl"), {s.name: s for s in read_scenes(asked / "world", "train")}
    taught = {row["images"][0] for row in read_lines(asked / "world" / "base.jsonl")}
    assert len(rows) == 40 and not {row["images"][0].removeprefix("world/") for row in rows} & taught
    for row in rows:
        (said,) = score([row["chosen"][0]["content"]], [scenes[row["id"]]]).counted
        assert said[TALLY.index("absent")] == 0 and said[TALLY.index("recalled")] == said[TALLY.index("present")]
    with pytest.raises(ValueError, match="prompts = 41"):
        data.write_prompts(asked, asked / "world", replace(TINY, prompts=41), 5)


@pytest.mark.parametrize("name", [one.name for one in FILES if not one.name.startswith("sima") and one.of[-2:] != "-2"])
def test_a_file_and_its_blind_twin_differ_in_the_pictures_alone(asked, name):
    told = data.make(named(name), asked, 5)
    rows, blind = (read_lines(asked / "data" / f"{name}{end}.jsonl") for end in ("", BLIND))
    assert len(rows) == len(blind) == told["rows"] > 0
    other: dict[str, str] = {}
    for row, twin in zip(rows, blind, strict=True):
        assert {**row, "images": 0} == {**twin, "images": 0}
        assert other.setdefault(row["images"][0], twin["images"][0]) == twin["images"][0] != row["images"][0]
        assert (asked / "data" / twin["images"][0]).is_file()
    assert set(other) == set(other.values())
    assert ("words_rejected" in told) == ("rejected" in rows[0]) and told["words_chosen"] > 1


def test_what_is_missed_takes_part_in_the_choice(asked):
    """Of two answers without a fault the one that names more is chosen, which errors alone do not see."""
    data.make(named("rlaifv-pairs-recall"), asked, 5)
    data.make(named("rlaifv-pairs-1"), asked, 5)
    scenes = {scene.name: scene for scene in read_scenes(asked / "world", "train")}

    def missed(row, side):
        scene = scenes[Path(row["images"][0]).stem]
        content = row[side][-1]["content"]
        return len(scene.kinds - set(claims(content if isinstance(content, str) else content[-1]["text"]).kinds))

    for row in read_lines(asked / "data" / "rlaifv-pairs-recall.jsonl"):
        scores = row["scores"]
        assert scores["chosen"] - scores["rejected"] >= 1 and scores["chosen"] <= -missed(row, "chosen")


def test_all_of_one_picture_makes_no_control():
    row = {"images": ["a.png"], "prompt": [], "chosen": []}
    with pytest.raises(data.Nothing, match="one picture"):
        data.passed_round([row, row], 0)


def test_a_file_of_nothing_says_why(asked):
    empty = Made(name="none", make="sft", of="mllm-dpo-judged", options={"score": "Helpfulness", "minimum": 99.0})
    with pytest.raises(data.Nothing, match="none: nothing is left to write"):
        data.make(empty, asked, 5)


# the whole


def everything(folder: Path) -> dict:
    return json.loads((folder / "papers.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The driver, whole, in this process. A base of three steps says nothing: the world answers in its place."""
    out = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr(data, "answerer", lambda model, runtime: World(out / "seed-4" / "world", noise=0.35))
    short = [one for one in METHODS.values() if one.name.startswith(("base", "mllm-dpo-hindsight", "sima-oracle"))]
    short = [one for one in short if "sft" not in one.name]
    patch.setattr(run, "METHODS", {one.name: one for one in short})
    patch.setattr(results, "METHODS", {one.name: one for one in short})
    names = {one.of for one in short}
    files = tuple(one for one in FILES if one.name in names)
    steps = tuple(one for one in STEPS if one.name.startswith(("mllm", "sima-answers", "sima-oracle")))
    patch.setattr(run, "FILES", files)
    patch.setattr(run, "STEPS", steps)
    console = Console(file=(out / "said.txt").open("w"), width=200)
    run.papers(out, seed=4, workers=1, scale=TINY, console=console)
    yield out / "seed-4", short, console
    patch.undo()


@pytest.mark.slow
def test_papers_json_holds_what_the_contract_says(done):
    folder, short, _ = done
    value = everything(folder)
    assert value["complete"] and value["seed"] == 4 and value["without"] == {}
    assert list(value["methods"]) == [one.name for one in short]
    for name, row in value["methods"].items():
        assert row["label"] == METHODS[name].label and row["control"] == METHODS[name].control
        assert (row["pairs"] > 0) == (row["words_chosen"] is not None) == (row["system"] != "base")
        counted = np.load(folder / row["counted"])
        assert counted.shape == (12, len(TALLY)) and row["score"]["captions"] == 12
        assert row["score"]["recall"] == pytest.approx(counted[:, 4].sum() / counted[:, 5].sum())
    assert (
        value["methods"]["sima-oracle-1"]["made"]["answers"]
        == 2 * value["methods"]["sima-oracle-1"]["made"]["prompts"]
        > 0
    )
    cost = sum(row["processor_seconds"] for row in value["methods"].values())
    assert 0 < cost < value["processor_seconds"] and {"world", "base model", "mllm-dpo-judged"} <= set(value["steps"])
    rows = read_lines(folder / "captions.jsonl")
    assert len(rows) == 12 and set(rows[0]) == {"name", "truth", *value["methods"]}
    texts = [row["base"] for row in rows]
    assert score(texts, read_scenes(folder / "world")).as_dict()["words"] == value["methods"]["base"]["score"]["words"]
    assert change(*(score(texts, read_scenes(folder / "world")),) * 2)[0] == 0


@pytest.mark.slow
def test_started_again_it_keeps_what_stands_and_makes_what_is_gone(done, monkeypatch):
    folder, _, console = done
    before, worked = everything(folder), []
    real = work.do
    monkeypatch.setattr(work, "do", lambda piece: worked.append(piece.what.name) or real(piece))
    run.papers(folder.parent, seed=4, workers=1, scale=TINY, console=console)
    assert worked == [] and everything(folder)["methods"] == before["methods"]
    # A file that is gone, a note that a kill tore
    (folder / "sima-oracle-1-blind" / "export").rename(folder / "gone")
    (folder / "notes" / "mllm-dpo-hindsight-method.json").write_text('{"stamp": "')
    for left in (folder / "sima-oracle-1-blind", folder / "notes" / "sima-oracle-1-blind-method.json"):
        __import__("shutil").rmtree(left) if left.is_dir() else left.unlink()
    run.papers(folder.parent, seed=4, workers=1, scale=TINY, console=console)
    assert sorted(worked) == ["mllm-dpo-hindsight", "sima-oracle-1-blind"]
    again = everything(folder)["methods"]
    assert {name: row["score"] for name, row in again.items()} == {n: r["score"] for n, r in before["methods"].items()}


def alive(number: str) -> bool:
    """A process that ended and that nobody has asked for has no command line."""
    try:
        return bool(Path(f"/proc/{number}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.mark.slow
def test_what_leaves_nothing_to_train_on_is_left_out_and_said(tmp_path):
    """A base of three steps says nothing that can be judged: the corrections alone are trained on. Killed in the middle
    and started again by the command itself."""
    code = (
        "from mmfast.papers.run import papers; from mmfast.papers import run, results; from tests.papers.test_papers "
        "import TINY, METHODS\nif __name__ == '__main__':\n"
        "    few = {n: m for n, m in METHODS.items() if n.startswith(('base', 'rlhfv-sum-1', 'rlaifv-1'))}\n"
        "    run.METHODS = results.METHODS = few\n"
        "    run.FILES = tuple(f for f in run.FILES if f.name in {m.of for m in few.values()})\n"
        "    run.STEPS = tuple(s for s in run.STEPS if s.name[:7] == 'rlaifv-' and s.name[-1] == '1')\n"
        f"    papers({str(tmp_path)!r}, seed=4, workers=2, scale=TINY)\n"
    )
    script = tmp_path / "drive.py"
    script.write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.DEVNULL)
    note, deadline = tmp_path / "seed-4" / "notes" / "base-method.json", time.monotonic() + 300
    while not note.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(alive(number) for number in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline, "a worker outlives the command"
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    value = everything(tmp_path / "seed-4")
    assert value["complete"] and {"base", "rlhfv-sum-1", "rlhfv-sum-1-blind"} == set(value["methods"])
    assert "rlaifv-1" in value["without"] and "rlaifv-1 is left out:" in ended.stdout


def test_the_command_runs_the_short_demo_or_the_papers(monkeypatch):
    ran = []
    monkeypatch.setattr("mmfast.demo.demo", lambda out, **more: ran.append(("demo", out, more)))
    monkeypatch.setattr(run, "papers", lambda out, **more: ran.append(("papers", out, more)))
    for line in ("demo", "demo --papers --seed 21 --processes 3", "demo --papers --out x"):
        assert CliRunner().invoke(app, line.split()).exit_code == 0
    assert ran == [
        ("demo", "runs/demo", {"seed": 0, "processes": 0}),
        ("papers", "runs/papers", {"seed": 21, "workers": 3}),
        ("papers", "x", {"seed": 0, "workers": 0}),
    ]


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="seed = -1"):
        run.papers(tmp_path, seed=-1)


def test_what_is_made_anew_leaves_no_reference_of_before(tmp_path):
    for name in ("base+corrections", "base+corrections-blind", "sima-self-1+sima-self-pairs-2", "base+rlaifv-pairs-1"):
        (tmp_path / "reference" / name).mkdir(parents=True)

    def left(what):
        work._forget(work.Piece(what=what, folder=tmp_path, seed=0, scale=TINY, stamp="s"))
        return sorted(path.name for path in (tmp_path / "reference").iterdir())

    assert left(named("corrections")) == ["base+rlaifv-pairs-1", "sima-self-1+sima-self-pairs-2"]
    assert left(METHODS["sima-self-1"]) == ["base+rlaifv-pairs-1"] and left(STEPS[0]) == ["base+rlaifv-pairs-1"]
    assert left(METHODS["base"]) == []


def test_a_step_names_the_folder_and_the_log_where_it_fails(tmp_path):
    piece = work.Piece(
        what=Step(name="judged", do="judge", of="nowhere"), folder=tmp_path, seed=0, scale=TINY, stamp="s"
    )
    with run._Workers(1) as pool, pytest.raises(ValueError, match=r"^judged: .*logs/judged\.log"):
        run._ended(pool.begin(piece), piece)
