"""The best of a run's evaluations, by a margin: a later one takes the best one's place only where the 95% interval of
their difference, the same images compared, lies beyond zero on the better side.

What chance explains changes nothing so: the best is the first of those that cannot be told apart, and of many
evaluations the lucky one is not kept. At a start it is found again from output_dir/eval, in the order of the steps, so
that a kill, a pruned checkpoint or a rollback leaves no trace in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmfast.evals.base import Result
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.tables import changed, number, read_result

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What an evaluation has over the best before it."""

    over: int  # its step
    by: float
    low: float
    high: float

    def told(self) -> dict[str, float]:
        return {"best/difference": self.by, "best/low": self.low, "best/high": self.high}


class Best:
    """`named`: BENCHMARK.METRIC. `folder`: output_dir/eval."""

    def __init__(self, folder: Path, named: str) -> None:
        self.folder, self.named = folder, named
        self.bench, _, self.metric = named.partition(".")
        self.lowest = lowest_is_best(named)
        self.step = 0  # of the best so far; 0: nothing is evaluated
        self.result: Result | None = None

    def look(self, last: int, kept: Collection[int]) -> None:
        """What the steps up to `last` made the best. `kept`: the steps that have a checkpoint; where the best is not
        among them (another metric was chosen by until now), the best of those is."""
        found = list(self._results(last))
        for some in (found, [(step, result) for step, result in found if step in kept]):
            self.step, self.result = 0, None
            for step, result in some:
                self.take(step, result)
            if not self.step or self.step in kept:
                return

    def take(self, step: int, result: Result) -> Lead | None:
        """An evaluation as it comes: it is the best from now on where its lead is beyond chance, or where there is
        nothing that it compares with (None): nothing before it, or an evaluation of other data or fewer questions."""
        lead = None if self.result is None else self._lead(self.result, result, self.step)
        if lead is None or (lead.high < 0 if self.lowest else lead.low > 0):
            self.step, self.result = step, result
        return lead

    def _lead(self, before: Result, after: Result, step: int) -> Lead | None:
        try:
            by, low, high = changed(before, after)[self.metric]
        except (ValueError, KeyError):
            return None
        return Lead(over=step, by=by, low=low, high=high)

    def _results(self, last: int) -> Iterator[tuple[int, Result]]:
        """Those that stand, oldest first; a file that a kill cut off or a user took away is none."""
        paths = self.folder.glob(f"step-*/{self.bench}/{RESULT}")
        steps = {int(path.parts[-3][5:]): path for path in paths if path.parts[-3][5:].isdigit()}
        for step in sorted(step for step in steps if step <= last):
            try:
                result = read_result(steps[step])
            except ValueError:
                continue
            if self.metric in result.metrics:
                yield step, result

    def told(self, step: int, value: float, lead: Lead | None) -> str:
        """A line about the evaluation of `step`, after `take`."""
        said = f"{self.named} at step {step}: {number(value)}"
        if lead is None:
            return f"{said}: the first of its kind, so it is the best"
        sign = f"{lead.by:+.4g} ({lead.low:+.4g} to {lead.high:+.4g}) to the best, step {lead.over}"
        kept = "it is the best now" if self.step == step else f"not beyond chance: step {lead.over} stays the best"
        return f"{said}, {sign}: {kept}"


def lowest_is_best(best: str) -> bool:
    """Whether the smallest value of a benchmark's metric ("chair.CHAIRs") is the best."""
    name, _, metric = best.partition(".")
    return metric in bench_of(name).less_is_better
