"""The recipes of whole systems, each on a folder of that system's own files: their prompts are read, their commands are
said as they would run, their evaluation is one that can be scored; and whole at toy scale."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from mmfast.cli import eval as commands
from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.config import load as load_training
from mmfast.engines.asked import read_asked
from mmfast.engines.presets import planned
from mmfast.evals.answering import PRESETS, worded
from mmfast.evals.benches import bench as bench_of
from mmfast.job.opening import Job
from mmfast.job.runtime import Runtime
from mmfast.rounds import loop, report
from mmfast.rounds.settings import MAKERS, STAGES, load, training_of
from mmfast.training.recipes import FOLDER
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.make import published
from tests.make.system_files import PAPERS, write_system
from tests.rounds.crews import Inside

ROOT = get_command(app)
KNOWN = {name: options_of(ROOT, name) for name in ("generate", "eval", *STAGES, *MAKERS)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


@pytest.fixture(scope="module")
def systems(tmp_path_factory, world):
    home = tmp_path_factory.mktemp("systems")
    return {name: write_system(name, home / name, world) for name in PAPERS}


def recipe(name):
    return FOLDER / f"rounds_{name}.toml"


def overrides(given):
    return [f"{key}={value}" for key, value in given.items()]


def shown(name):
    """The commands that a recipe's comments show, after `mmfast rounds FILE`."""
    found = re.findall(r"^#   mmfast rounds \S+ (.+)$", recipe(name).read_text(), re.M)
    return [shlex.split(line) for line in found]


def test_every_whole_system_is_here():
    assert {f"rounds_{name}" for name in PAPERS} == {path.stem for path in FOLDER.glob("rounds_*.toml")}


@pytest.mark.parametrize("name", PAPERS)
def test_its_prompts_are_its_own_files(name, systems, world):
    given, asked = systems[name], load(recipe(name), [], KNOWN)
    plan = planned(str(asked.generate.options.get("preset", "")))
    rows = list(read_asked(given["prompts.path"], only_images=bool(plan.wordings), root=given.get("prompts.images")))
    pairs = (world / "pairs.jsonl").read_text().count("\n")
    assert len(rows) == pairs and not [row.problem for row in rows if row.problem]
    assert all(len(row.images) == 1 for row in rows)
    if "prompts.images" in given:
        assert all((given["prompts.images"] / row.images[0]).is_file() for row in rows)
    if name == "sima":  # the critic is shown the ground truth
        assert all(row.meta["reference"] for row in rows)


PREVIEW = {"ds_name": "d", "origin_dataset": "d", "origin_split": "{}", "idx": 7, "image_path": "a.jpg"}
TEXTS = {"question": "What?", "chosen": "A.", "rejected": "B."}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("row", [
    PREVIEW | {"text": json.dumps(TEXTS)}, PREVIEW | {"text": json.dumps(TEXTS), "image": None}, PREVIEW | TEXTS,
    {"image": "a.jpg", "text": "What?", "ground_truth": "A."}, {"question_id": 3, "image": "a.jpg", "text": "What?"},
    {"question_id": 3, "image": "a.jpg", "text": "<image>\nWhat?", "category": "default"},
    {"image": "a.jpg", "question": {"from": "human", "value": "<image>\nWhat?"},
     "chosen": {"from": "gpt", "value": "A."}, "rejected": {"from": "gpt", "value": "B."}},
])  # fmt: skip
def test_rows_of_a_system_in_another_container_ask_the_same(row, suffix, tmp_path):
    file = tmp_path / f"rows.{suffix}"
    file.write_text(json.dumps([row] if suffix == "json" else row) + "\n")
    (one,) = read_asked(file)
    assert not one.problem and one.images == ("a.jpg",)
    assert one.messages[-1]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]


def drawn_by(name):
    """The commands that a recipe's head names for its prompts, and the overrides that take them."""
    text = recipe(name).read_text()
    (overrides,) = re.findall(r"^# .*\(docs/pipelines\.md.*, with (.+):$", text, re.M)
    return re.findall(r"^#   (mmfast data prompts .+)$", text, re.M), overrides.split()


