"""The score of a file of answers: every question has its answer, each answer its marks, and the marks their sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mmfast.engines.base import Engine
from mmfast.evals import layouts
from mmfast.evals.answering import questions_of, worded
from mmfast.evals.base import Answer, Benchmark, Data, Judge, Mark, Question, Result, Scoring
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.intervals import intervals, means, totals
from mmfast.evals.judge import as_judge

TRIAL = "Yes, there is something to be seen, and this was written before anybody looked."
SEEDS_APART = 1000  # between the runs of a judge: a call that is asked again stays within its run


def score(
    bench: str | Benchmark,
    answers: str | Path | Mapping[str, Answer],
    *,
    data: str | Path,
    images: str | Path = "",
    flavour: str = "",
    wording: str = "",
    judge: Judge | Engine | None = None,
    runs: int = 1,
    strict: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """
    answers   a file or folder, ours or of the official layout; or answers by question
    data      the benchmark's folder
    flavour   which of several published ways of scoring; default: the first
    wording   how the questions were asked, where the file does not say it
    judge     an engine, or one of judge.py (which keep a record); asked `runs` times, each with seeds of its own
    strict    our own parser instead of the official one
    """
    # What is scored, and how
    one = bench_of(bench) if isinstance(bench, str) else bench
    flavour = flavour or one.flavours[0]
    judge = as_judge(judge)
    check_options(one, flavour, judge is not None, runs, strict)
    own_options([one], options or {})
    home = Data(data, one, images)
    if isinstance(answers, Mapping):
        header: dict[str, Any] = {}
        found: Mapping[str, Answer] = answers
        asked, name = worded(one, wording)
        questions = questions_of(one, home, asked)
    else:
        header, name, questions, found = read_answers(one, answers, home, wording)
    # Every question has an answer, or its lack is known
    counts: Counter[str] = Counter()
    questions = _complete(
        one, "the answers" if isinstance(answers, Mapping) else str(answers), questions, found, counts
    )

    def marked(run: int, strictly: bool) -> tuple[list[Mark], Scoring]:
        scoring = Scoring(data=home, flavour=flavour, strict=strictly, judge=judge, options=options or {})
        if judge is not None:
            judge.seed = run * SEEDS_APART
        return list(one.marks(questions, found, scoring)), scoring

    # Marks, of each run of the judge; then by our parser too
    made = [marked(run, strict) for run in range(runs)]
    (first, scoring), *others = made
    if not first:
        raise ValueError(f"{one.name}: no answer was marked")
    if judge is not None and not scoring.judged:
        scoring.notes.append("the judge was not asked: every answer could be scored without it")
    more = [marks for marks, _ in others]
    metrics = partial(one.metrics, flavour=flavour)
    strictly = means([marked(0, True)[0]], metrics) if one.parsers_differ and not strict else {}
    # Their sums, and all that these depend on
    scoring.own_prompt = scoring.own_prompt or bool(scoring.counts["own prompt"])
    limit = header.get("limit", 0)
    words = sum(len(turn.split()) for q in questions if q.id in found for turn in found[q.id].turns)
    notes = [f"{words / max(sum(q.id in found for q in questions), 1):.1f} words an answer", *scoring.notes]
    some = f"{limit:.2%} of the images were" if limit < 1 else f"the first {limit} questions were"
    notes += [f"only {some} asked"] if limit else []
    return Result(
        bench=one.name,
        flavour=f"{flavour}, own prompt" if scoring.own_prompt else flavour,
        metrics=means([first, *more], metrics) | _extra(one, made),
        intervals=intervals(first, metrics, more),
        marks=first,
        counts=_counted(questions, found, first, counts + scoring.counts),
        notes=list(dict.fromkeys(notes)),
        made_by=_made_by(header, one, name if header or wording else "", scoring, runs),
        strict=strictly,
        more=more,
    )


def read_answers(
    bench: Benchmark, path: str | Path, data: Data, wording: str = ""
) -> tuple[dict[str, Any], str, list[Question], dict[str, Answer]]:
    """(header, the wording's name, the questions that were asked, the answers there are) of a file. `wording`: where it
    does not say it itself."""
    header = layouts.header_of(path, bench)
    if wording and header and wording != header["wording"]:
        raise ValueError(f"--wording {wording}: {path} was asked with {header['wording']}")
    asked, name = worded(bench, wording or header.get("wording", ""))
    questions = questions_of(bench, data, asked, header.get("limit", 0))
    # Answers belong to the version of the data that was asked
    here = ", ".join(f"{name} {digest[:12]}" for name, digest in data.hashes.items())
    for file, digest in header.get("data", {}).items():
        if digest not in data.hashes.values():
            raise ValueError(
                f"{path} was made with another version of the data: {file} {digest[:12]}; {data.folder} has {here}"
            )
    return header, name, questions, layouts.read(path, bench, questions).answers


def check_options(bench: Benchmark, flavour: str, judge: bool, runs: int, strict: bool) -> None:
    """Raises where an option has no effect on this benchmark."""
    if flavour not in bench.flavours:
        raise ValueError(f"--flavour: {bench.name} has no {flavour!r}; there are {', '.join(bench.flavours)}")
    if judge and not bench.asks_judge(flavour):
        raise ValueError(f"--judge has no effect: {bench.name} is scored without one by the flavour {flavour}")
    if runs > 1 and not judge:
        raise ValueError("--runs has no effect without a --judge: the same answers always have the same score")
    if strict and not bench.parsers_differ:
        raise ValueError(f"--strict has no effect: {bench.name} has no parser beside the official one")


def own_options(benches: Sequence[Benchmark], options: Mapping[str, Any]) -> None:
    """Raises for the name of an option that none of the benchmarks has."""
    names = {name: about for one in benches for name, about in one.options.items()}
    if unknown := [name for name in options if name not in names]:
        told = "; ".join(f"{name}: {about}" for name, about in names.items()) or "no options"
        asked = ", ".join(one.name for one in benches)
        raise ValueError(f"--option {unknown[0]}: {asked} has no such option (there are {told})")


def _complete(
    bench: Benchmark, path: str, questions: list[Question], answers: Mapping[str, Answer], counts: Counter[str]
) -> list[Question]:
    """The questions that are marked: one without an answer is refused, wrong or left out, as the benchmark has it."""
    missing = [q.id for q in questions if q.id not in answers]
    if missing and bench.missing == "refused":
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(questions)} answers to {bench.name} (the first: {missing[0]}): "
            "the official score is of all of them"
        )
    there = [q for q in questions if q.id in answers]
    for q in there:
        if (turns := len(answers[q.id].turns)) != len(q.turns):
            raise ValueError(f"{path}: the answer to {q.id} has {turns} turns, and {bench.name} asks {len(q.turns)}")
    counts["empty"] += sum(not all(turn.strip() for turn in answers[q.id].turns) for q in there)
    return there if bench.missing == "skipped" else questions


def _extra(bench: Benchmark, made: list[tuple[list[Mark], Scoring]]) -> dict[str, float]:
    """Figures that no sums tell, over the runs of a judge their mean. They have no interval."""
    found = [bench.extra(marks, scoring) for marks, scoring in made]
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def _counted(
    questions: list[Question], answers: Mapping[str, Answer], marks: list[Mark], counts: Counter[str]
) -> dict[str, int]:
    """Questions that count, and of them those without an answer; then what else was counted."""
    marked = {mark.id for mark in marks}
    there = [q.id for q in questions if q.id in answers or q.id in marked]
    missing = sum(name not in answers for name in there)
    told = {"questions": len(there), "missing": missing} if missing else {"questions": len(there)}
    return told | {name: number for name, number in sorted(counts.items()) if number}


def _made_by(header: Mapping[str, Any], bench: Benchmark, wording: str, scoring: Scoring, runs: int) -> dict[str, Any]:
    """All that the figures depend on; "" where nobody said it."""
    judge = scoring.judge
    return {
        "data": dict(sorted(scoring.data.hashes.items())),
        "wording": wording,
        "template": header.get("template", ""),
        "decode": header.get("decode") or (asdict(bench.wordings[wording].decode) if wording else ""),
        "attributes": header.get("attributes", ""),
        "limit": header.get("limit", 0),
        "judge": dict(judge.made_by) if judge is not None else "",
        "judge prompt": ("own prompt" if scoring.own_prompt else "official") if judge is not None else "",
        "runs": runs,
        "parser": "strict" if scoring.strict else "official",
        "options": dict(scoring.options),
        "engine": header.get("engine", ""),
        "weights": header.get("weights", ""),
    }


def metric_names(
    bench: Benchmark, questions: list[Question], data: Data, flavour: str = ""
) -> tuple[list[str], list[str]]:
    """What will be measured, told by a made-up answer to each question: before any is asked for. Those with an interval
    and those without. Raises what scoring would: a file that is not there, a judge that is needed."""
    trial = {q.id: Answer(id=q.id, turns=(TRIAL,) * len(q.turns)) for q in questions}
    scoring = Scoring(data=data, flavour=flavour or bench.flavours[0])
    marks = list(bench.marks(questions, trial, scoring))
    return list(bench.metrics(totals(marks), scoring.flavour)), list(bench.extra(marks, scoring))
