"""A paper run again: its description is whole, what is missing is said before it starts, and its table ends it."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.cli.rounds import options_of
from mmfast.evals.benches import bench as bench_of
from mmfast.reproduce import fetch, inputs, need, paper, run, table, weights
from mmfast.rounds import choice, loop
from mmfast.rounds.settings import MAKERS, STAGES, load
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model
from tests.make.native_llava import write_native
from tests.make.stand_ins import write_files
from tests.make.system_files import PAPERS
from tests.rounds.crews import Pretend

ROOT = get_command(app)
KNOWN = {name: options_of(ROOT, name) for name in ("generate", "eval", *STAGES, *MAKERS)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


@pytest.fixture
def rooted(world, tmp_path):
    """The files of a system below a root, where its paper has them."""
    return lambda name: write_files(name, tmp_path / "root", world)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("llava", tmp_path_factory.mktemp("models") / "tiny")


def data_lines(name, root, limit=0):
    return [inputs.look_at(one, root, limit) for one in paper.load_paper(name).inputs]


# the descriptions


def test_all_six_papers_are_described():
    assert set(paper.names()) == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_description_says_what_its_recipe_can_run(name, tmp_path):
    one = paper.load_paper(name)
    asked = load(one.recipe_file, one.overrides_at(tmp_path), KNOWN)
    assert asked.base == str(tmp_path / one.models[0].used)
    # What can be done as they do can be said
    for difference in one.differs:
        load(one.recipe_file, [*one.overrides_at(tmp_path), *difference.as_theirs], KNOWN)
    # A figure's metric is one that its benchmark measures
    for figure in one.published:
        bench, _, metric = figure.metric.partition(".")
        if bench in asked.evaluate.bench and bench in ("objhal", "chair", "mmhal", "alpacaeval"):
            known = bench_of(bench).metrics(defaultdict(lambda: 1.0), bench_of(bench).flavours[0])
            assert metric in known, figure.metric


def test_what_nobody_knows_is_written_down(tmp_path):
    text = (paper.HOME / "sima.toml").read_text()
    for key in ("rows", "licence", "revision", "effect", "table"):
        (tmp_path / "p.toml").write_text(re.sub(rf"^{key} = .*\n", "", text, count=1, flags=re.M))
        with pytest.raises(ValueError, match=rf"{key}: is missing \(write 'unknown'"):
            paper.read_paper(tmp_path / "p.toml")


def test_an_unknown_paper_is_one_line():
    with pytest.raises(ValueError, match="choose one of dgpref_llava, dgpref_qwen, mllm_dpo"):
        paper.load_paper("povid")


# what is there


@pytest.mark.parametrize("name", PAPERS)
def test_its_own_files_are_found(name, rooted):
    assert [one.told for one in data_lines(name, rooted(name)) if not one.there] == []


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_missing_has_the_command_that_fetches_it(name, tmp_path):
    one = paper.load_paper(name)
    for line, item in zip(data_lines(name, tmp_path), one.inputs, strict=True):
        assert not line.there and str(tmp_path / item.path) in line.told
        first = item.commands[0].replace("{root}", str(tmp_path)) if item.commands else f"to be had from {item.source}"
        assert line.fix.startswith(f"hf download {item.hub}" if item.hub else first)
    for item in one.models:
        line = inputs._model(item, tmp_path)
        assert not line.there and line.fix.startswith(f"hf download {item.id}")
        assert bool(item.imported) == ("&& mmfast import" in line.fix)


def test_a_column_that_differs_is_named(rooted):
    root = rooted("sima")
    (file,) = (root / "data/SIMA_prompts").iterdir()
    file.write_text(file.read_text().replace('"ground_truth"', '"answer"'))
    (line, _) = data_lines("sima", root)
    assert not line.there and "has no column ground_truth (it has image, text, answer)" in line.told


def test_rows_without_their_pictures_are_counted(rooted):
    root = rooted("sima")
    pictures = sorted((root / "data/coco/train2017").iterdir())
    for picture in pictures[-2:]:
        picture.unlink()
    (line, _) = data_lines("sima", root)
    assert not line.there and "of 2 rows the picture is not in" in line.told and pictures[-2].name in line.told
    # A share asks only the first rows
    assert data_lines("sima", root, limit=len(pictures) - 2)[0].there


def test_scene_graphs_without_their_pictures_are_counted(rooted):
    root = rooted("dgpref_llava")
    next(iter((root / "data/VisualGenome/VG_100K").iterdir())).unlink()
    (line, _) = data_lines("dgpref_llava", root)
    assert not line.there and "of 1 rows the picture is not in" in line.told


def test_a_cut_parquet_is_one_line(rooted):
    root = rooted("rlaifv")
    file = sorted((root / "data/RLAIF-V-Dataset").iterdir())[-1]
    file.write_bytes(file.read_bytes()[:-100])
    (line,) = data_lines("rlaifv", root)
    assert not line.there and f"{file} is damaged or cut short" in line.told and "\n" not in line.told


def test_of_mllm_dpos_questions_each_file_has_the_command_that_draws_it(rooted):
    root = rooted("mllm_dpo")  # drawn by these very commands
    one, asked = paper.load_paper("mllm_dpo"), settings("mllm_dpo", root)
    first, second = inputs.used(one, root, asked)[1]
    assert [inputs.look_at(item, root, 0).told for item in (first, second)] == ["5 rows", "3,000 rows"]
    assert loop.readable(asked) is None and run.shares(asked, 0.5)[0] == "prompts.limit=1503"
    (root / second.path).unlink()
    line = inputs.look_at(second, root, 0)
    assert line.fix.startswith("mmfast data prompts ") and f"-o {root / second.path}" in line.fix
    assert inputs.look_at(first, root, 0).there


# weights


def described(folder, **more):
    """A description of the tiny model in a folder."""
    seen = weights.look("tiny", folder)
    base = paper.load_paper("dgpref_llava").models[0]
    sizes = {"hidden": seen.hidden, "layers": seen.layers, "vocab": seen.vocab}
    return base.model_copy(update=sizes | {"folder": folder.name} | more)


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_a_whole_model_of_the_papers_sizes_is_there(layout, tiny, tmp_path):
    folder = tiny if layout == "hf" else write_native(tiny, tmp_path / "native")
    line = inputs._model(described(folder), folder.parent)
    assert line.there and "billion parameters" in line.told
    # The tower counts where it is in the files, and not to the layers of the language model
    assert (
        weights.look("m", folder).layers
        == json.loads((tiny / "config.json").read_text())["text_config"]["num_hidden_layers"]
    )


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_a_cut_or_missing_shard_is_one_line(layout, tiny, tmp_path):
    folder = tmp_path / "models" / "m"
    if layout == "hf":
        shutil.copytree(tiny, folder)
    else:
        write_native(tiny, folder)
    model = described(folder)
    file = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])[-1]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    line = inputs._model(model, folder.parent)
    assert not line.there and f"{file} is damaged or cut short" in line.told and "\n" not in line.told
    assert line.fix.startswith("hf download llava-hf/llava-1.5-7b-hf")
    file.unlink()
    line = inputs._model(model, folder.parent)
    assert not line.there and ("is missing" in line.told or "holds no weights" in line.told)


def test_the_weights_of_another_model_are_refused(tiny):
    line = inputs._model(described(tiny, hidden=4096), tiny.parent)
    assert not line.there and "is not llava-hf/llava-1.5-7b-hf: its weights have hidden" in line.told
    line = inputs._model(described(tiny, layers=40), tiny.parent)
    assert not line.there and "its weights have layers" in line.told


def test_files_without_a_language_model_are_refused(tiny, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    tensors = load_file(tiny / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "vision" in k}, folder / "model.safetensors")
    line = inputs._model(described(tiny), tmp_path)
    assert "is missing" in line.told  # another folder
    with pytest.raises(ValueError, match="holds no language model"):
        weights.look("m", folder)


# fetching


def test_nothing_is_fetched_before_its_licence_is_accepted(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)))
    wanted = fetch.to_fetch(paper.load_paper("sima"), tmp_path, settings("sima", tmp_path))
    with pytest.raises(ValueError, match=r"needs --accept-licences.*liuhaotian/llava-v1.5-7b: unknown.*SIMA_prompts"):
        fetch.fetch(wanted, tmp_path, accepted=False, told=print)
    assert not asked
    fetch.fetch(wanted, tmp_path, accepted=True, told=print)
    assert [a[0] for a, _ in asked] == [
        "liuhaotian/llava-v1.5-7b", "openai/clip-vit-large-patch14-336", "furonghuang-lab/SIMA_prompts",
    ]  # fmt: skip
    assert asked[-1][1]["repo_type"] == "dataset" and asked[-1][1]["local_dir"] == tmp_path / "data/SIMA_prompts"


def test_a_download_that_was_stopped_goes_on(rooted):
    root = rooted("rlhfv")  # ten of its rows
    wanted = fetch.to_fetch(paper.load_paper("rlhfv"), root, settings("rlhfv", root))
    assert [fetch.name_of(one) for one in wanted] == ["Yirany/RLHF-V-SFT", "openbmb/RLHF-V-Dataset"]


def test_a_disk_too_small_for_what_is_fetched_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10 << 30))
    wanted = fetch.to_fetch(paper.load_paper("sima"), tmp_path, settings("sima", tmp_path))
    with pytest.raises(ValueError, match="has 10 GiB free, and 14 GiB are to be fetched"):
        fetch.fetch(wanted, tmp_path, accepted=True, told=print)


def test_the_licence_alone_has_no_effect(tmp_path):
    said = CliRunner().invoke(app, ["reproduce", "sima", "--root", str(tmp_path), "--accept-licences"])
    assert said.exit_code and "no effect without --fetch" in str(said.exception)


# the run


def test_a_share_is_of_every_stage():
    assert [run.share(17000, 0.01), run.share(100, 0.01), run.share(5, 0.01)] == [170, 8, 5]


def settings(name, root, scale=1.0, given=()):
    return run.settings_of(paper.load_paper(name), root, name, scale, given, KNOWN)


def test_scale_shortens_prompts_warmup_and_checkpoints(rooted):
    root = rooted("dgpref_llava")
    whole, trial = settings("dgpref_llava", root), settings("dgpref_llava", root, 0.01)
    assert (whole.prompts.limit, trial.prompts.limit) == (12600, 126)
    assert (whole.training["optim"]["warmup"], trial.training["optim"]["warmup"]) == (100, 1)
    assert trial.folder.name == "dgpref_llava-0.01" and whole.folder.name == "dgpref_llava"
    assert settings("dgpref_llava", root, 0.01, ["prompts.limit=3"]).prompts.limit == 3  # the user's own wins


def test_scale_shortens_pairs_that_are_there(rooted):
    root = rooted("rlhfv")
    assert settings("rlhfv", root, 0.5).training["data"]["limit"] == run.LEAST


OWN = ["evaluate.bench=world", "evaluate.best=world.chair_s", "evaluate.wording=", "evaluate.flavour=",
       "evaluate.preset=", "evaluate.judge=", "evaluate.judge_model="]  # fmt: skip


def test_it_ends_after_the_stage_that_is_named_and_goes_on(rooted, world, monkeypatch):
    from rich.console import Console

    root = rooted("sima")
    asked = settings("sima", root, given=[*OWN, f"evaluate.data={world}"])
    assert run.stages(asked) == ["base", "answers", "critique", "pairs", "run", "eval"]
    crew = Pretend()
    more = {"report": lambda settings: settings.folder}
    monkeypatch.setattr("mmfast.rounds.loop.one_sided", lambda step: None)
    for upto, ran in (("base", ["00/eval"]), ("critique", ["01/answers", "01/critique"]), ("critique", [])):
        crew.ran.clear()
        run.run(asked, crew, Console(quiet=True), upto=upto, **more)
        assert crew.ran == ran
    crew.ran.clear()
    run.run(asked, crew, Console(quiet=True), **more)
    assert crew.ran == ["01/pairs", "01/run", "01/eval"]


class Killed(BaseException):
    """Nothing of a command's own end runs."""


