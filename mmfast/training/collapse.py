"""Signs that a run goes wrong while its loss falls: read off its rows of metrics, in the run and for its report.

Each is told once, with what it means and what to do. docs/training.md has the table of them and of these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mmfast.job.rows import FILES, read
from mmfast.packages import tomllib

RECENT = 10  # rows that are looked at together, so that no single step is a sign; fewer while there are no more
FEWEST = 3  # rows, before the first sign
FALL = 1.5  # the chosen answers' negative log-prob, against where it was
RIGHT, ENOUGH = 0.98, 100  # share of pairs ranked right in the first epoch, over so many of them
MARGIN = 20.0  # rewards; beyond it sigmoid's gradient is below 1e-8
LONGER, SHORTER, SAMPLES = 1.5, 0.5, 8  # words of the sampled answers against the first ones, of so many samples
GRADIENT = 10.0  # its norm, against the first rows'


@dataclass(frozen=True)
class Sign:
    step: int
    name: str
    text: str


class Watch:
    """Fed with the rows of metrics and the samples of a run in their order; `folder`: with what lies there first.
    `settings`: the run's, as config.toml has them."""

    def __init__(self, settings: dict[str, Any], folder: Path | None = None) -> None:
        objective, reference = settings["objective"], settings["reference"]
        self.beta, self.pairs_per_step = objective["beta"], settings["train"]["pairs_per_step"]
        started = reference["kind"] != "none" and not reference["model"] and objective["compat"] != "dgpref"
        self.starts_at_reference, self.signs = started, list[Sign]()
        self.values: dict[str, list[float]] = {}
        self.words: list[float] = []  # of a sampled answer, in the mean of each step with samples
        rows, samples = (read(folder / name) if folder and (folder / name).exists() else [] for name in FILES)
        for row in rows:
            self.look(row)
        for step, some in groupby(samples, lambda row: row["step"]):
            self.look_at_samples(step, list(some))
        self.signs.sort(key=lambda sign: sign.step)

    def look(self, row: dict[str, Any]) -> list[Sign]:
        """The signs that this row is the first to show."""
        for key, value in row.items():
            self.values.setdefault(key, []).append(float(value))
        return self._new(int(row["step"]), CHECKS)

    def look_at_samples(self, step: int, samples: list[dict[str, Any]]) -> list[Sign]:
        if len(samples) < SAMPLES:
            return []
        self.words.append(fmean(len(str(row["answer"]).split()) for row in samples))
        return self._new(step, {"lengths": _lengths})

    def _new(self, step: int, checks: Mapping[str, Callable[[Watch], str]]) -> list[Sign]:
        told = {sign.name for sign in self.signs}
        new = [Sign(step, name, text) for name, check in checks.items() if name not in told and (text := check(self))]
        self.signs += new
        return new

    def last(self, key: str) -> list[float]:
        """The newest rows' values of a metric; none while they are too few."""
        values = self.values.get(key, [])
        return values[-RECENT:] if len(values) >= FEWEST else []

    def first(self, key: str) -> list[float]:
        """The first rows' values; none while they overlap the newest."""
        values = self.values.get(key, [])
        return values[:RECENT] if len(values) >= 2 * RECENT else []


def _chosen(watch: Watch) -> str:
    """Where the policy starts from the reference, log-prob and reward of a row say where its answers were."""
    now, rewards, before = watch.last("logps/chosen"), watch.last("rewards/chosen"), watch.first("logps/chosen")
    if watch.starts_at_reference:
        before = [logp - reward / watch.beta for logp, reward in zip(now, rewards, strict=False)]
    if not now or not before or not median(now) < min(FALL * median(before), median(before) - 1):
        return ""
    return (
        f"the chosen answers lose probability: their log-prob fell from {median(before):.4g} to {median(now):.4g} nat. "
        "Where margins still grow, the rejected ones only fall faster. Lower optim.lr, raise objective.beta, or add "
        "objective.sft_weight"
    )


def _accuracy(watch: Watch) -> str:
    right, steps, epoch = watch.last("rewards/accuracies"), watch.values["step"], watch.last("epoch")
    if len(right) < RECENT or not fmean(right) >= RIGHT or not epoch or epoch[-1] >= 1:
        return ""
    if (steps[-1] - steps[-RECENT]) * watch.pairs_per_step < ENOUGH:
        return ""
    return (
        f"{fmean(right):.0%} of pairs that it had not seen are ranked right: something easy tells chosen from rejected "
        "(length, style, a fixed phrase), and that is what is learnt. Look at pairs: mmfast data show"
    )


def _margins(watch: Watch) -> str:
    margins = watch.last("rewards/margins")
    if not margins or not median(margins) > MARGIN:
        return ""
    return (
        f"the margins run away: {median(margins):.3g}, and above {MARGIN:g} a pair teaches nothing more, while the "
        "policy leaves the reference. Lower optim.lr, take fewer steps, or raise objective.beta"
    )


def _lengths(watch: Watch) -> str:
    words = watch.words
    if not words[0] or SHORTER * words[0] < words[-1] < LONGER * words[0]:
        return ""
    return (
        f"the sampled answers went from {words[0]:.3g} to {words[-1]:.3g} words: length may be what is learnt. Balance "
        "the lengths of chosen and rejected, or set objective.ld_alpha or objective.average"
    )


def _gradient(watch: Watch) -> str:
    before, now = watch.first("grad_norm"), watch.last("grad_norm")
    if not before or not median(now) > GRADIENT * median(before):
        return ""
    return (
        f"the gradient's norm grew from {median(before):.3g} to {median(now):.3g}: the run becomes unstable. Lower "
        "optim.lr, lengthen optim.warmup, or clip (optim.clip = 1)"
    )


CHECKS = {"chosen": _chosen, "accuracy": _accuracy, "margins": _margins, "gradient": _gradient}


def signs_of(run: Path) -> list[Sign]:
    """Of a run's folder, for its report; none where config.toml is missing or another version's."""
    try:
        return Watch(tomllib.loads((run / "config.toml").read_text()), run).signs
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return []
