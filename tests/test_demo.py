"""The demo's parts on a small scale: the tower learns to see, a run is launched and followed, the report is written."""

import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mmfast import demo
from mmfast.evals.world import change, greedy_captions, score
from mmfast.evals.world_report import controls_said, marked, print_tables, write_report
from mmfast.world.base import WarmUp, align_settings, base_settings, cell_labels, seeing_model
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world
from mmfast.world.grammar import Flaws, caption
from mmfast.world.scenes import KINDS, WORDS, Scene, Thing

SMALL = WorldSpec(seed=2, base=200, pairs=20, groups=2, test=12)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    write_world(path / "world", SMALL)
    accuracy = seeing_model(path / "world", path / "seeing", WarmUp(seed=2, steps=100, scenes=200))
    return path, accuracy


def test_cell_labels_name_kind_size_word_place_and_ground():
    things = (Thing("red", "square", "large", (2,), "HI"), Thing("orange", "cross", "small", (4, 7)))
    labels = cell_labels([Scene("a", "light", things), Scene("b", "dark", ())])
    square, cross = 2 * KINDS.index(("red", "square")) + 2, 2 * KINDS.index(("orange", "cross")) + 1
    what, word, place, dark = labels.unbind(-1)
    assert what.tolist() == [[0, 0, square, 0, cross, 0, 0, cross, 0], [0] * 9]
    assert word[0].tolist() == [0, 0, 1 + WORDS.index("HI"), 0, 0, 0, 0, 0, 0]
    assert place.tolist() == [list(range(9))] * 2 and dark.tolist() == [[0] * 9, [1] * 9]


def test_the_tower_learns_to_see(small):
    assert small[1] > 0.8


def test_a_run_is_launched_followed_and_judged(small):
    path, _ = small
    settings = base_settings(path / "world", path / "seeing", path / "base", steps=3)
    settings["log"]["every"] = 1
    seen = []
    model = demo.launch(settings, path / "base.toml", lambda done, of: seen.append((done, of)), processes=1, threads=1)
    assert seen[-1] == (3, 3) and (path / "base" / "metrics.jsonl").exists()
    before, after = (load_file(p / "model.safetensors") for p in (path / "seeing", model))
    vision = {name for name in before if "vision_tower" in name}
    assert vision and all(torch.equal(before[name], after[name]) for name in vision)
    (head,) = (name for name in before if name.endswith("lm_head.weight"))
    assert not torch.equal(before[head], after[head])
    scenes = read_scenes(path / "world")
    texts = greedy_captions(model, scenes, max_tokens=4)
    assert len(texts) == 12 and score(texts, scenes).captions == 12


def test_making_a_model_says_nothing_of_gpu_files_that_others_cannot_load():
    code = "from mmfast.world.models import build; build('llava', layers=1)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stderr == "" and made.stdout == ""


def test_the_reason_of_a_failed_run_is_its_own_error():
    torchrun = (
        "E1121 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)\nTraceback\nChildFailed"
    )
    assert demo.reason(f"loading\nerror: model.path 'nowhere' is not there\n{torchrun}") == (
        "error: model.path 'nowhere' is not there"
    )
    crash = "step 1\nTraceback (most recent call last):\nZeroDivisionError: x"
    assert demo.reason(f"{crash}\n{torchrun}").startswith(crash)


@pytest.fixture
def judged(tmp_path):
    """(scenes, captions, scores, labels, truths) of a model that hallucinates, a cured one and a blind one."""
    scenes = read_scenes(write_world(tmp_path / "world", replace(SMALL, test=120, base=10)))
    truths = [caption(s, random.Random(1), Flaws.none()).text for s in scenes]
    flawed = [caption(s, random.Random(1), Flaws(1.0, 1.0, 1.0, 1.0, 1.0)).text for s in scenes]
    texts = {"base": flawed, "ddpo": [t.replace(".", " and lots of space.") for t in truths], "blind": flawed}
    scores = {name: score(t, scenes) for name, t in texts.items()}
    return scenes, texts, scores, {"base": "before", "ddpo": "DDPO", "blind": "DDPO, blind"}, truths


