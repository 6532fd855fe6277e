"""The embedded world as a benchmark: the figures of evals/world.py, and its engine's answers score as they should."""

import json

import pytest

from mmfast.engines.base import Request
from mmfast.engines.world import World as Engine
from mmfast.evals.benches.world import World
from mmfast.evals.intervals import intervals
from mmfast.evals.world import score
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from tests.make.marking import Marked, asked

BENCH = World()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(seed=1, base=2, pairs=2, groups=1, test=6))


def answered(folder, noise):
    engine = Engine(folder, noise=noise)
    requests = [
        Request(
            key=q.id,
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.turns[0]}]},),
            images=q.images,
        )
        for q in asked(BENCH, folder)
    ]
    return {reply.key: reply.text for reply in engine.answer(requests)}


def test_the_figures_of_the_demo(folder):
    texts = answered(folder, noise=0.6)
    found = Marked(BENCH, folder, texts)
    scenes = read_scenes(folder)
    wanted = score([texts[scene.name] for scene in scenes], scenes)
    assert {name: found.metrics[name] for name in ("chair_i", "chair_s", "recall", "words")} == {
        name: getattr(wanted, name) for name in ("chair_i", "chair_s", "recall", "words")
    }
    for name, (wrong, claimed) in wanted.claims.items():
        assert found.metrics[f"wrong.{name}"] == (wrong / claimed if claimed else 0)
    told = intervals(found.marks, lambda sums: BENCH.metrics(sums, "official"))
    low, high = told["chair_s"]
    assert low <= found.metrics["chair_s"] <= high


def test_the_truth_hallucinates_nothing(folder):
    told = Marked(BENCH, folder, answered(folder, noise=0.0)).metrics
    assert told["chair_i"] == told["chair_s"] == told["wrong.object"] == 0 and told["recall"] == 1


def test_silence_recalls_nothing(folder):
    texts = dict.fromkeys((q.id for q in asked(BENCH, folder)), " ")
    told = Marked(BENCH, folder, texts).metrics
    assert told["recall"] == told["chair_i"] == told["words"] == 0


def test_what_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"has no annotation.jsonl: world needs a world's annotation"):
        asked(BENCH, tmp_path)
    (tmp_path / "annotation.jsonl").write_text(json.dumps({"name": "x"}) + "\n")
    with pytest.raises(ValueError, match="line 1, is no scene of a world"):
        asked(BENCH, tmp_path)
    lines = (folder / "annotation.jsonl").read_text().splitlines()
    (tmp_path / "annotation.jsonl").write_text("\n".join(line for line in lines if '"test-' not in line) + "\n")
    with pytest.raises(ValueError, match="no held-out pictures"):
        asked(BENCH, tmp_path)
