"""Intervals cover what they say, over images and not over questions; differences are of the same images."""

from functools import partial

import numpy as np
import pytest

from mmfast.evals.base import Mark, ratio
from mmfast.evals.intervals import differences, intervals, means, totals


def accuracy(sums):
    return {"accuracy": ratio(sums["right"], sums["asked"])}


def clustered(rng, units, each, spread=1.5, shift=0.0):
    """Marks of questions that stand or fall with their image: each image has a probability of its own."""
    marks = []
    for unit in range(units):
        p = 1 / (1 + np.exp(-(0.5 + shift + spread * rng.standard_normal())))
        for k in range(each):
            right = float(rng.random() < p)
            marks.append(Mark(id=f"{unit}/{k}", unit=f"u{unit}", sums={"right": right, "asked": 1.0}))
    return marks


def expected(spread=1.5, shift=0.0):
    p = 0.5 + shift + spread * np.random.default_rng(1).standard_normal(200_000)
    return float((1 / (1 + np.exp(-p))).mean())


def test_95_percent_cover_over_images_and_far_fewer_over_questions(monkeypatch):
    monkeypatch.setattr("mmfast.evals.intervals.RESAMPLES", 400)
    true, covered = expected(), {"images": 0, "questions": 0}
    for number in range(200):
        marks = clustered(np.random.default_rng(number), 40, 12)
        alone = [Mark(id=m.id, unit=m.id, sums=m.sums) for m in marks]
        for name, some in (("images", marks), ("questions", alone)):
            low, high = intervals(some, accuracy)["accuracy"]
            covered[name] += low <= true <= high
    assert covered["images"] >= 180, covered  # 190 expected, less for 40 images
    assert covered["questions"] <= 150, covered


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    before = clustered(rng, 80, 6)
    after = [Mark(id=m.id, unit=m.unit, sums=m.sums | ({"right": 1.0} if rng.random() < 0.2 else {})) for m in before]
    by, low, high = differences(before, after, accuracy)["accuracy"]
    one, other = (intervals(marks, accuracy)["accuracy"] for marks in (before, after))
    assert low <= by <= high and low > 0 and high - low < 0.6 * (one[1] - one[0] + other[1] - other[0]) / 2
    assert by == pytest.approx(accuracy(totals(after))["accuracy"] - accuracy(totals(before))["accuracy"])
    assert differences(before, before, accuracy)["accuracy"] == (0, 0, 0)
    with pytest.raises(ValueError, match="the same questions"):
        differences(before, after[1:], accuracy)
    with pytest.raises(ValueError, match="run by run: one has 1, the other 2"):
        differences(before, after, accuracy, ((), (after,)))


def test_the_runs_of_a_judge_are_resampled_too():
    """A judge whose runs differ makes the interval wider; equal runs do not."""
    rng = np.random.default_rng(0)
    first = clustered(rng, 60, 1)
    noise = [
        [Mark(id=m.id, unit=m.unit, sums=m.sums | {"right": float(rng.random() < 0.6)}) for m in first]
        for _ in range(3)
    ]
    width = {}
    for name, more in (("one", []), ("equal", [first] * 3), ("noise", noise)):
        low, high = intervals(first, accuracy, more)["accuracy"]
        width[name] = high - low
        assert means([first, *more], accuracy)["accuracy"] == pytest.approx(
            np.mean([accuracy(totals(run))["accuracy"] for run in [first, *more]])
        )
    assert width["equal"] == pytest.approx(width["one"], rel=0.15)
    shifted = [[Mark(id=m.id, unit=m.unit, sums=m.sums | {"right": float(k % 2)}) for m in first] for k in range(3)]
    low, high = intervals(first, accuracy, shifted)["accuracy"]
    assert low < means([first, *shifted], accuracy)["accuracy"] < high


def test_metrics_of_arrays_are_those_of_numbers():
    marks = clustered(np.random.default_rng(0), 30, 4)
    twice = partial(ratio, times=100)
    low, high = intervals(marks, lambda sums: {"x": twice(sums["right"], sums["asked"])})["x"]
    other = intervals(marks, accuracy)["accuracy"]
    assert (low / 100, high / 100) == pytest.approx(other)
    assert ratio(1.0, 0.0) == 0 and list(ratio(np.ones(2), np.array([0.0, 2.0]))) == [0, 0.5]