def test_the_report_marks_inventions_and_words_that_no_truth_has(judged, tmp_path):
    scenes, texts, scores, labels, truths = judged
    page = write_report(tmp_path, scenes, texts, scores, labels, truths, (0.51, 250), ["blind"])
    content = page.read_text()
    assert "<mark>" in content and content.count("<figure>") == 8
    assert "lots of space</mark>" in content and "no truth says it" in content
    assert "51% of 250 held-out pairs" in content and content.count("no improvement") == 1
    assert (tmp_path / "report.png").stat().st_size > 20_000
    scene = Scene("a", "light", (Thing("red", "square", "large", (2,)),))
    assert marked("a red square & a blue star", scene) == "a red square &amp; a <mark>blue star</mark>"
    assert marked("two red squares", scene) == '<mark class="of" title="wrong count">two</mark> red squares'
    assert content.count("<svg") == 3 and "DDPO, blind</text>" in content and 'href="report.png"' in content
    assert "<h2>Training</h2>" not in content  # no run is there
    (tmp_path / "ddpo").mkdir()
    steps = ({"step": n, "tokens_per_s": 1000.0 * n, "pairs_per_s": 20.0, "memory_gib": 0.5} for n in (1, 2, 3))
    (tmp_path / "ddpo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    content = write_report(tmp_path, scenes, texts, scores, labels, truths, (0.51, 250), ["blind"]).read_text()
    told = '<a href="ddpo/report.html">DDPO</a></td><td>3</td><td>20</td><td>2,000</td><td>0.50</td>'
    assert told in content and re.findall(r"https?:|@import|url\(|<link", content) == []
    json.dumps({name: s.as_dict() for name, s in scores.items()})


def test_the_printed_tables_hold_every_kind_of_error_and_the_controls_in_80_columns(judged):
    _, _, scores, labels, _ = judged
    out = io.StringIO()
    print_tables(Console(file=out, width=80), scores, labels, (0.53, 250), ["blind"])
    said = out.getvalue()
    assert all(len(line) <= 80 for line in said.splitlines())
    for heading in ("CHAIR_s", "CHAIR_i", "recall", "words", "objects", "counts", "relations", "colours"):
        assert heading in said
    assert all(f"{wrong}/{claimed}" in said for wrong, claimed in scores["base"].claims.values())
    assert "53% of 250" in said and "a coin" in said and "no improvement" in said


def test_a_control_that_succeeds_is_called_out(judged):
    scenes, texts, scores, labels, truths = judged
    rows = controls_said(scores | {"blind": scores["ddpo"]}, labels, (0.62, 250), ["blind"])
    assert [row[2] for row in rows] == ["the pairs have a tell", "improved unseen"]
    few = score([*truths[:15], *texts["base"][15:]], scenes)  # beyond its interval, and little beside the best run
    rows = controls_said(scores | {"blind": few}, labels, (0.5, 250), ["blind"])
    assert [row[2] for row in rows] == ["a coin", "training moves it"]


def test_every_caption_of_every_model_is_kept(judged, tmp_path):
    scenes, texts, _, _, truths = judged
    demo.write_captions(tmp_path / "captions.jsonl", scenes, texts, truths)
    rows = read_lines(tmp_path / "captions.jsonl")
    assert [row["name"] for row in rows] == [scene.name for scene in scenes]
    assert [row["truth"] for row in rows] == truths
    assert all([row[name] for row in rows] == said for name, said in texts.items())


def test_all_runs_are_valid_and_differ_as_they_say():
    from mmfast.config import build as checked

    made = {}
    for name, one in demo.RUNS.items():
        pairs = "blind.jsonl" if one.blind else "pairs.jsonl"
        made[name] = checked(align_settings("w", "b", f"o/{name}", reference="r", pairs=pairs, **one.settings))
    objective = {name: (c.objective.kind, c.objective.gamma, c.objective.sft_weight) for name, c in made.items()}
    alone = {"ddpo_alone": 2.0, "dpo": 1.0, "blind": 2.0, "blind_dpo": 1.0}
    assert objective == {name: ("dpo", gamma, 0.0) for name, gamma in alone.items()} | {
        "ddpo": ("dpo", 2.0, 0.5), "dpo_sft": ("dpo", 1.0, 0.5), "sft": ("sft", 1.0, 0.0),
    }  # fmt: skip
    assert (
        len({made[name].optim.lr for name in alone}) == len({made[n].optim.lr for n in ("ddpo", "dpo_sft", "sft")}) == 1
    )
    assert {n for n, c in made.items() if c.data.path.endswith("blind.jsonl")} == {"blind", "blind_dpo"}
    for control, twin in {"blind": "ddpo_alone", "blind_dpo": "dpo"}.items():  # that differs in the pictures alone
        assert demo.RUNS[control].settings == demo.RUNS[twin].settings and not demo.RUNS[twin].blind


def test_the_recipe_is_the_demos():
    from mmfast.config import build as checked
    from mmfast.config import load as read
    from mmfast.training.recipes import FOLDER

    here = "runs/demo/seed-0"
    settings = align_settings(f"{here}/world", f"{here}/base/export/hf", "runs/world_ddpo", reference="", **demo.DDPO)
    made, recipe = checked(settings).model_dump(), read(FOLDER / "world_ddpo.toml").model_dump()
    made.pop("about"), recipe.pop("about")
    assert made == recipe


def test_no_more_threads_than_cores(monkeypatch):
    for cores in (1, 2, 3, 8, 64):
        monkeypatch.setattr(demo.os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        processes, threads = demo.layout()
        assert 1 <= processes * threads <= cores
    monkeypatch.setattr(demo.os, "sched_getaffinity", lambda _: {0, 1})
    assert demo.layout() == (2, 1) and demo.layout(1) == (1, 2)


def test_the_demo_without_its_training_leaves_and_prints_all_it_promises(small, tmp_path, monkeypatch):
    """The slow test's quick twin: the world, the captions, the judges and the report are real, the runs are not."""
    path, _ = small
    launched = []

    def launch(settings, config, follow, **_):
        launched.append((settings["output_dir"], settings["data"]["path"]))
        follow(1, 1)
        return path / "seeing"

    monkeypatch.setattr(demo, "WorldSpec", lambda seed: replace(SMALL, seed=seed, base=10, pairs=60))
    monkeypatch.setattr(demo, "make_base", lambda *_: (path / "seeing", True))
    monkeypatch.setattr(demo, "launch", launch)
    monkeypatch.setattr(demo, "layout", lambda _: (1, 1))
    monkeypatch.setattr(demo, "greedy_captions", partial(greedy_captions, max_tokens=4))
    out = io.StringIO()
    found = demo.demo(tmp_path, seed=3, processes=1, console=Console(file=out, width=80))
    said, folder = out.getvalue(), tmp_path / "seed-3"
    assert [Path(run).name for run, _ in launched] == list(demo.RUNS)
    assert [Path(data).name for _, data in launched] == ["pairs.jsonl"] * 5 + ["blind.jsonl"] * 2
    for line in ("world: pictures and captions: ", "the base model is there already", "held-out captions: ddpo: 12/12"):
        assert line in said
    assert "linear judge" in said and "no improvement" in said and "accuracies" not in said
    assert set(found["scores"]) == {"base", *demo.RUNS}
    kept = json.loads((folder / "results.json").read_text())
    assert (
        kept["scores"]["ddpo"] == json.loads(json.dumps(found["scores"]["ddpo"].as_dict()))
        and kept["processor_seconds"] > 0
    )
    assert len(read_lines(folder / "captions.jsonl")) == 12 and (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_demo(seed, tmp_path):
    """The base model describes well and truly hallucinates; DDPO takes two thirds of that away and costs no recall;
    what sees no picture gains little (its interval covers pictures, not the chances of training)."""
    found = demo.demo(tmp_path, seed=seed)
    base, aligned, blind = (found["scores"][name] for name in ("base", "ddpo", "blind"))
    assert base.recall >= 0.88 and base.chair_s >= 0.4
    assert aligned.chair_s <= base.chair_s / 3 and aligned.chair_i <= base.chair_i / 3
    assert aligned.recall >= base.recall - 0.02
    assert change(base, blind)[0] > change(base, aligned)[0] / 4 and found["judge_without_pictures"]["accuracy"] <= 0.6
