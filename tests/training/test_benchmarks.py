"""[evaluate]: benchmarks inside a run, when they are due, the best checkpoint by a metric of theirs, on two ranks."""

import json

import pytest

from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.engines.stage import Tally
from mmfast.evals.answering import asking, header_of, write_answers
from mmfast.evals.base import Wording
from mmfast.evals.benches import benches
from mmfast.evals.benches.pope import Pope
from mmfast.evals.best import lowest_is_best
from mmfast.evals.scoring import score
from mmfast.evals.tables import read_result
from mmfast.job.checkpoint_files import best_checkpoint, better, complete, read_info
from mmfast.job.rows import read
from mmfast.job.runtime import join
from mmfast.train import train
from mmfast.training.benchmarks import Benchmarks
from mmfast.training.report import _benchmarks
from tests.make.eval_cases import Rater, Talk, ask, write_pope, write_talk
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


CHOSEN = {
    "train.steps": 4,
    "evaluate.every": 1,
    "evaluate.start": 2,
    "evaluate.best": "pope.random.accuracy",
    "train.checkpoint_every": 0,
    "train.keep_last": 1,
    "export.formats": ["hf"],
}


def test_a_run_is_evaluated_and_its_best_checkpoint_kept(tiny, pope, tmp_path):
    last = train(config_of(tmp_path, tiny, pope, **CHOSEN | {"evaluate.margin": False}))
    rows = measured(tmp_path)
    assert [row["step"] for row in rows] == [2, 3, 4] and last[PART] == rows[-1][PART] and "best/step" not in last
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


def right_from(monkeypatch, pope, many):
    """The run's model answers as the annotation does from its step's number of right answers on: `many` by step."""
    wanted = {q.id: q.truth["yes"] for q in asking("pope", pope).questions}

    def answers(asked, out, *_, **__):
        step = int(out.parent.name[5:])
        right = {q.id: wanted[q.id] == (n < many[step]) for n, q in enumerate(asked.questions)}
        told = {name: ["yes" if yes else "no"] for name, yes in right.items()}
        write_answers(out / "answers.jsonl", header_of(asked, {"engine": "local"}), told)
        return Tally()

    monkeypatch.setattr("mmfast.training.benchmarks.answer", answers)


def test_a_later_checkpoint_is_the_best_only_beyond_chance(tiny, tmp_path, monkeypatch, capsys):
    """By value step 3 would have the place of step 2; by the margin step 5 has it first, and a later start knows it."""
    folder = write_pope(tmp_path / "pope", 8)[0]
    right_from(monkeypatch, folder, {2: 6, 3: 7, 4: 5, 5: 16, 6: 15, 7: 16})
    changes = CHOSEN | {"evaluate.limit": 16, "train.steps": 4}
    train(config_of(tmp_path, tiny, folder, **changes))
    checkpoints = tmp_path / "run" / "checkpoints"
    told = capsys.readouterr().err
    assert "at step 3" in told and "not beyond chance: step 2 stays the best" in told and "1.0 words an answer" in told
    assert [row["best/step"] for row in measured(tmp_path)] == [2, 2, 2]
    assert [path.name for path in complete(checkpoints)] == ["step-2", "step-4"]
    (card,) = (tmp_path / "run" / "export").rglob("README.md")
    assert "until step 4 by `pope.random.accuracy` is step 2, not this one: a later one" in card.read_text()
    # It goes on: the best is found in the files, and its checkpoint outlives those that came after it
    train(config_of(tmp_path, tiny, folder, **changes | {"train.steps": 7}))
    assert [row["best/step"] for row in measured(tmp_path)] == [2, 2, 2, 5, 5, 5]
    assert [path.name for path in complete(checkpoints)] == ["step-5", "step-7"]
    row = measured(tmp_path)[3]
    assert row["best/low"] > 0 and row["best/difference"] == pytest.approx(10 / 16)
    (card,) = (tmp_path / "run" / "export").rglob("README.md")
    assert "is step 5, not this one" in card.read_text()


def test_a_cached_tower_answers_what_the_tower_does(tiny, pope, tmp_path):
    """The benchmark's pictures are encoded before the tower goes; a second start encodes none."""
    frozen = {"train.steps": 2, "model.freeze": ["vision"], "evaluate.limit": 12}
    told = {}
    for cached in (False, True):
        folder = tmp_path / str(cached)
        folder.mkdir()
        train(config_of(folder, tiny, pope, **frozen | {"model.cache_vision": cached}))
        told[cached] = lines(folder / "run" / "eval" / "step-2" / "pope" / "answers.jsonl")[1:]
    assert told[False] == told[True] and len(told[True]) == 12
    files = list((tmp_path / "True" / "cache" / "vision").rglob("*.safetensors"))
    train(config_of(tmp_path / "True", tiny, pope, **frozen | {"model.cache_vision": True, "train.steps": 3}))
    assert list((tmp_path / "True" / "cache" / "vision").rglob("*.safetensors")) == files