@pytest.mark.parametrize("at", range(5))  # base, answers, critique, pairs, run
def test_killed_in_any_stage_the_same_call_goes_on_there(at, rooted, world, monkeypatch):
    from rich.console import Console

    root = rooted("sima")
    asked = settings("sima", root, given=[*OWN, f"evaluate.data={world}"])
    monkeypatch.setattr("mmfast.rounds.loop.one_sided", lambda step: None)

    def end(number, made):
        if number == at:
            raise Killed

    first, second, whole = Pretend(end), Pretend(), ["00/eval", "01/answers", "01/critique", "01/pairs", "01/run"]
    with pytest.raises(Killed):
        run.run(asked, first, Console(quiet=True), report=lambda settings: settings.folder)
    run.run(asked, second, Console(quiet=True), report=lambda settings: settings.folder)
    assert first.ran == whole[:at] and second.ran == [*whole[at:], "01/eval"]


def test_a_row_is_of_a_whole_run(tmp_path):
    command = ["reproduce", "sima", "--root", str(tmp_path), "--upto", "base", "--write", str(tmp_path / "rows.jsonl")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code and "leave --upto out" in str(said.exception)


def test_a_stage_that_there_is_not_is_one_line(tmp_path):
    said = CliRunner().invoke(app, ["reproduce", "sima", "--root", str(tmp_path), "--upto", "grade"])
    assert said.exit_code and "stages of sima are base, answers, critique, pairs, run, eval" in str(said.exception)


# the table


def judged(asked, number, value):
    """A round's captions of which this share invents an object."""
    from mmfast.evals.base import Mark, Result
    from mmfast.evals.intervals import intervals, totals
    from mmfast.evals.tables import write_result

    bench = bench_of("chair")
    ones = dict.fromkeys(("captions", "mentions", "true_classes", "right_classes", "words", "told_classes"), 1.0)
    marks = [
        Mark(id=str(n), unit=str(n), sums=ones | {"with_wrong": float(n < value), "wrong": 0.0}) for n in range(100)
    ]
    metrics = lambda sums: bench.metrics(sums, "dgpref")  # noqa: E731
    result = Result(
        bench="chair", flavour="dgpref", metrics=metrics(totals(marks)), intervals=intervals(marks, metrics),
        marks=marks, counts={}, notes=[], made_by={"data": {}, "weights": str(number)},
    )  # fmt: skip
    write_result(asked.folder / "rounds" / f"{number:02d}" / "eval" / "chair" / "result.json", result)


def test_the_table_sets_ours_with_its_interval_beside_the_published(tmp_path):
    one, asked = paper.load_paper("dgpref_llava"), settings("dgpref_llava", tmp_path)
    assert {row["why"] for row in table.rows(one, asked)} == {"not yet"}
    judged(asked, 0, 40)
    judged(asked, 1, 12)
    rows = {row["metric"]: row for row in table.rows(one, asked)}
    row = rows["chair.CHAIRs"]
    assert (row["published"], row["ours"]) == (10.33, 12.0) and row["low"] < 12 < row["high"]
    text = table.markdown([*rows.values()], table.differs(one, [], 0.01))
    assert re.search(r"\| aligned \| chair.CHAIRs \| 10.33 \| 12.00 \(\d.*? to 1\d.*?\) \|", text)
    assert "nothing here can be compared with a published figure" in text and "the experts" in text
    row = json.loads(table.line("dgpref_llava", 1.0, [*rows.values()], table.differs(one, [], 1)))
    assert row["paper"] == "dgpref_llava" and row["figures"][0]["ours"] == 12.0


def test_where_the_base_was_best_no_figure_of_ours_is_invented(tmp_path):
    one, asked = paper.load_paper("rlaifv"), settings("rlaifv", tmp_path)
    asked.folder.mkdir(parents=True)
    (asked.folder / "result.json").write_text(json.dumps({"rounds": 1, "kept": 0, "model": "m"}))
    told = {(row["of"], row["why"]) for row in table.rows(one, asked)}
    assert ("aligned", "no round was better than the base") in told


def test_what_the_user_changes_is_listed_and_what_is_done_as_they_do_is_not():
    one = paper.load_paper("sima")
    names = [row["what"] for row in table.differs(one, [], 1)]
    assert "the loss" in names and "share" not in names
    told = table.differs(one, ["objective.compat=sima", "train.epochs=1"], 1)
    assert "the loss" not in [row["what"] for row in told]
    assert [row["here"] for row in told if row["what"] == "train.epochs"] == ["train.epochs=1"]
    assert not [row for row in told if row["here"] == "objective.compat=sima"]


# what it takes


def test_hours_are_the_arithmetic_at_this_machines_speed(tmp_path):
    one, asked = paper.load_paper("mllm_dpo"), settings("mllm_dpo", tmp_path)
    told = need.hours(one, asked, 1.0, 13e9, speed=1e3)
    assert told["training"] == pytest.approx(6 * 13e9 * 5084 * 957 * 3 / 1e15 / 3600)
    assert told["answers"] == pytest.approx(2 * 13e9 * 6000 * 1257 / 1e15 / 3600)
    unsure = paper.load_paper("rlaifv"), settings("rlaifv", tmp_path)
    assert need.hours(*unsure, 1.0, 7e9, speed=1e3)["answers"] == "unknown"
    assert need.hours(one, asked, 0.5, 13e9, 1e3)["training"] == pytest.approx(told["training"] / 2)
    assert need.tflops(64) > 0


def test_a_disk_too_small_for_the_run_is_said_before_it_starts(tmp_path, monkeypatch):
    one, asked = paper.load_paper("rlaifv"), settings("rlaifv", tmp_path)
    bytes_ = need.disk(one, asked, 1.0, 7e9)
    # Four rounds of whole weights, each with the checkpoint that is kept, or with those of 2,671 steps
    assert bytes_ == pytest.approx(4 * (2 * 7e9 + 12 * 7e9), rel=0.01)
    every = settings("rlaifv", tmp_path, given=["train.keep_last=50"])
    assert need.disk(one, every, 1.0, 7e9) == pytest.approx(4 * (2 * 7e9 + 16 * 12 * 7e9), rel=0.01)
    small = need.Need(hours={}, memory=1.0, has_memory=None, disk=bytes_, free=10 << 30)
    with pytest.raises(ValueError, match=r"has 10.0 GiB free, and the run may write .* GiB: make room"):
        need.refuse_small_disk(small, tmp_path)
    # LoRA keeps what it trains
    assert need.disk(paper.load_paper("sima"), settings("sima", tmp_path), 1.0, 7e9) < 25e9


def test_all_that_is_missing_is_said_at_once_and_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(need, "tflops", lambda: 1.0)
    monkeypatch.setattr(need, "memory", lambda *given: 1.0)
    (tmp_path / "evaluation").mkdir()
    said = CliRunner().invoke(app, ["reproduce", "rlhfv", "--root", str(tmp_path)])
    assert said.exit_code and isinstance(said.exception, ValueError)
    assert "things are missing or wrong" in str(said.exception) and "\n" not in str(said.exception)
    for text in ("MISSING  people's corrections", "MISSING  benchmark objhal", "MISSING  server of", "disk: up to"):
        assert text in said.output, text
    assert not (tmp_path / "runs").exists()


def test_of_several_benchmarks_each_is_tried_in_the_flavour_and_wording_that_it_has(tmp_path, monkeypatch):
    seen = {}

    def asking(name, data, *, wording, **more):
        seen[name] = [wording]
        questions = tuple(SimpleNamespace(unit=unit) for unit in "ab")
        return SimpleNamespace(bench=bench_of(name), questions=questions, data=None)

    def metric_names(bench, questions, data, flavour):
        seen[bench.name].append(flavour)
        return ["CHAIRs_refine"], []

    monkeypatch.setattr(choice, "asking", asking)
    monkeypatch.setattr(choice, "metric_names", metric_names)
    choice.check(settings("rlhfv", tmp_path))
    assert seen == {"objhal": ["", ""], "mmhal": ["rlhf-v", ""], "llava-bench-coco": ["rlhf-v", "rlhf-v"]}
    with pytest.raises(ValueError, match="none of objhal, mmhal, llava-bench-coco has 'sima'"):
        choice.check(settings("rlhfv", tmp_path, given=["evaluate.flavour=sima"]))


def test_pairs_that_are_there_need_no_prompts_beside_them(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    loop.readable(settings("rlhfv", tmp_path))
