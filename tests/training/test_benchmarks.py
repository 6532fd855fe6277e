"""[evaluate]: benchmarks inside a run, when they are due, the best checkpoint by a metric of theirs, on two ranks."""

import json

import pytest

from mmfast.engines.local import Local
from mmfast.evals.answering import asking
from mmfast.evals.benches import benches
from mmfast.evals.benches.pope import Pope
from mmfast.evals.tables import read_result
from mmfast.job.checkpoint_files import best_checkpoint, better, complete, read_info
from mmfast.job.rows import read
from mmfast.job.runtime import join
from mmfast.train import train
from mmfast.training.benchmarks import Benchmarks, lowest_is_best
from mmfast.training.report import _benchmarks
from tests.make.eval_cases import Talk, ask, write_pope, write_talk
from tests.make.rank_processes import run_ranks
from tests.make.tiny_run import make_config

PART = "eval/pope.random.accuracy"


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    return write_pope(tmp_path_factory.mktemp("pope"), 2)[0]


def config_of(folder, tiny, pope, **changes):
    given = {"evaluate.bench": ["pope"], "evaluate.data": str(pope), "evaluate.limit": 4, "optim.lr": 1e-2}
    return make_config(folder, *tiny, **given | changes)


def measured(folder):
    return [row for row in read(folder / "run" / "metrics.jsonl") if any(k.startswith("eval/pope") for k in row)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_evaluated_and_its_best_checkpoint_kept(tiny, pope, tmp_path):
    changes = {
        "train.steps": 4,
        "evaluate.every": 1,
        "evaluate.start": 2,
        "evaluate.best": "pope.random.accuracy",
        "train.checkpoint_every": 0,
        "train.keep_last": 1,
        "export.formats": ["hf"],
    }
    last = train(config_of(tmp_path, tiny, pope, **changes))
    rows = measured(tmp_path)
    assert [row["step"] for row in rows] == [2, 3, 4] and last[PART] == rows[-1][PART]
    for row in rows:
        out = tmp_path / "run" / "eval" / f"step-{row['step']}" / "pope"
        result = read_result(out)
        assert result.metrics["random.accuracy"] == row[PART] and result.counts["questions"] == 4
        header = lines(out / "answers.jsonl")[0]
        assert header["template"] and not header["weights"]  # a running model has no digest
    best = best_checkpoint(tmp_path / "run" / "checkpoints", PART, lowest=False)
    assert read_info(best)["metrics"][PART] == max(row[PART] for row in rows)
    # What it answered at the end is what its export answers
    exported = next((tmp_path / "run" / "export").rglob("config.json")).parent
    ask(asking("pope", pope, limit=4), tmp_path / "again", Local(str(exported)))
    final = tmp_path / "run" / "eval" / "step-4" / "pope" / "answers.jsonl"
    assert lines(final)[1:] == lines(tmp_path / "again" / "answers.jsonl")[1:]


@pytest.mark.parametrize("shard", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_two_ranks_answer_what_one_does(tiny, pope, tmp_path, shard):
    """Under FSDP2 too: each rank answers about its images, and rank 0 scores."""
    folders = tmp_path / "one", tmp_path / "two"
    changes = {"train.steps": 2, "parallel.shard": shard, "evaluate.limit": 12}
    for folder in folders:
        folder.mkdir()
    train(config_of(folders[0], tiny, pope, **changes))
    run_ranks(2, folders[1], train, config_of(folders[1], tiny, pope, **changes))
    one, two = (lines(folder / "run" / "eval" / "step-2" / "pope" / "answers.jsonl") for folder in folders)
    assert [row["id"] for row in one[1:]] == [row["id"] for row in two[1:]] and len(one) == 13
    assert one[1:] == two[1:]
    assert measured(folders[0])[0][PART] == measured(folders[1])[0][PART]


def test_the_report_has_a_panel_of_each_benchmark():
    keys = {"eval/loss", "loss", "eval/pope.random.f1", "eval/pope.f1", "eval/mme.sum", "eval/pope.random.a", "a.b"}
    assert _benchmarks(keys) == [
        ("mme", ("eval/mme.sum",)),
        ("pope", ("eval/pope.f1", "eval/pope.random.a", "eval/pope.random.f1")),
    ]


def test_a_run_goes_on_and_goes_back(tiny, pope, tmp_path):
    changes = {"evaluate.every": 1, "train.checkpoint_every": 1, "train.keep_last": 9}
    train(config_of(tmp_path, tiny, pope, **changes | {"train.steps": 3}))
    first = tmp_path / "run" / "eval" / "step-2" / "pope" / "answers.jsonl"
    before = first.read_bytes()
    train(config_of(tmp_path, tiny, pope, **changes | {"train.steps": 4}))  # goes on: what stood is not asked again
    assert first.read_bytes() == before and [row["step"] for row in measured(tmp_path)] == [1, 2, 3, 4]
    back = str(tmp_path / "run" / "checkpoints" / "step-2")
    train(config_of(tmp_path, tiny, pope, **changes | {"train.steps": 3, "train.resume": back}))
    (aside,) = (tmp_path / "run").glob("set-aside-*")
    assert {path.name for path in (aside / "eval").iterdir()} == {"step-3", "step-4"}
    assert {path.name for path in (tmp_path / "run" / "eval").iterdir()} == {"step-1", "step-2", "step-3"}
    assert first.read_bytes() == before


def test_an_evaluation_that_was_killed_is_made_again(tiny, pope, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    changes = {"evaluate.every": 2, "train.checkpoint_every": 2, "train.steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr("mmfast.training.benchmarks.score", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(tmp_path, tiny, pope, **changes))
    assert not (tmp_path / "run" / "eval" / "step-2" / "pope" / "result.json").exists()
    train(config_of(tmp_path, tiny, pope, **changes))
    assert [row["step"] for row in measured(tmp_path)] == [2]
    (saved,) = complete(tmp_path / "run" / "checkpoints")
    assert PART in read_info(saved)["metrics"]


def test_questions_that_fail_are_told_and_not_scored(tiny, pope, tmp_path, capsys):
    """An image that cannot be read: the run ends all the same, without the score."""
    folder, scenes = write_pope(tmp_path / "pope", 2)
    (folder / f"{scenes[0].name}.png").write_bytes(b"no image")
    last = train(config_of(tmp_path, tiny, folder, **{"train.steps": 1}))
    assert "pope at step 1 is not scored: 2 of 4 requests failed" in capsys.readouterr().err and PART not in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.bench": ["pop"]}, "no benchmark pop: did you mean pope"),
        ({"evaluate.data": "nowhere"}, "there is no such folder"),
        ({"evaluate.images": "nowhere"}, "name the folder of pope's images"),
        ({"evaluate.every": 1, "evaluate.best": "pope.f2"}, "best = 'pope.f2' is not measured; pope has"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_opened(tiny, pope, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("mmfast.job.opening.load", None)
    with pytest.raises(ValueError, match=message):
        train(config_of(tmp_path, tiny, pope, **changes))


def test_a_benchmark_with_a_judge_and_one_without_its_images_are_refused(pope, tmp_path, monkeypatch):
    runtime = join()
    folder, scenes = write_pope(tmp_path / "pope", 2)
    (folder / f"{scenes[1].name}.png").unlink()
    with pytest.raises(ValueError, match="1 of pope's images are not there"):
        Benchmarks(runtime, tmp_path, bench=["pope"], data=str(folder))
    monkeypatch.setitem(benches(), "talk", Talk())
    with pytest.raises(ValueError, match=r"\[evaluate\] talk needs a judge"):
        Benchmarks(runtime, tmp_path, bench=["talk"], data=str(write_talk(tmp_path / "talk")))


def test_when_and_which_way(pope, tmp_path, monkeypatch):
    """DGPref's gen_start and gen_step; the smallest of some metrics is the best."""
    found = Benchmarks(join(), tmp_path, bench=["pope"], data=str(pope), every=5, start=12)
    assert [step for step in range(1, 28) if found.due(step, 27)] == [15, 20, 25, 27]
    assert found.digest != Benchmarks(join(), tmp_path, bench=["pope"], data=str(pope), limit=3).digest
    assert not lowest_is_best("pope.f1") and better("eval/pope.f1", 2, 1, False)
    monkeypatch.setattr(Pope, "less_is_better", ("yes_ratio",))
    assert lowest_is_best("pope.yes_ratio") and better("eval/pope.yes_ratio", 1, 2, True)
