"""rounds.html: what came of all rounds on one page: the benchmark with its intervals, what changed in the words, which
pairs were made and why others were not, time."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

from mmfast import pages
from mmfast.evals import words
from mmfast.evals.base import Result
from mmfast.evals.tables import read_result
from mmfast.rounds import choice
from mmfast.rounds.loop import steps_of
from mmfast.rounds.settings import Settings
from mmfast.rounds.steps import home_of

PAGE = "rounds.html"
SHOWN = 6  # metrics of a benchmark in the picture


def write(settings: Settings) -> Path:
    found = results(settings)
    parts = [part for bench, of_rounds in found.items() for part in _bench(settings, bench, of_rounds)]
    parts += list(_pairs(settings)) + list(_times(settings))
    path = settings.folder / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pages.page("mmfast rounds", parts, heading=str(settings.folder)), encoding="utf-8")
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


def _bench(settings: Settings, bench: str, of_rounds: dict[int, Result]) -> Iterator[str]:
    # The numbers, each with its interval
    yield f"<h2>{html.escape(bench)}</h2>"
    names = list(next(iter(of_rounds.values())).metrics)
    cells = [[name, *(_cell(result, name) for result in of_rounds.values())] for name in names]
    yield pages.table(["", *map(_name, of_rounds)], map(pages.texts, cells))
    if settings.best.startswith(f"{bench}.") and max(of_rounds) > 0:
        stood = choice.standings(settings, max(of_rounds))
        yield (
            "<ul>"
            + "".join(f"<li>{_name(s.round)}: {html.escape(s.told(settings.best))}</li>" for s in stood)
            + "</ul>"
        )
    yield f"<p>{pages.picture(_curves(of_rounds, names[:SHOWN]), bench)}</p>"
    # The words, from the base to the last
    texts = {
        number: _answers(home_of(settings, number) / "eval" / bench) for number in (min(of_rounds), max(of_rounds))
    }
    if len(texts) == 2:
        before, after = texts.values()
        heading = f"What changed in the words: {len(after)} answers"
        yield words.as_html(words.changed(before, after), heading, *map(_name, texts))


def _cell(result: Result, name: str) -> str:
    value, ends = result.metrics.get(name), result.intervals.get(name)
    return "" if value is None else f"{value:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else "")


def _answers(folder: Path) -> list[str]:
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = map(json.loads, lines)
    return [str(row.get("text") or " ".join(row.get("turns", ()))) for row in rows]


def _curves(of_rounds: dict[int, Result], names: list[str]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = (len(names) + 2) // 3
    figure = Figure(figsize=(11, 2.4 * height), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(height, 3, place + 1)
        points = [
            (n, r.metrics[name], *r.intervals.get(name, (r.metrics[name],) * 2))
            for n, r in of_rounds.items()
            if name in r.metrics
        ]
        rounds, values, low, high = zip(*points, strict=True)
        down, up = ([abs(v - e) for v, e in zip(values, ends, strict=True)] for ends in (low, high))
        axes.errorbar(rounds, values, yerr=[down, up], marker="o", markersize=4, capsize=3)
        axes.set_xticks(rounds, ["base" if n == 0 else str(n) for n in rounds])
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()


def _pairs(settings: Settings) -> Iterator[str]:
    """What each round was trained on, as its command told it: rows that were made, and why others were not."""
    told = [
        (step, note["said"])
        for step in steps_of(settings)
        if step.command[0] == "data" and (note := step.read() or {}).get("said")
    ]
    if told:
        yield "<h2>Training data</h2>"
    for step, lines in told:
        yield f"<h3>{html.escape(step.told)}</h3><pre>{html.escape(chr(10).join(lines))}</pre>"


def _times(settings: Settings) -> Iterator[str]:
    notes = [(step, step.read() or {}) for step in steps_of(settings)]
    rows = [
        (step.told, f"{note['seconds']:.0f}", f"{note.get('processor_seconds', 0):.0f}", (note.get("said") or [""])[-1])
        for step, note in notes
        if note.get("mark")
    ]
    yield "<h2>Time</h2>"
    yield pages.table(["step", "seconds", "of processor", "said"], map(pages.texts, rows))
