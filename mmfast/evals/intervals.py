"""Intervals: a bootstrap over images. Questions about one image stand or fall together, so that resampling them one by
one gives intervals that are too narrow (over POPE's questions a nominal 95% covers 80 to 89%, measured)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmfast.evals.base import Mark, Sums

RESAMPLES, BLOCK = 2000, 100
Metrics = Callable[[Sums], dict[str, Any]]


def totals(marks: Sequence[Mark]) -> dict[str, float]:
    """The sums of all marks, as plain numbers: what a script that adds them one by one gets."""
    out: dict[str, float] = {}
    for mark in marks:
        for name, number in mark.sums.items():
            out[name] = out.get(name, 0) + number
    return out


def means(runs: Sequence[Sequence[Mark]], metrics: Metrics) -> dict[str, float]:
    """Each metric, over the runs of a judge its mean."""
    found = [metrics(totals(marks)) for marks in runs]
    if len(found) == 1:  # as the script that divides once has it, to the bit
        return {name: float(value) for name, value in found[0].items()}
    names = dict.fromkeys(name for one in found for name in one)
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in names}


def intervals(
    marks: Sequence[Mark], metrics: Metrics, more: Sequence[Sequence[Mark]] = ()
) -> dict[str, tuple[float, float]]:
    """95% percentiles of each metric. `more`: the marks of further runs of the judge, which are resampled too."""
    return {name: _middle(values) for name, values in _resampled([marks, *more], metrics).items()}


def differences(
    before: Sequence[Mark],
    after: Sequence[Mark],
    metrics: Metrics,
    more: tuple[Sequence[Sequence[Mark]], Sequence[Sequence[Mark]]] = ((), ()),
) -> dict[str, tuple[float, float, float]]:
    """(after - before, and its 95% interval) of each metric: the same images are drawn for both. `more`: of each, the
    further runs of the judge."""
    if {mark.id for mark in before} != {mark.id for mark in after}:
        raise ValueError("two results are compared image by image: they must answer the same questions")
    if len(more[0]) != len(more[1]):
        raise ValueError(
            f"two results are compared run by run: one has {len(more[0]) + 1}, the other {len(more[1]) + 1}"
        )
    runs = [before, *more[0]], [after, *more[1]]
    first, second = (means(one, metrics) for one in runs)
    old, new = (_resampled(one, metrics) for one in runs)
    return {name: (second[name] - first[name], *_middle(new[name] - old[name])) for name in old if name in new}


def _resampled(runs: Sequence[Sequence[Mark]], metrics: Metrics) -> dict[str, np.ndarray]:
    """Each metric in every resample: a draw takes a unit, and of it one of the judge's runs. Units are put in the order
    of their names, so that two models draw the same."""
    marks = [mark for run in runs for mark in run]
    units = {name: number for number, name in enumerate(sorted({mark.unit for mark in marks}))}
    columns = {name: number for number, name in enumerate(dict.fromkeys(n for mark in marks for n in mark.sums))}
    added = np.zeros((len(runs), len(units), len(columns)))
    for number, run in enumerate(runs):
        for mark in run:
            for name, value in mark.sums.items():
                added[number, units[mark.unit], columns[name]] += value
    rng, found, cells = np.random.default_rng(0), [], len(units) * len(runs)
    for _ in range(RESAMPLES // BLOCK):
        weights = rng.multinomial(len(units), np.full(cells, 1 / cells), BLOCK)
        found.append(weights @ added.reshape(cells, len(columns)))
    sums = np.concatenate(found)
    told = metrics({name: sums[:, at] for name, at in columns.items()})
    return {name: np.broadcast_to(np.asarray(value, float), RESAMPLES) for name, value in told.items()}


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
