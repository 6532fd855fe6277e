"""`mmfast eval`: a model is no subcommand, mistakes are told before a model is opened, and the files it leaves."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.evals.benches import benches
from mmfast.evals.tables import read_result
from mmfast.world.models import tiny_model
from tests.make.engine_cases import Fake
from tests.make.eval_cases import Rater, Talk, Toy, write_pope, write_talk, write_toy
from tests.make.rank_processes import run_ranks


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(benches(), "toy", Toy())
    monkeypatch.setitem(benches(), "talk", Talk())


@pytest.fixture
def engines(monkeypatch):
    """Engines by the model that a command names: judges and models that answer at once."""
    made = {"fake": Fake(), "other": Fake(name="other"), "rater": Rater()}
    monkeypatch.setattr("mmfast.cli.engine.opened", lambda make, engine, model, options, runtime: made[model])
    return made


def run(*arguments):
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_model_is_asked_and_scored_in_one_command(engines, tmp_path):
    data, out = write_toy(tmp_path / "data" / "toy").parent, tmp_path / "out"
    write_talk(data / "talk")
    told = ["--data", data, "--out", out, "--judge", "local", "--judge-model", "rater"]
    with pytest.raises(ValueError, match="--judge has no effect: toy"):
        run("fake", "--bench", "toy", *told)
    code, text = run("fake", "--bench", "toy,talk", *told)
    assert code == 0 and "rating" in text and "accuracy" in text
    assert engines["rater"].asks == 7 and (out / "talk" / "judge.jsonl").exists()
    asked = engines["fake"].asks
    assert run("fake", "--bench", "toy,talk", *told)[1].splitlines()[1:] == text.splitlines()[1:]
    assert engines["rater"].asks == 7 and engines["fake"].asks == asked
    assert read_result(out / "talk").flavour == "official, own prompt"
    assert read_result(out / "toy").metrics["accuracy"] < 1 and not read_result(out / "toy").made_by["judge"]


def asked_by_a_rank(data, out):
    """In a process of its own: what torchrun starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benches(), "talk", Talk())
        made = {"fake": Fake(), "rater": Rater()}
        patch.setattr("mmfast.cli.engine.opened", lambda make, engine, model, options, runtime: made[model])
        told = ("--data", data, "--out", out, "--judge", "local", "--judge-model", "rater")
        code, text = run("fake", "--bench", "talk", *told)
        assert code == 0 and ("rating" in text) == (os.environ.get("RANK") == "0")


def test_on_two_ranks_one_judges(tmp_path):
    data = write_talk(tmp_path / "data", 6)
    run_ranks(2, tmp_path, asked_by_a_rank, data, tmp_path / "out", timeout=60)
    assert read_result(tmp_path / "out" / "talk").counts["questions"] == 6


def test_answers_are_scored_compared_and_written_otherwise(engines, tmp_path, monkeypatch):
    data = write_toy(tmp_path / "data")
    for name in ("fake", "other"):
        assert run("answer", name, "--bench", "toy", "--data", data, "-o", tmp_path / name)[0] == 0
        file = tmp_path / f"{name}.json"
        assert run("score", tmp_path / name / "toy", "-b", "toy", "-d", data, "--json", file)[0] == 0
    code, text = run(
        "table", f"before={tmp_path / 'fake.json'}", tmp_path / "other.json", "--picture", tmp_path / "b.png"
    )
    assert code == 0 and "| before |" in text and "| other |" in text and (tmp_path / "b.png").exists()
    assert r"\begin{tabular}" in run("table", tmp_path / "fake.json", "--latex")[1]
    by_results = run("diff", tmp_path / "fake.json", tmp_path / "other.json")[1]
    by_answers = run("diff", tmp_path / "fake" / "toy", tmp_path / "other" / "toy", "-b", "toy", "-d", data)[1]
    assert "accuracy" in by_results and by_answers.startswith(by_results) and "words an answer" in by_answers
    official = tmp_path / "official.jsonl"
    assert run("convert", tmp_path / "fake" / "toy", official, "-b", "toy", "-d", data)[0] == 0
    assert json.loads(official.read_text().splitlines()[0])["question_id"] == 100
    with pytest.raises(ValueError, match="no server takes its answers"):
        run("convert", official, tmp_path / "up", "-b", "toy", "-d", data, "--layout", "upload")
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "upload", lambda self, questions, answers, data: {"up.json": answers["q0"].text.encode()})
        assert run("convert", official, tmp_path / "up", "-b", "toy", "-d", data, "--layout", "upload")[0] == 0
    first = json.loads((tmp_path / "fake" / "toy" / "answers.jsonl").read_text().splitlines()[1])
    assert (tmp_path / "up" / "up.json").read_text() == first["text"]
    code, text = run("score", official, "-b", "toy", "-d", data, "--wording", "short", "--json", tmp_path / "o.json")
    assert read_result(tmp_path / "o.json").metrics == read_result(tmp_path / "fake.json").metrics
    strict = tmp_path / "strict.json"
    run("score", official, "-b", "toy", "-d", data, "--wording", "short", "--strict", "--json", strict)
    with pytest.raises(ValueError, match="o and strict cannot share a table: they differ in parser"):
        run("table", tmp_path / "o.json", strict)


