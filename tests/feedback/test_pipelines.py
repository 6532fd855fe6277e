"""One run a seed, from prompts to a file to train on, by its own preset, in the world that knows the answers."""

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.known import read_records
from mmfast.world import models
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.grammar import errors

KINDS = "object,count,attribute,spatial,scale,text"
ASKING = ("--engine", "world", "--model", "{w}")
CHECK = ("check", "items", "--experts", "world", *ASKING, "-o", "checked")
GRADE = ("grade", "answers", "--items", "items", "--verdicts", "checked", "-o", "graded")
RUNS = {  # the stages behind generate, each by its preset; the last makes the pairs
    "sima": [
        ("critique", "answers", "--preset", "sima", *ASKING, "-o", "critic"),
        ("data", "pairs", "critic", "--rule", "sima"),
    ],
    "mllm_dpo": [
        ("judge", "answers", "--preset", "mllm_dpo", *ASKING, "-o", "judged"),
        ("data", "pairs", "judged", "--rule", "mllm_dpo"),
    ],
    "rlaifv": [
        ("decompose", "answers", "--preset", "rlaifv", *ASKING, "-o", "items"),
        CHECK,
        GRADE,
        ("data", "pairs", "graded", "--rule", "rlaifv"),
    ],
    "dgpref": [
        ("decompose", "answers", "--preset", "dgpref", *ASKING, "-o", "items"),
        CHECK,
        (*GRADE, "--aspects", KINDS),
        ("data", "pairs", "graded", "--rule", "dgpref"),
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=1, groups=1, test=10))


@pytest.mark.parametrize("seed", RUNS)
def test_a_seeds_way_from_prompts_to_pairs(seed, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, [text.format(w=world) for text in arguments])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.output

    run("generate", str(world / "test.jsonl"), "--preset", seed, "--noise", "0.5", *ASKING, "-o", "answers")
    *stages, last = RUNS[seed]
    for command in stages:
        run(*command)
    run(*last, "-o", "pairs.jsonl")
    pairs, scenes = list(read_records("pairs.jsonl")), {scene.name: scene for scene in read_scenes(world)}
    assert len(pairs) >= 3
    for pair in pairs:
        scene = scenes[pair.images[0].rpartition("/")[2].removesuffix(".png")]
        better, worse = (sum(errors(side[0]["content"], scene).values()) for side in (pair.chosen, pair.rejected))
        assert better < worse, (pair.chosen, pair.rejected)
    if seed in ("rlaifv", "dgpref"):
        assert all(
            pair.segments["rejected"] and "chosen" not in pair.segments for pair in pairs if pair.scores["chosen"] == 0
        )
    model = models.tiny_model("llava", tmp_path / "model")
    said = run("data", "check", "pairs.jsonl", "-m", str(model), "--cache", "cache", "--workers", "1")
    assert f"examples: {len(pairs)}" in said
