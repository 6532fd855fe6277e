"""rounds.html: what came of all rounds on one page: the benchmark with its intervals, what changed in the words, how
each round was trained and on what, why other pairs were not made, time and costs. What was not done has no section."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmfast import pages
from mmfast.data.formats.known import read_records
from mmfast.data.text.templates import text_of
from mmfast.evals import words
from mmfast.evals.base import Result
from mmfast.evals.tables import read_result
from mmfast.job.rows import read
from mmfast.rounds import choice, curves
from mmfast.rounds.loop import ended, steps_of
from mmfast.rounds.settings import Settings
from mmfast.rounds.steps import Step, home_of

PAGE = "rounds.html"
SHOWN = 6  # metrics of a benchmark in the picture
COUNT = re.compile(r"(?P<name>[^\d].*): (?P<number>\d+)|(?P<first>\d+) (?P<what>.+)")  # a line of what a command counts
STYLE = """td{vertical-align:top}img{width:100%}h2{margin-top:2.5rem}details{margin-top:1rem}
.long :is(td,th):last-child{text-align:left;max-width:40rem}"""
Done = list[tuple[Step, dict[str, Any]]]  # finished steps with their notes


def write(settings: Settings) -> Path:
    done = [(step, note) for step in steps_of(settings) if (note := step.read() or {}).get("mark")]
    found = results(settings)
    parts = [*_outcome(settings)]
    parts += [part for bench, of_rounds in found.items() for part in _bench(settings, bench, of_rounds)]
    parts += [*_training(settings), *_data(done), *_costs(done)]
    path = settings.folder / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    page = pages.page("mmfast rounds", parts, heading=f"Rounds: {settings.folder.resolve().name}", style=STYLE)
    path.write_text(page, encoding="utf-8")
    return path


def results(settings: Settings) -> dict[str, dict[int, Result]]:
    """Of each benchmark, what the base (0) and each round's model reached."""
    found: dict[str, dict[int, Result]] = {}
    for number in range(settings.rounds.count + 1):
        for file in sorted((home_of(settings, number) / "eval").glob("*/result.json")):
            found.setdefault(file.parent.name, {})[number] = read_result(file)
    return found


def _name(number: int) -> str:
    return f"round {number}" if number else "base"


