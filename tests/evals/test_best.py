"""The best of a run's evaluations, by a margin: chance changes nothing, a lead beyond it does, files tell it again."""

import numpy as np
import pytest

from mmfast.evals.base import Mark, Result
from mmfast.evals.benches import benches
from mmfast.evals.best import Best
from mmfast.evals.tables import write_result
from tests.make.eval_cases import Toy

IMAGES = 60


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setitem(benches(), "toy", Toy())


def result(right, limit=0):
    """An evaluation that has these of its images right."""
    marks = [Mark(id=f"q{n}", unit=f"{n}", sums={"right": float(r), "asked": 1.0}) for n, r in enumerate(right)]
    made_by = {"data": {"toy.jsonl": "1"}, "limit": limit, "judge": "", "parser": "official", "wording": "", "runs": 1}
    share = sum(mark.sums["right"] for mark in marks) / len(marks)
    metrics = {"accuracy": share, "wrong": len(marks) * (1 - share)}
    return Result(
        bench="toy",
        flavour="official",
        metrics=metrics,
        intervals={},
        marks=marks,
        counts={},
        notes=[],
        made_by=made_by,
    )


def some(number):
    return result([n < number for n in range(IMAGES)])


def test_only_a_lead_beyond_chance_takes_the_place(tmp_path):
    best = Best(tmp_path, "toy.accuracy")
    assert best.take(10, some(30)) is None and best.step == 10
    lead = best.take(20, some(31))  # one image more: its interval holds 0
    assert lead.by == pytest.approx(1 / IMAGES) and lead.low == 0 and best.step == 10
    assert "not beyond chance: step 10 stays the best" in best.told(20, 31 / IMAGES, lead)
    lead = best.take(30, some(40))
    assert lead.over == 10 and lead.low > 0 and best.step == 30
    assert "it is the best now" in best.told(30, 40 / IMAGES, lead)
    assert best.take(40, some(20)).high < 0 and best.step == 30  # worse beyond chance


def test_the_same_images_are_compared(tmp_path):
    """A lead of six images: beyond chance where nothing else changed, within it where twelve went the other way."""
    best = Best(tmp_path, "toy.accuracy")
    best.take(1, some(30))
    mixed = result([n >= 12 for n in range(30)] + [n < 18 for n in range(30)])
    assert mixed.metrics["accuracy"] == some(36).metrics["accuracy"]
    best.take(2, mixed)
    assert best.step == 1
    best.take(3, some(36))
    assert best.step == 3


def test_where_the_smallest_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "less_is_better", ("wrong",))
    best = Best(tmp_path, "toy.wrong")
    best.take(1, some(30))
    best.take(2, some(29))
    assert best.step == 1
    best.take(3, some(45))
    assert best.step == 3


def test_of_many_equal_models_chance_takes_the_place_seldom(tmp_path, monkeypatch):
    """20 runs of 6 evaluations of models that are all alike: by value luck takes the place in five runs of six."""
    monkeypatch.setattr("mmfast.evals.intervals.RESAMPLES", 200)
    rng, moved, by_value = np.random.default_rng(0), 0, 0
    for _ in range(20):
        best, values = Best(tmp_path, "toy.accuracy"), []
        for step in range(1, 7):
            one = result(rng.random(IMAGES) < 0.6)
            values.append(one.metrics["accuracy"])
            best.take(step, one)
        moved += best.step != 1
        by_value += int(np.argmax(values)) != 0
    assert moved <= 6 < 13 <= by_value, (moved, by_value)


def written(folder, steps):
    for step, right in steps.items():
        write_result(folder / f"step-{step}" / "toy" / "result.json", some(right) if isinstance(right, int) else right)
    return Best(folder, "toy.accuracy")


def test_a_new_start_finds_what_the_old_one_chose(tmp_path):
    steps = {2: 30, 4: 31, 10: 40, 12: 41, 100: 42}
    lived, best = Best(tmp_path, "toy.accuracy"), written(tmp_path, steps)
    for step, right in steps.items():
        lived.take(step, some(right))
        best.look(step, kept=steps)
        assert best.step == lived.step
    # Step 2 lost its checkpoint to step 10, and step 4, which never led, has one still: it does not come back
    best.look(12, kept={4, 10, 12})
    assert best.step == 10
    # What lies beyond the step that a run goes on from does not count
    best.look(4, kept={2, 4})
    assert best.step == 2


def test_another_metric_or_other_questions_begin_anew(tmp_path):
    best = written(tmp_path, {1: 30, 2: 40, 3: 31})
    best.look(3, kept={1, 3})  # step 2 has no checkpoint: it was chosen by something else until now
    assert best.step == 1
    fewer = result([n < 10 for n in range(IMAGES)], limit=IMAGES)
    assert best.take(4, fewer) is None and best.step == 4
    best = written(tmp_path, {4: fewer})
    best.look(4, kept={1, 3, 4})
    assert best.step == 4


def test_a_result_that_was_cut_off_is_none(tmp_path):
    best = written(tmp_path, {1: 30, 2: 50})
    path = tmp_path / "step-2" / "toy" / "result.json"
    path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / "step-x" / "toy").mkdir(parents=True)
    best.look(9, kept={1, 2})
    assert best.step == 1