def test_judges_are_compared(engines, tmp_path):
    data = write_talk(tmp_path / "data")
    run("answer", "fake", "-b", "talk", "-d", data, "-o", tmp_path / "out")
    answers = tmp_path / "out" / "talk"
    engines["another"] = Rater(name="another one")
    for name in ("rater", "another"):
        told = ("--judge", "local", "--judge-model", name, "--json", tmp_path / f"{name}.json")
        assert run("score", answers, "-b", "talk", "-d", data, *told)[0] == 0
    assert engines["rater"].asks == engines["another"].asks == 7
    code, text = run("agree", tmp_path / "rater.json", tmp_path / "another.json")
    assert code == 0 and "kappa" in text and "share" in text
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps(["Rating: 5"] * 7))
    assert "5.000" in run("score", answers, "-b", "talk", "-d", data, "--judge", f"replies:{replies}")[1]
    record = tmp_path / "kept.jsonl"
    told = ("--judge", "local", "--judge-model", "rater", "--judge-recorded", record)
    run("score", answers, "-b", "talk", "-d", data, *told)
    assert run("score", answers, "-b", "talk", "-d", data, "--judge", f"recorded:{record}")[0] == 0
    assert engines["rater"].asks == 14
    code, text = run("score", answers, "-b", "talk", "-d", data, *told, "--runs", "2", "--option", "official=true")
    assert code == 0 and "flavour official, parser" in text and engines["rater"].asks == 21