SOURCES = {  # a published file as the heads name it -> our stand-in, and the folder of its images
    "llava_instruct_150k.json": (published.llava_150k, {"train2017": "coco/train2017"}),
    "filter_cap1.json": (published.lrv, {"vg": "lrv_image_folder"}),
    "SciGraphQA-295K-train/data": (published.scigraphqa, {"figures": "scigraph"}),
    "GQA/train_sceneGraphs.json": (published.gqa, {}),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_prompts_of_a_head_are_drawn_and_read(name, systems, tmp_path, monkeypatch):
    commands, more = drawn_by(name)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = shlex.split(command)
        if words[3] in SOURCES:
            make, moved = SOURCES[words[3]]
            found = make(tmp_path)
            if found.name != Path(words[3]).name:
                (tmp_path / words[3]).mkdir(parents=True)
                found.rename(tmp_path / words[3] / found.name)
            for folder, place in moved.items():
                (tmp_path / place).parent.mkdir(exist_ok=True)
                (tmp_path / folder).rename(tmp_path / place)
        else:
            (tmp_path / words[3]).symlink_to(systems[name]["prompts.path"])
        # As many as a stand-in has: 3000 rows and 17,000 prompts are not there
        few = {"--take": "2", "--rows": "0:3"}
        words = [few.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        ended = CliRunner().invoke(app, words[1:])
        assert ended.exit_code == 0, (command, ended.output, ended.exception)
    asked = load(recipe(name), more, KNOWN)
    plan = planned(str(asked.generate.options.get("preset", "")))
    rows = list(read_asked(Path(asked.prompts.path), only_images=bool(plan.wordings)))
    assert len(rows) >= 2 * len(commands) and not [row.problem for row in rows if row.problem]
    home = Path(asked.prompts.path)
    home = home if home.is_dir() else home.parent
    assert not asked.prompts.images and not asked.prompts.limit
    assert all((home / image).is_file() for row in rows for image in row.images)
    assert len({row.id for row in rows}) == len(rows)


def test_dgprefs_images_are_prompts_without_their_scene_graphs_too(systems):
    folder = systems["dgpref_llava"]["prompts.images"]
    graphs = read_asked(systems["dgpref_llava"]["prompts.path"], only_images=True, root=folder)
    found = [(folder / row.images[0]).resolve() for row in read_asked(folder, only_images=True)]
    assert sorted(found) == sorted((folder / row.images[0]).resolve() for row in graphs) and len(found) > 1


@pytest.mark.parametrize("name", PAPERS)
def test_a_dry_run_says_the_commands_on_its_files(name, systems, tmp_path):
    given = [*overrides(systems[name]), f"output_dir={tmp_path}"]
    said = CliRunner().invoke(app, ["rounds", str(recipe(name)), "--dry-run", *given])
    assert said.exit_code == 0, said.output
    asked = load(recipe(name), given, KNOWN)
    commands = [shlex.split(line) for line in said.output.splitlines() if not line.startswith("#")]
    assert len(commands) == 1 + asked.rounds.count * (4 + len(asked.feedback))
    assert str(systems[name]["prompts.path"]) in commands[1]
    for words in commands:  # each is understood by the command that it names
        assert words[0] == "mmfast"
        found, rest = ROOT, words[1:]
        while getattr(found, "commands", None):
            found, *rest = found.commands[rest[0]], *rest[1:]
        found.make_context(words[1], rest)


@pytest.mark.parametrize("name", PAPERS)
def test_it_says_whom_it_follows_and_where_it_departs(name):
    text = recipe(name).read_text()
    assert re.search(r"^# Follows: .*arXiv \d{4}\.\d{5}; github\.com/\S+", text, re.M)
    assert len(re.findall(r"^#   \S", re.split(r"\n# \S", text.partition("# Departs:")[2])[0], re.M)) >= 3


@pytest.mark.parametrize("name", PAPERS)
def test_its_evaluation_can_be_asked_and_scored(name):
    asked = load(recipe(name), [], KNOWN)
    options = asked.scoring.options
    flavours = commands._each(asked.evaluate.bench, options.get("flavour", ""), "--flavour", "flavours")
    wordings = commands._each(asked.evaluate.bench, options.get("wording", ""), "--wording", "wordings")
    commands._check_scoring(flavours, False, options.get("judge", ""), 1)
    assert options["preset"] in PRESETS and all(worded(bench_of(one), wordings[one]) for one in asked.evaluate.bench)
    bench, _, metric = asked.best.partition(".")
    known = bench_of(bench).metrics(defaultdict(lambda: 1.0), flavours[bench] or bench_of(bench).flavours[0])
    assert metric in known, known
    # The line that leaves the judge out stands as it is
    judgeless = re.search(r"^# Without a judge.*?: (evaluate\.bench=.*)$", recipe(name).read_text(), re.M)
    without = load(recipe(name), judgeless[1].split(), KNOWN)
    own = without.scoring.options
    assert "judge" not in own and without.best.partition(".")[0] in without.evaluate.bench
    flavours = commands._each(without.evaluate.bench, own.get("flavour", ""), "--flavour", "flavours")
    commands._each(without.evaluate.bench, own.get("wording", ""), "--wording", "wordings")
    for one in without.evaluate.bench:
        assert not bench_of(one).judge or flavours[one] == "rules" or one == "mmbench"


SAME = ["model.path", "model.lora", "model.freeze", "data.aspect", "data.template", "data.max_length", "data.max_words"]
SAME += ["optim", "objective", "train.pairs_per_step", "train.shuffle", "train.checkpoint_every", "train.keep_last"]
OF_ONE = {
    "sima": "sima", "mllm_dpo": "mllm_dpo", "dgpref_llava": "dgpref_llava", "dgpref_qwen": "dgpref_qwen",
    "rlaifv": "rlaifv_full", "rlhfv": "rlhfv_paper",
}  # fmt: skip


def value(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def training(name, *more):
    from mmfast.config import build

    asked = load(recipe(name), more, KNOWN)
    return build(training_of(asked, asked.base, ["pairs.jsonl"] * len(asked.pairs), FOLDER / "run"))


@pytest.mark.parametrize("name", PAPERS)
def test_it_trains_as_the_recipe_of_its_training(name):
    whole, one = training(name), load_training(FOLDER / f"{OF_ONE[name]}.toml")
    for key in SAME:
        assert value(whole, key) == value(one, key), key


def test_our_model_answers_with_the_template_and_images_of_its_training():
    for name in PAPERS:
        asked = load(recipe(name), [], KNOWN)
        data = asked.training["data"]
        for one in (
            asked.generate,
            asked.scoring,
            *(f for f in asked.feedback if f.options.get("model") == "current"),
        ):
            assert one.options["dtype"] == "bfloat16"
            if asked.generate.options["model"] == "current":
                assert one.options["template"] == data["template"], (name, one.name)
            # RLAIF-V alone trains on cropped images and asks about padded ones
            if name != "dgpref_qwen":
                assert one.options["aspect"] == "pad", (name, one.name)


def test_rlhfv_sums_as_it_averages_and_takes_published_corrections():
    summed, published, both = shown("rlhfv")
    whole, release = training("rlhfv", *summed), load_training(FOLDER / "rlhfv_release.toml")
    for key in SAME:
        assert value(whole, key) == value(release, key), key
    assert training("rlhfv").objective.average and not whole.objective.average
    # The published file alone, and beside people's own
    for more, names, files in (
        (published, ["run", "eval"], "RLHF-V-Dataset"),
        (both, ["answers", "correct", "pairs", "run", "eval"], ["01/pairs.jsonl", "RLHF-V-Dataset"]),
    ):
        steps = [step for step in loop.steps_of(load(recipe("rlhfv"), more, KNOWN)) if step.round == 1]
        assert [step.name for step in steps] == names
        path = next(step for step in steps if step.name == "run").config["data"]["path"]
        found = path if isinstance(path, str) else [one["path"].rpartition("rounds/")[2] for one in path]
        assert found == files


# whole, at toy scale

TOY = {
    "model.dtype": "float32", "data.workers": 0, "optim.lr": 1e-3, "optim.warmup": 0, "train.steps": 2,
    "train.pairs_per_step": 2, "train.tokens_per_pack": 2000, "train.checkpoint_every": 0, "data.max_length": 2000,
    "parallel.threads": 1, "parallel.activation_checkpointing": "false", "log.progress": "false",
    "log.every": 1, "prompts.limit": 8, "evaluate.bench": "world",
    "evaluate.best": "world.chair_s",
    "evaluate.limit": 2, "evaluate.preset": "", "evaluate.flavour": "", "evaluate.wording": "", "evaluate.judge": "",
    "evaluate.judge_model": "",
}  # fmt: skip
# What stands for servers, other models and people: the world's annotation, wrong as often as said
FEEDBACK = {
    "sima": ['feedback=[{stage="critique", engine="world", model="W", preset="sima", noise=0.6}]',
             'pairs=[{rule="sima", keep_cut=true}]', "generate.max_tokens=12"],
    "mllm_dpo": ['feedback=[{stage="judge", engine="world", model="W", preset="mllm_dpo", noise=0.5}]',
                 "generate.engine=world", "generate.model=W",
                 "generate.noise=0.5"],
    "dgpref_llava": ['feedback=[{stage="decompose", engine="world", model="W", preset="dgpref"}, '
                     '{stage="check", experts="world", engine="world", model="W"}, '
                     '{stage="grade", aspects="object,count,attribute,spatial,scale,text"}]',
                     "generate.engine=world", "generate.model=W", "generate.noise=0.5"],
    "rlaifv": ['feedback=[{stage="decompose", engine="world", model="W", preset="rlaifv"}, '
               '{stage="check", experts="rlaifv", engine="world", model="W"}, {stage="grade"}]', "rounds.count=2",
               "generate.engine=world", "generate.model=W", "generate.noise=0.5", "generate.aspect=",
               "rounds.keep=last", "rounds.stop=never"],
    "rlhfv": ["prompts={}", "generate={}", "feedback=[]"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEEDBACK])
def test_it_runs_whole_at_toy_scale(name, systems, world, tmp_path):
    base = tiny_model("llava", tmp_path / "base")
    given = TOY | systems[name] | {"model.path": base, "evaluate.data": world, "output_dir": tmp_path / "out"}
    files = [f'pairs=[{{file="{systems[name]["prompts.path"]}"}}]'] if name == "rlhfv" else []
    own = [text.replace('"W"', f'"{world}"').replace("=W", f"={world}") for text in FEEDBACK[name]] + files
    kept = {
        key: value for key, value in given.items() if name != "rlhfv" or not key.startswith(("prompts", "generate"))
    }
    asked = load(recipe(name), [*overrides(kept), *own], KNOWN)
    crew = Inside()
    model = loop.run(asked, crew, Console(quiet=True), report=report.write)
    last = f"{asked.rounds.count:02d}"
    assert crew.ran[0] == "00/eval" and crew.ran[-1] == f"{last}/eval"
    assert str(model).endswith(f"{last}/run/export/hf") and (tmp_path / "out" / "rounds.html").exists()
    run = tmp_path / "out" / "rounds" / "01" / "run"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] >= 2


# the commands that the docs show

DOCS = FOLDER.parent / "docs"


def commands_of(page):
    """Of code blocks and of single lines."""
    found = re.findall(r"(?:^|`)(mmfast (?:data|train) [^`\n]+)", (DOCS / page).read_text(), re.M)
    return [
        words
        for words in map(shlex.split, found)
        if "-o" in words or any(text.startswith("data.path=") for text in words)
    ]


def test_shown_trainings_read_the_pairs_that_are_made_here():
    for page in ("pipelines.md", "recipes.md"):
        found = [words for words in commands_of(page) if words[1] == "train"]
        assert len(found) >= 4
        for words in found:
            config = load_training(FOLDER.parent / words[2], words[3:])
            assert config.data.format == "auto" and config.data.images == "", words


@pytest.fixture(scope="module")
def judged(systems, world, tmp_path_factory):
    """Answers of which some are wrong, and what a judge says of them."""
    home, given = tmp_path_factory.mktemp("judged"), systems["mllm_dpo"]
    engine = ["--engine", "world", "--model", str(world)]
    images = ["--images", str(given["prompts.images"])]
    ask = ["generate", str(given["prompts.path"]), *images, "--out", str(home / "answers"), "--preset", "mllm_dpo"]
    say = ["judge", str(home / "answers"), "--out", str(home / "judge"), "--preset", "mllm_dpo"]
    for command in ([*ask, *engine, "--noise", "0.5"], [*say, *engine]):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 0, ended.output
    return home / "judge"


def test_mllm_dpos_five_methods_are_made_of_the_same_judged_answers(judged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny, made, trained = tiny_model("llava", tmp_path / "tiny"), {}, []
    for words in commands_of("recipes.md"):
        rest = [text.replace("runs/rounds_mllm_dpo/rounds/01/judge", str(judged)) for text in words[1:]]
        if words[1] == "data":
            ended = CliRunner().invoke(app, rest)
            assert ended.exit_code == 0, (ended.output, ended.exception)
            file = rest[rest.index("-o") + 1]
            made[file] = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        else:
            config = load_training(FOLDER.parent / rest[1], [*rest[2:], f"model.path={tiny}", "data.workers=0"])
            store = Job(config, Runtime(0, 1, 0, 1, torch.device("cpu"))).store
            assert len(store) == len(made[config.data.path]), rest
            trained.append(config.data.path)
    assert trained == ["sft.jsonl", "best.jsonl", "steer.jsonl", "hindsight.jsonl"] == [*made]
    assert (
        len(made["steer.jsonl"]) == 4 * len(made["sft.jsonl"]) > len(made["best.jsonl"]) > 0
        and len(made["hindsight.jsonl"]) > 0
    )
    assert "Helpfulness:" in json.dumps(made["steer.jsonl"][0]["prompt"])
    assert made["hindsight.jsonl"][0]["prompt"][1]["role"] == "assistant"
