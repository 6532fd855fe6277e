"""Signs of collapse: a series of metrics that shows each, and those like it that do not; each is told once."""

import json

import pytest

from mmfast.config import dump
from mmfast.training.collapse import ENOUGH, FEWEST, RECENT, Watch, signs_of
from mmfast.training.report import report
from tests.make.tiny_run import make_config

GOOD = {
    "loss": 0.6,
    "rewards/chosen": 0.1,
    "rewards/rejected": -0.2,
    "rewards/margins": 0.3,
    "rewards/accuracies": 0.8,
    "logps/chosen": -99.0,
    "logps/rejected": -102.0,
    "grad_norm": 2.0,
    "epoch": 0.5,
}


def series(*parts, every=5):
    """(how many rows, what differs in them from a good one)..."""
    rows = [GOOD | changed for count, changed in parts for _ in range(count)]
    return [{"step": (n + 1) * every, **row} for n, row in enumerate(rows)]


def seen(config, rows):
    watch = Watch(config.model_dump())
    for row in rows:
        watch.look(row)
    return [(sign.name, sign.step) for sign in watch.signs]


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path, "model", "data.jsonl", **{"objective.beta": 0.1})


def fallen(by):
    """The chosen answers were at -100 nat, under the reference; they have lost so much, at beta = 0.1."""
    return {"logps/chosen": -100.0 - by, "rewards/chosen": -0.1 * by}


SHOWN = {
    "chosen": series((6, {}), (6, fallen(60))),
    "accuracy": series((5, {}), (RECENT, {"rewards/accuracies": 1.0})),
    "margins": series((4, {}), (6, {"rewards/margins": 25.0})),
    "gradient": series((RECENT, {}), (6, {"grad_norm": 30.0}), (RECENT, {"grad_norm": 31.0})),
}
NOT_SHOWN = {
    "a good run": series((60, {})),
    "chosen: half as far": series((6, {}), (20, fallen(40))),
    "chosen: longer answers, no nearer to the reference": series((6, {}), (20, {"logps/chosen": -400.0})),
    "chosen: sure from the start": series((20, {"logps/chosen": -0.9, "rewards/chosen": -0.06})),
    "chosen: one odd row": series((6, {}), (1, fallen(500)), (6, {})),
    "accuracy: pairs seen before": series((5, {}), (20, {"rewards/accuracies": 1.0, "epoch": 1.0})),
    "accuracy: of few pairs": series((5, {}), (RECENT, {"rewards/accuracies": 1.0}), every=1),
    "accuracy: nearly": series((5, {}), (20, {"rewards/accuracies": 0.97})),
    "margins: as large as they are in good runs": series((5, {}), (20, {"rewards/margins": 12.0})),
    "margins: one odd row": series((6, {}), (1, {"rewards/margins": 1e6}), (6, {})),
    "gradient: a few times larger": series((RECENT, {}), (20, {"grad_norm": 15.0})),
    "gradient: one odd row": series((RECENT, {}), (1, {"grad_norm": 1e9}), (15, {})),
    "rows that are not finite": series((20, {key: "nan" for key in GOOD})),
    "another objective's": [{"step": n, "loss": 1.0} for n in range(1, 60)],
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_series_that_shows_a_sign_is_told_once_and_of_nothing_else(name, config):
    found = seen(config, SHOWN[name])
    assert [one for one, _ in found] == [name]
    watch = Watch(config.model_dump())
    (sign,) = [sign for row in SHOWN[name] for sign in watch.look(row)]
    assert "\n" not in sign.text and ("ower optim.lr" in sign.text or "mmfast data show" in sign.text)


@pytest.mark.parametrize("name", NOT_SHOWN)
def test_a_series_like_it_shows_nothing(name, config):
    assert seen(config, NOT_SHOWN[name]) == []


def test_a_sign_comes_with_the_row_by_which_most_of_the_last_ones_show_it(config):
    assert seen(config, SHOWN["chosen"]) == [("chosen", 7 * 5 + 5 * 5)]  # half of ten: the sixth of twelve
    assert seen(config, series((FEWEST, fallen(60)))) == [("chosen", FEWEST * 5)]
    assert seen(config, series((FEWEST - 1, fallen(60)))) == []
    assert RECENT * 4 >= 40 and ENOUGH == 100  # what the table of the docs says


@pytest.mark.parametrize(
    "changes", [{"reference.kind": "none", "objective.loss": "simpo"}, {"objective.compat": "dgpref"}]
)
def test_without_a_reference_of_the_same_kind_the_first_rows_say_where_the_answers_were(changes, tmp_path):
    config = make_config(tmp_path, "model", "data.jsonl", **changes)
    rewards = {"rewards/chosen": -9.0}
    assert seen(config, series((40, rewards))) == []
    found = seen(config, series((RECENT, rewards), (RECENT, rewards | {"logps/chosen": -160.0})))
    assert [name for name, _ in found] == ["chosen"]


@pytest.mark.parametrize(
    ("words", "count", "told"),
    [((20, 31), 8, True), ((20, 9), 8, True), ((20, 29), 8, False), ((20, 60), 4, False), ((0, 20), 8, False)],
    ids=["longer", "shorter", "a little longer", "of few samples", "from nothing"],
)
def test_lengths_of_the_sampled_answers(words, count, told, config):
    watch = Watch(config.model_dump())
    new = [sign for n, some in enumerate(words) for sign in watch.look_at_samples(n, [{"answer": "a " * some}] * count)]
    assert [(sign.name, sign.step) for sign in new] == [("lengths", 1)] * told
    if told:
        assert f"from {words[0]} to {words[1]} words" in new[0].text


def folder_with(tmp_path, config, rows, samples=()):
    (tmp_path / "config.toml").write_text(dump(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return tmp_path


def test_a_resumed_run_tells_only_what_is_new(tmp_path, config):
    rows = series((6, {}), (8, fallen(60)), (12, fallen(60) | {"rewards/margins": 30.0}))
    watch = Watch(config.model_dump(), folder_with(tmp_path, config, rows[:14]))
    assert [sign.name for sign in watch.signs] == ["chosen"]
    assert [sign.name for row in rows[14:] for sign in watch.look(row)] == ["margins"]
    whole = Watch(config.model_dump(), folder_with(tmp_path, config, rows))
    assert whole.signs == watch.signs


def test_the_report_shows_the_signs_of_a_run_by_step(tmp_path, config):
    samples = [{"step": step, "prompt": "?", "answer": "a " * step} for step in (10, 40) for _ in range(8)]
    folder = folder_with(tmp_path, config, SHOWN["margins"] + series((1, {}), every=99), samples)
    assert [sign.name for sign in signs_of(folder)] == ["lengths", "margins"]
    page = report([folder]).read_text()
    assert "the margins run away: 25" in page and "from 10 to 40 words" in page
    assert "Warnings" not in report([folder_with(tmp_path, config, series((60, {})))]).read_text()
    (folder / "config.toml").write_text("[nothing]\nknown = 1\n")
    assert signs_of(folder) == []