def test_the_answering_engine_has_a_record_of_its_own(engines, tmp_path):
    """--recorded is the model's, --judge-recorded the judge's: a second folder asks neither for anything."""
    data = write_toy(tmp_path / "data" / "toy").parent
    write_talk(data / "talk")
    told = ["--bench", "toy,talk", "--data", data, "--recorded", tmp_path / "said.jsonl"]
    told += ["--judge", "local", "--judge-model", "rater", "--judge-recorded", tmp_path / "judged.jsonl"]
    for name in ("one", "two"):
        assert run("fake", *told, "--out", tmp_path / name)[0] == 0
    assert engines["fake"].asks == 12 + 7 and engines["rater"].asks == 7
    for file in ("toy/answers.jsonl", "talk/answers.jsonl", "talk/result.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert run("answer", "fake", "-b", "toy", "-d", data, "--out", tmp_path / "three", *told[4:6])[0] == 0
    assert engines["fake"].asks == 12 + 7


def test_a_template_is_the_trainings(tmp_path):
    """A named one, of a model that has another or none: its digest is part of what made the answers."""
    data, model = write_toy(tmp_path / "data", images=1, each=1), tiny_model("llava", tmp_path / "llava")
    for name, more in (("own", ()), ("named", ("--template", "vicuna_v1")), ("again", ("--template", "vicuna_v1"))):
        assert run("answer", model, "-b", "toy", "-d", data, "-o", tmp_path / name, *more)[0] == 0
    headers = [
        json.loads((tmp_path / name / "toy" / "answers.jsonl").read_text().splitlines()[0])["template"]
        for name in ("own", "named", "again")
    ]
    assert headers[0] != headers[1] == headers[2]
    for file in (*model.glob("chat_template*"), model / "tokenizer_config.json"):
        if file.suffix == ".json" and file.name == "tokenizer_config.json":
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))
        else:
            file.unlink()
    with pytest.raises(ValueError, match="--template: the model has no chat template; choose one of vicuna_v1"):
        run("answer", model, "-b", "toy", "-d", data, "-o", tmp_path / "none")
    assert run("answer", model, "-b", "toy", "-d", data, "-o", tmp_path / "given", "--template", "vicuna_v1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bench", "topy"], "no benchmark topy: did you mean toy"),
        (["--bench", ","], "--bench names no benchmark"),
        (["--bench", "toy", "--wording", "x"], "toy has no wording 'x'"),
        (["--bench", "toy", "--preset", "x"], "unknown preset 'x'"),
        (["--bench", "toy", "--preset", "rlhfv", "--engine", "world"], "--beams: the engine world has no beams"),
        (["--bench", "toy", "--attributes", "1,2"], "five numbers are wanted"),
        (["--bench", "toy", "--flavour", "x"], "toy has no 'x'"),
        (["--bench", "toy", "--noise", "0.5"], "--noise has no effect on the engine local"),
        (["--bench", "toy", "--template", "x"], "--template: unknown template 'x'; choose one of auto, vicuna_v1"),
        (
            ["--bench", "toy", "--template", "chatml", "--engine", "world"],
            "--template has no effect on the engine world",
        ),
        (["--bench", "toy", "--prices", "1"], "--prices 1: give two numbers"),
        (["--bench", "toy", "--prices", "1,2"], "--prices has no effect on the engine local: it is for server"),
        (["--bench", "toy", "--images", "nowhere"], "name the folder of toy's images with --images"),
        (["--bench", "talk", "--judge", "local"], "give its model in --judge-model"),
        (["--bench", "talk", "--judge-model", "m"], "--judge-model has no effect: there is no --judge"),
        (["--bench", "talk", "--judge", "recorded:none.jsonl"], "there is no such file"),
        (["--bench", "talk", "--judge", "gpt", "--judge-model", "m"], "unknown engine 'gpt'"),
        (
            ["--bench", "talk", "--judge-recorded", "x.jsonl"],
            "--judge-recorded has no effect: it is for a judge that is asked",
        ),
        (["--bench", "talk", "--runs", "2"], "--runs has no effect without a --judge"),
        (["--bench", "talk", "--strict"], "--strict has no effect: talk"),
        (["--bench", "toy", "--option", "x"], "--option 'x' is not NAME=VALUE"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_opened(tmp_path, monkeypatch, arguments, message):
    def opened(*_):
        raise AssertionError("a model was opened")

    monkeypatch.setattr("mmfast.cli.engine.opened", opened)
    data = write_toy(tmp_path / "data")
    write_talk(data)
    done = CliRunner().invoke(app, ["eval", "m", "--data", str(data), "--out", str(tmp_path / "out"), *arguments])
    told = str(done.exception) if isinstance(done.exception, ValueError) else done.stderr
    assert done.exit_code == 1 and message in told, told
    assert not (tmp_path / "out").exists()


def test_two_files_of_answers_need_their_benchmark(tmp_path):
    for arguments, message in (
        (["a", "b", "--bench", "toy"], "need --bench and --data"),
        (["a", "b", "--flavour", "x"], "no effect on results"),
        (["a", "b"], "there is no such result"),
    ):
        with pytest.raises(ValueError, match=message):
            run("diff", *arguments)


def test_two_results_have_two_labels(engines, tmp_path):
    data = write_toy(tmp_path / "data")
    run("fake", "-b", "toy", "-d", data, "-o", tmp_path / "out")
    with pytest.raises(ValueError, match="two results are called toy: give labels, LABEL=FILE"):
        run("table", tmp_path / "out" / "toy" / "result.json", tmp_path / "out" / "toy" / "result.json")


def test_from_the_command_line_to_the_score(tiny, tmp_path):
    """A tiny LLaVA, a process of its own: answers, result and table."""
    data, _ = write_pope(tmp_path / "pope", 2)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmfast.cli",
            "eval",
            str(tiny[0]),
            "--bench",
            "pope",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "out"),
            "--wording",
            "bare",
            "--max-tokens",
            "4",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "adversarial.f1" in done.stdout and "12 questions" in done.stdout
    assert read_result(tmp_path / "out" / "pope").made_by["template"]
