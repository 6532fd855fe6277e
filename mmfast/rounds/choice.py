"""Which model is kept: the best so far on the held-out benchmark, by more than chance; and when rounds have no use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmfast.evals.answering import asking, each_its_own
from mmfast.evals.base import JudgeNeeded
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.scoring import metric_names
from mmfast.evals.tables import changed, read_result
from mmfast.rounds.settings import Settings
from mmfast.rounds.steps import home_of


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a round's model did beside the best before it."""

    round: int
    against: int  # the round whose model was the best before; 0: the base
    by: float  # new - old
    low: float
    high: float
    better: bool  # its interval lies on the good side of 0

    def told(self, metric: str) -> str:
        who = "the base" if self.against == 0 else f"round {self.against}"
        verdict = "better" if self.better else "not better"
        return f"{metric} {self.by:+.4g} ({self.low:+.4g} to {self.high:+.4g}) beside {who}: {verdict}"


def check(settings: Settings) -> None:
    """Raises where a benchmark cannot be asked or scored, or does not measure [evaluate].best: before a model is."""
    for name in settings.evaluate.bench:
        check_bench(settings, name)


def check_bench(settings: Settings, name: str) -> int:
    """The same of one benchmark; returns how many questions it has."""
    section, options, best = settings.evaluate, settings.scoring.options, settings.best
    wording = each_its_own(section.bench, str(options.get("wording", "")), "wording", "wordings")[name]
    flavour = each_its_own(section.bench, str(options.get("flavour", "")), "flavour", "flavours")[name]
    asked = asking(name, section.data, wording=wording, images=section.images, limit=section.limit)
    chosen = best.startswith(f"{name}.")
    if chosen and len({question.unit for question in asked.questions}) == 1:
        raise ValueError(f"[evaluate] best = {best!r}: questions about one image have no interval: raise limit")
    try:
        known, _ = metric_names(asked.bench, list(asked.questions), asked.data, flavour)
    except JudgeNeeded:
        judge = f"{name} needs a judge (officially {asked.bench.judge})"
        if "judge" not in options:
            raise ValueError(f"[evaluate] {judge}: name its engine in judge, its model in judge-model") from None
        if section.every and chosen:
            raise ValueError(f"[evaluate] every: inside a run no judge is asked, and {judge}") from None
    else:
        if chosen:
            _measured(best, known)
    return len(asked.questions)


def check_base(settings: Settings) -> None:
    """The same of what a judge has scored, of the base: before a round is spent on it."""
    if settings.best:
        file = home_of(settings, 0) / "eval" / settings.best.partition(".")[0] / "result.json"
        _measured(settings.best, list(read_result(file).intervals))


def _measured(best: str, known: list[str]) -> None:
    bench, _, metric = best.partition(".")
    if metric not in known:
        raise ValueError(f"[evaluate] best = {best!r}: with an interval {bench} has {', '.join(known)}")


def standing(settings: Settings, number: int, against: int) -> Standing:
    """Both answered the same questions: images are drawn for both alike."""
    bench, _, metric = settings.best.partition(".")
    files = [home_of(settings, one) / "eval" / bench / "result.json" for one in (against, number)]
    for file in files:
        read_result(file)  # names what is missing
    differences = _differences(*(part for file in files for part in (file, file.stat().st_mtime_ns)))
    by, low, high = differences[metric]
    better = high < 0 if metric in bench_of(bench).less_is_better else low > 0
    return Standing(round=number, against=against, by=by, low=low, high=high, better=better)


@cache
def _differences(before: Path, _old: int, after: Path, _new: int) -> dict[str, tuple[float, float, float]]:
    """Asked for often, and a second's work; by the files' times."""
    return changed(read_result(before), read_result(after))


def standings(settings: Settings, rounds: int) -> list[Standing]:
    """Of rounds 1 to `rounds`, each beside the best before it."""
    found: list[Standing] = []
    best = 0
    for number in range(1, rounds + 1):
        found.append(standing(settings, number, best))
        best = number if found[-1].better else best
    return found


def start_of(settings: Settings, number: int) -> int:
    """The round whose model round `number` starts from; 0: the base."""
    if number == 1:
        return 0
    if settings.rounds.keep == "last":
        return number - 1
    return best_of(settings, number - 1)


def best_of(settings: Settings, rounds: int) -> int:
    return next((one.round for one in reversed(standings(settings, rounds)) if one.better), 0)


def model_of(settings: Settings, number: int) -> tuple[str, Path | None]:
    """A round's model, and the note of the training that made it."""
    if number == 0:
        return settings.base, None
    home = home_of(settings, number)
    return str(home / "run" / "export" / "hf"), home / "steps" / "run.json"