@pytest.mark.parametrize("shard", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_two_ranks_answer_what_one_does(tiny, pope, tmp_path, shard):
    """Under FSDP2 too: each rank answers about its images, rank 0 scores, and both keep the checkpoint it chooses."""
    folders = tmp_path / "one", tmp_path / "two"
    changes = {"train.steps": 2, "parallel.shard": shard, "evaluate.limit": 12}
    changes |= {"evaluate.every": 1, "evaluate.best": "pope.random.accuracy", "train.checkpoint_every": 0}
    for folder in folders:
        folder.mkdir()
    train(config_of(folders[0], tiny, pope, **changes))
    run_ranks(2, folders[1], train, config_of(folders[1], tiny, pope, **changes))
    one, two = (lines(folder / "run" / "eval" / "step-2" / "pope" / "answers.jsonl") for folder in folders)
    assert [row["id"] for row in one[1:]] == [row["id"] for row in two[1:]] and len(one) == 13
    assert one[1:] == two[1:]
    rows = [[(row[PART], row["best/step"]) for row in measured(folder)] for folder in folders]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    kept = [[path.name for path in complete(folder / "run" / "checkpoints")] for folder in folders]
    assert kept[0] == kept[1] and "step-1" in kept[0]


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


def test_what_a_judge_has_to_score_is_answered_for_it(tiny, tmp_path, monkeypatch, capsys):
    """A run waits for no service: the answers lie there for `mmfast eval score`."""
    monkeypatch.setitem(benches(), "talk", Talk())
    monkeypatch.setattr(Talk, "wordings", {"short": Wording(decode=Decode(max_tokens=4))})
    folder = write_talk(tmp_path / "talk")
    last = train(config_of(tmp_path, tiny, folder, **{"evaluate.bench": ["talk"], "train.steps": 1}))
    out = tmp_path / "run" / "eval" / "step-1" / "talk"
    assert f"talk at step 1 is answered; to be scored by a judge: mmfast eval score {out}" in capsys.readouterr().err
    assert not any("talk" in name for name in last) and not (out / "result.json").exists()
    result = score(Talk(), out, data=folder, judge=Rater(fails="\0", mumbles="\0"))
    assert result.counts["questions"] and result.metrics["rating"] > 0
    with pytest.raises(ValueError, match=r"best = 'talk.rating' is not measured in the run: talk needs a judge"):
        Benchmarks(join(), tmp_path, bench=["talk"], data=str(folder), every=1, best="talk.rating")


def test_a_benchmark_without_its_images_is_refused(tmp_path):
    folder, scenes = write_pope(tmp_path / "pope", 2)
    (folder / f"{scenes[1].name}.png").unlink()
    with pytest.raises(ValueError, match="1 of pope's images are not there"):
        Benchmarks(join(), tmp_path, bench=["pope"], data=str(folder))


def test_what_has_no_interval_is_not_chosen_by_one(tmp_path, monkeypatch):
    folder = write_pope(tmp_path / "pope", 2)[0]
    monkeypatch.setattr(Pope, "extra", lambda *_: {"fit": 1.0})
    given = {"bench": ["pope"], "data": str(folder), "every": 1}
    with pytest.raises(ValueError, match=r"best = 'pope.fit' has no interval: set margin = false, or take one of"):
        Benchmarks(join(), tmp_path, best="pope.fit", **given)
    assert Benchmarks(join(), tmp_path, best="pope.fit", margin=False, **given).best_step() is None
    with pytest.raises(ValueError, match="questions about one image have no interval: raise limit"):
        Benchmarks(join(), tmp_path, best="pope.random.accuracy", limit=2, **given)


def test_when_and_which_way(pope, tmp_path, monkeypatch):
    """DGPref's gen_start and gen_step; the smallest of some metrics is the best."""
    found = Benchmarks(join(), tmp_path, bench=["pope"], data=str(pope), every=5, start=12)
    assert [step for step in range(1, 28) if found.due(step, 27)] == [15, 20, 25, 27]
    assert found.digest != Benchmarks(join(), tmp_path, bench=["pope"], data=str(pope), limit=3).digest
    assert not lowest_is_best("pope.f1") and better("eval/pope.f1", 2, 1, False)
    monkeypatch.setattr(Pope, "less_is_better", ("yes_ratio",))
    assert lowest_is_best("pope.yes_ratio") and better("eval/pope.yes_ratio", 1, 2, True)