def _items(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _outcome(settings: Settings) -> Iterator[str]:
    """Which model is kept, and why the rounds ended where they did."""
    result = ended(settings)
    if result is None:
        return
    kept = "the base itself: no round was better" if not result["kept"] else f"that of round {result['kept']}"
    after = f"After {result['rounds']} of {settings.rounds.count} rounds the model that is kept is"
    lines = [f"{after} {kept}: {result['model']}"]
    if result["rounds"] < settings.rounds.count:
        lines.append('The last of them gained nothing (rounds.stop = "no gain").')
    yield f"<p>{html.escape(' '.join(lines))}</p>"


# the benchmarks


def _bench(settings: Settings, bench: str, of_rounds: dict[int, Result]) -> Iterator[str]:
    """Curves, then all numbers, then what changed in the words from the base to the last."""
    yield f"<h2>{html.escape(bench)}</h2>"
    answers = {number: _answers(home_of(settings, number) / "eval" / bench) for number in of_rounds}
    names = list(next(iter(of_rounds.values())).metrics)
    chosen = settings.best.startswith(f"{bench}.")
    kept = choice.best_of(settings, max(of_rounds)) if chosen else None
    if len(of_rounds) > 1:
        yield curves.over_rounds(_panels(settings, bench, names, of_rounds, answers), kept)
    if chosen and max(of_rounds) > 0:
        stood = choice.standings(settings, max(of_rounds))
        yield _items(f"{_name(one.round)}: {one.told(settings.best)}" for one in stood)
    cells = [[name, *(_cell(result, name) for result in of_rounds.values())] for name in names]
    cells.append(["words of an answer, on average", *(f"{_mean(map(_length, some)):.1f}" for some in answers.values())])
    yield pages.table(["", *map(_name, of_rounds)], map(pages.texts, cells))
    if len(of_rounds) > 1:
        first, last = min(of_rounds), max(of_rounds)
        heading = f"What changed in the words: {len(answers[last])} answers"
        changed = words.changed(answers[first], answers[last])
        yield words.as_html(changed, heading, _name(first), _name(last), truths=False)


def _panels(
    settings: Settings, bench: str, names: list[str], of_rounds: dict[int, Result], answers: Mapping[int, list[str]]
) -> dict[str, dict[int, curves.Point]]:
    """The metric by which a model is kept, then the benchmark's own first ones; and the length, which no rate tells."""
    best = settings.best.removeprefix(f"{bench}.")
    shown = sorted(names, key=lambda name: name != best)[:SHOWN]
    found: dict[str, dict[int, curves.Point]] = {}
    for name in shown:
        direction = " (less is better)" if name in choice.bench_of(bench).less_is_better else ""
        points = {
            n: (r.metrics[name], *r.intervals.get(name, (r.metrics[name],) * 2))
            for n, r in of_rounds.items()
            if name in r.metrics
        }
        found[f"{name}{direction}"] = points
    if "words" not in shown:
        lengths = {number: _mean(map(_length, some)) for number, some in answers.items()}
        found["words of an answer"] = {number: (value, value, value) for number, value in lengths.items()}
    return found


def _cell(result: Result, name: str) -> str:
    value, ends = result.metrics.get(name), result.intervals.get(name)
    return "" if value is None else f"{value:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else "")


def _answers(folder: Path) -> list[str]:
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = map(json.loads, lines)
    return [str(row.get("text") or " ".join(row.get("turns", ()))) for row in rows]


def _length(text: str) -> int:
    return len(text.split())


def _mean(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return sum(listed) / len(listed) if listed else 0.0


# the training


def _training(settings: Settings) -> Iterator[str]:
    files = {
        number: home_of(settings, number) / "run" / "metrics.jsonl" for number in range(1, settings.rounds.count + 1)
    }
    picture = curves.of_training({number: read(file) for number, file in files.items() if file.is_file()})
    if picture:
        yield f"<h2>Training</h2><p>Over the steps of each round.</p>{picture}"


def _data(done: Done) -> Iterator[str]:
    """What each round was trained on: how many were made, why others were not, and how long the two sides are."""
    makers: dict[str, dict[int, dict[str, Any]]] = {}
    others: dict[str, list[str]] = {}  # what else was said, in which rounds
    for step, note in done:
        if step.command[0] != "data":
            continue
        counts: dict[str, Any] = {}
        for line in note.get("said", ()):
            if found := COUNT.fullmatch(line):
                counts[found["name"] or found["what"]] = found["number"] or found["first"]
            elif line.strip():
                others.setdefault(line.replace(f"{step.home}/", ""), []).append(step.told)
        makers.setdefault(step.name, {})[step.round] = counts | _lengths(step.makes)
    if makers:
        yield "<h2>Training data</h2>"
    for name, rounds in makers.items():
        keys = dict.fromkeys(key for counts in rounds.values() for key in counts)
        cells = [[key, *(counts.get(key, "") for counts in rounds.values())] for key in keys]
        yield pages.table([name, *map(_name, rounds)], map(pages.texts, cells))
    if others:
        yield _items(f"{line} ({'; '.join(dict.fromkeys(steps))})" for line, steps in others.items())


def _lengths(file: Path) -> dict[str, str]:
    """Words of both sides: where the chosen ones are the longer ones, length is what is learnt."""
    sides: list[tuple[int, int]] = []
    single: list[int] = []
    for record in read_records(file):
        chosen, rejected = (
            sum(_length(text_of(message)) for message in side or ()) for side in (record.chosen, record.rejected)
        )
        if record.rejected is None:
            single.append(chosen)
        else:
            sides.append((chosen, rejected))
    told = {"words of an answer": f"{_mean(single):.1f}"} if single else {}
    if sides:
        longer = _mean(chosen > rejected for chosen, rejected in sides)
        told |= {
            f"words {name}": f"{_mean(side):.1f}"
            for name, side in zip(("chosen", "rejected"), zip(*sides, strict=True), strict=True)
        }
        told["chosen is longer"] = f"{100 * longer:.0f}%"
    return told


# what it took


def _costs(done: Done) -> Iterator[str]:
    """Seconds of every step by rounds, their sum, the processor's, tokens and money; then what each said last."""
    if not done:
        return
    rounds = sorted({step.round for step, _ in done})
    spent = {(step.name, step.round): step.spent() for step, _ in done}
    names = list(dict.fromkeys(name for name, _ in sorted(spent, key=lambda one: one[1] == 0)))

    def row(title: str, values: list[float], digits: int = 0) -> list[str]:
        return [title, *(f"{value:,.{digits}f}" if value else "" for value in [*values, sum(values)])]

    def sums(key: str) -> list[float]:
        return [sum(spent.get((name, number), {}).get(key, 0) for name in names) for number in rounds]

    cells = [row(f"{name}, seconds", [spent.get((name, n), {}).get("seconds", 0) for n in rounds]) for name in names]
    cells += [row("all, seconds", sums("seconds")), row("of processors", sums("processor_seconds"))]
    for key, title, digits in (
        ("tokens_in", "tokens to servers", 0),
        ("tokens_out", "tokens from servers", 0),
        ("paid", "paid", 4),
    ):
        if any(values := sums(key)):
            cells.append(row(title, values, digits))
    yield "<h2>Time and costs</h2>"
    yield pages.table(["", *map(_name, rounds), "all"], map(pages.texts, cells))
    said = [(step.told, (note.get("said") or [""])[-1].replace(f"{step.home}/", "")) for step, note in done]
    told = pages.table(["step", "said last"], map(pages.texts, said))
    yield f'<details class="long"><summary>What each step said last</summary>{told}</details>'
