"""The demo's parts on a small scale: the tower learns to see, a run is launched and followed, the report is written."""

import json

import pytest
import torch

from mmfast import demo
from mmfast.world.base import WarmUp, base_settings, cell_labels, seeing_model
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.evaluate import greedy_captions, load, score
from mmfast.world.grammar import Flaws, caption
from mmfast.world.report import marked, write_report
from mmfast.world.scenes import KINDS, Scene, Thing

SMALL = WorldSpec(seed=2, base=200, pairs=20, groups=2, test=12)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    write_world(path / "world", SMALL)
    accuracy = seeing_model(path / "world", path / "seeing", WarmUp(seed=2, steps=100, scenes=200))
    return path, accuracy


def test_cell_labels_name_kind_and_size():
    scene = Scene("a", "light", (Thing("red", "square", "large", (2, 7)), Thing("orange", "cross", "small", (4,))))
    (labels,) = cell_labels([scene]).tolist()
    assert labels == [0, 0, 2 * KINDS.index(("red", "square")) + 2, 0, 2 * 29 + 1, 0, 0, 2 * 1 + 2, 0]


def test_the_tower_learns_to_see(small):
    assert small[1] > 0.8


def test_a_run_is_launched_followed_and_judged(small):
    path, _ = small
    settings = base_settings(path / "world", path / "seeing", path / "base", steps=3)
    settings["log"]["every"] = 1
    seen = []
    model = demo.launch(settings, path / "base.toml", lambda done, of: seen.append((done, of)), processes=1, threads=1)
    assert seen[-1] == (3, 3) and (path / "base" / "metrics.jsonl").exists()
    before, after = (load(p)[0].state_dict() for p in (path / "seeing", model))
    vision = {name for name in before if "vision_tower" in name}
    assert vision and all(torch.equal(before[name], after[name]) for name in vision)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    scenes = read_scenes(path / "world")
    texts = greedy_captions(*load(model), scenes, max_new_tokens=4)
    assert len(texts) == 12 and score(texts, scenes).captions == 12


def test_the_reason_of_a_failed_run_is_its_own_error():
    torchrun = (
        "E1121 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)\nTraceback\nChildFailed"
    )
    assert demo.reason(f"loading\nerror: model.path 'nowhere' is not there\n{torchrun}") == (
        "error: model.path 'nowhere' is not there"
    )
    crash = "step 1\nTraceback (most recent call last):\nZeroDivisionError: x"
    assert demo.reason(f"{crash}\n{torchrun}").startswith(crash)


def test_the_report_marks_inventions(tmp_path):
    import random

    scenes = read_scenes(write_world(tmp_path / "world", SMALL))
    texts = {
        "base": [caption(s, random.Random(1), Flaws(partner=1.0)).text for s in scenes],
        "ddpo": [caption(s, random.Random(1), Flaws.none()).text for s in scenes],
    }
    scores = {name: score(t, scenes) for name, t in texts.items()}
    page = write_report(tmp_path, scenes, texts, scores, {"base": "before", "ddpo": "after"})
    content = page.read_text()
    assert "<mark>" in content and content.count("<figure>") == 8
    assert (tmp_path / "report.png").stat().st_size > 20_000
    scene = Scene("a", "light", (Thing("red", "square", "large", (2,)),))
    assert marked("a red square & a blue star", scene) == "a red square &amp; a <mark>blue star</mark>"
    json.dumps({name: s.as_dict() for name, s in scores.items()})


def test_the_recipe_is_the_demos():
    from mmfast.config import build as checked
    from mmfast.config import load as read
    from mmfast.recipes import FOLDER
    from mmfast.world.base import align_settings

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_demo(seed, tmp_path):
    """The base model describes well and truly hallucinates; DDPO takes two thirds of that away and costs no recall."""
    scores = demo.demo(tmp_path, seed=seed)
    base, aligned = scores["base"], scores["ddpo"]
    assert base.recall >= 0.9 and base.chair_s >= 0.4
    assert aligned.chair_s <= base.chair_s / 3 and aligned.chair_i <= base.chair_i / 3
    assert aligned.recall >= base.recall - 0.02
