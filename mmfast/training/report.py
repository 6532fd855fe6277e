"""report.html and report.png of one run, or of several compared."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from mmfast import pages
from mmfast.evals import words as phrases
from mmfast.files import write_text
from mmfast.job.rows import read
from mmfast.training.collapse import signs_of

PANELS = (
    ("loss", ("loss", "eval/loss")),
    ("rewards", ("rewards/chosen", "rewards/rejected")),
    ("margins", ("rewards/margins", "eval/rewards/margins")),
    ("accuracies", ("rewards/accuracies", "eval/rewards/accuracies")),
    ("log-probs", ("logps/chosen", "logps/rejected")),
    ("grad norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
    ("tokens / s", ("tokens_per_s",)),
    ("memory, GiB", ("memory_gib",)),
    ("data wait, share", ("data_wait",)),
)
STYLE = """.s{display:flex;gap:1em;margin:1em 0;border-top:1px solid #ddd;padding-top:1em}
.s img{width:160px;image-rendering:pixelated}"""


def report(runs: list[Path], out: Path | None = None, *, live: bool = False) -> Path:
    """Plot the metrics of one run, or of several in the same panels; returns the HTML page (the PNG lies beside it).
    `out`: a page, or a folder for it; default: the first run's folder. `live`: the run goes on, and the page loads
    itself again each minute."""
    runs = [Path(run) for run in runs]
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise ValueError(f"{run} is not a run: it has no metrics.jsonl")
    name = "report.html" if len(runs) == 1 else "compare.html"
    out = Path(out) if out else runs[0]
    if out.suffix != ".html":
        out.mkdir(parents=True, exist_ok=True)
        out = out / name
    # Values and curves, then warnings, samples and settings of each run
    rows = {_label(run, runs): read(run / "metrics.jsonl") for run in runs}
    picture = out.with_suffix(".png")
    _plot(rows, picture)
    parts = [
        _table({label: {k: v for row in values for k, v in row.items()} for label, values in rows.items()}),
        f"<p>{pages.picture(picture.read_bytes(), 'curves')}</p>",
    ]
    for run in runs:
        if signs := signs_of(run):
            lines = "".join(f"<li>step {one.step}: {html.escape(one.text)}</li>" for one in signs)
            parts.append(f"<h2>Warnings: {html.escape(_label(run, runs))}</h2><ul>{lines}</ul>")
        samples = run / "samples.jsonl"
        if samples.is_file():
            found, label = read(samples), html.escape(_label(run, runs))
            if found:
                parts += [f"<h2>What changed in the words: {label}</h2>", _words(found)]
            parts += [f"<h2>Samples: {label}</h2>", *map(_sample, found)]
        settings = run / "config.toml"
        if settings.is_file():
            text = html.escape(settings.read_text())
            parts.append(f"<details><summary>config: {html.escape(str(run))}</summary><pre>{text}</pre></details>")
    page = pages.page("mmfast report", parts, heading=", ".join(rows), style=STYLE)
    refresh = '<meta http-equiv="refresh" content="60">'
    write_text(out, page.replace("<meta", f"{refresh}<meta", 1) if live else page)
    return out


def _label(run: Path, runs: list[Path]) -> str:
    names = [r.resolve().name for r in runs]
    return run.resolve().name if names.count(run.resolve().name) == 1 else str(run)


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    return [step for step, _ in points], [value for _, value in points]


def _plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = {key for rows in runs.values() for row in rows for key in row}
    panels = [(title, keys) for title, keys in (*PANELS, *_benchmarks(there)) if there & set(keys)]
    height = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 2.8 * max(height, 1)), layout="constrained")
    FigureCanvasAgg(figure)
    styles = ("-", "--", ":")
    for place, (title, keys) in enumerate(panels):
        axes = figure.add_subplot(height, 2, place + 1)
        for color, (name, rows) in enumerate(runs.items()):
            for style, key in zip(styles, keys, strict=False):
                steps, values = _points(rows, key)
                if steps:
                    label = key if len(runs) == 1 else f"{name}: {key}"
                    marker = "o" if len(steps) == 1 or key.startswith("eval/") else ""
                    line = color if len(runs) > 1 else keys.index(key)
                    axes.plot(steps, values, style, color=f"C{line}", label=label, marker=marker, markersize=3)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _benchmarks(keys: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """A panel a benchmark ([evaluate]), with its first three metrics: those of the whole, before those of parts."""
    found: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        bench, dot, _ = key.removeprefix("eval/").partition(".")
        if key.startswith("eval/") and dot:
            found.setdefault(bench, []).append(key)
    return [(bench, tuple(names[:3])) for bench, names in sorted(found.items())]


def _table(runs: dict[str, dict[str, Any]]) -> str:
    keys = sorted({key for row in runs.values() for key in row})
    rows = ([key, *(row.get(key, "") for row in runs.values())] for key in keys)
    return pages.table(["last value", *runs], map(pages.texts, rows))


def _words(samples: list[dict[str, Any]]) -> str:
    """Of the answers, from the first step with samples to the last; with one such step, from the truths to it."""
    answers: dict[int, list[str]] = {}
    for row in samples:
        answers.setdefault(row["step"], []).append(str(row["answer"]))
    first, last = min(answers), max(answers)
    truths = [str(row["chosen"]) for row in samples if row["step"] == last and row.get("chosen")]
    before = answers[first] if first < last else truths
    heading = f"{len(answers[last])} answers, and {len(truths)} truths"
    changes = phrases.changed(before, answers[last], truths)
    return phrases.as_html(changes, heading, f"step {first}" if first < last else "truths", f"step {last}")


def _sample(row: dict[str, Any]) -> str:
    pictures = "".join(map(pages.picture, row.get("images", ())))
    texts = "".join(
        f"<p><b>{name}</b> {html.escape(str(row[name]))}</p>" for name in ("prompt", "answer", "chosen") if name in row
    )
    return f'<div class="s"><div>{pictures}</div><div><b>step {row["step"]}</b>{texts}</div></div>'
