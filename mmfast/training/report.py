"""report.html of one run, or of several compared: one file that needs nothing beside it, written while a run goes on
too. A section that would be empty is left out."""

from __future__ import annotations

import html
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmfast import pages
from mmfast.config import Config
from mmfast.config.toml import read_tree
from mmfast.files import write_text
from mmfast.job.rows import read
from mmfast.pages import charts
from mmfast.training import report_samples
from mmfast.training.collapse import signs_of

RENEW = 60  # seconds between two readings of the page of a run that goes on
CURVES = (
    ("Loss", ("loss", "eval/loss")),
    ("Pairs in the right order", ("rewards/accuracies", "eval/rewards/accuracies")),
    ("Margin of the rewards", ("rewards/margins", "eval/rewards/margins")),
    ("Rewards", ("rewards/chosen", "rewards/rejected")),
    ("Log-probs", ("logps/chosen", "logps/rejected")),
    ("Norm of the gradient", ("grad_norm",)),
)
SPEED = (
    ("Learning rate", ("learning_rate",)),
    ("Tokens a second", ("tokens_per_s",)),
    ("Memory at its peak, GiB", ("memory_gib",)),
    ("Waiting for data, share of the time", ("data_wait",)),
)
CHIEF = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm", "tokens_per_s", "memory_gib")
EXACT = {"learning_rate", "memory_gib"}  # smoothing would tell of values that never were
OWN_NAME = {"output_dir", "log.name"}  # differ between any two runs
STYLE = "body{max-width:84rem}h1{overflow-wrap:anywhere}.left :is(td,th){text-align:left}td{vertical-align:top}"


@dataclass(frozen=True)
class Told:
    """What a run's folder says."""

    folder: Path
    label: str

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return read(self.folder / "metrics.jsonl")

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        file = self.folder / "samples.jsonl"
        return read(file) if file.is_file() else []

    @cached_property
    def settings_text(self) -> str:
        file = self.folder / "config.toml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """By dotted keys, those that an earlier version did not know as they are by default; empty where config.toml is
        missing or is no TOML (somebody may have edited it)."""
        try:
            own = flat(read_tree(self.folder / "config.toml"))
        except ValueError:
            return {}
        return (standard() | own) if own else {}

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Of training/forecast.py."""
        file = self.folder / "plan.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else {}
        except ValueError:
            raise ValueError(f"{file} is damaged: remove it, and the report is without the plan") from None

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @property
    def total(self) -> int:
        return self.plan.get("steps") or self.settings.get("train.steps") or 0

    @cached_property
    def last(self) -> dict[str, Any]:
        """The last value of each metric."""
        return {key: value for row in self.rows for key, value in row.items() if key != "step"}

    def typical(self, key: str) -> float:
        """The median, which one slow step does not move; 0 where there is none."""
        return statistics.median([float(row[key]) for row in self.rows if key in row] or [0.0])


def report(runs: Sequence[Path], out: Path | None = None, *, live: bool = False) -> Path:
    """Write the page of one run, or of several compared; returns its path. `out`: a page, or a folder for it; default:
    the first run's folder. `live`: the run goes on, and the page reads itself again every minute."""
    runs = [Path(run) for run in runs]
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise ValueError(f"{run} is not a run: it has no metrics.jsonl")
    name = "report.html" if len(runs) == 1 else "compare.html"
    out = Path(out) if out else runs[0]
    if out.suffix != ".html":
        out.mkdir(parents=True, exist_ok=True)
        out = out / name
    told = [Told(run, _label(run, runs)) for run in runs]
    parts = [
        *_head(told, live),
        *_warnings(told),
        *_first(told),
        *_curves(told),
        *report_samples.parts(told),
        *_settings(told),
    ]
    heading = ", ".join(one.label for one in told)
    style = STYLE + report_samples.STYLE
    page = pages.page(f"{heading}: mmfast", parts, heading=heading, style=style, script=True, renew=RENEW * live)
    write_text(out, page)
    return out


def _label(run: Path, runs: list[Path]) -> str:
    names = [r.resolve().name for r in runs]
    return run.resolve().name if names.count(run.resolve().name) == 1 else str(run)


# at the top


def _head(told: list[Told], live: bool) -> Iterator[str]:
    now = time.strftime("%Y-%m-%d %H:%M")
    said = [html.escape(_state(one, live)) for one in told] if len(told) == 1 else [f"{len(told)} runs compared"]
    for one in told if len(told) == 1 else ():
        model, data = one.settings.get("model.path"), one.settings.get("data.path")
        said += [f"{name} {html.escape(str(value))}" for name, value in (("model", model), ("data", data)) if value]
    yield f'<p class="soft">{" · ".join(said)} · written {now}<span id="age"></span></p>'
    if len(told) == 1:
        yield pages.tiles(_facts(told[0], live))


def _warnings(told: list[Told]) -> Iterator[str]:
    """Signs of collapse, of each run that has any."""
    for one in told:
        if signs := signs_of(one.folder):
            lines = "".join(f"<li>step {sign.step}: {html.escape(sign.text)}</li>" for sign in signs)
            of = f": {html.escape(one.label)}" if len(told) > 1 else ""
            yield f"<h2>Warnings{of}</h2><ul>{lines}</ul>"


def _state(one: Told, live: bool) -> str:
    of = f" of {one.total}" if one.total else ""
    if live:
        return f"running: step {one.step}{of}"
    if (one.folder / "stopped").is_file():
        return f"stopped at step {one.step}{of}"
    return f"finished at step {one.step}" if one.step == one.total else f"step {one.step}{of}"


def _facts(one: Told, live: bool) -> Iterator[tuple[str, str]]:
    """The few numbers that are looked for first."""
    last, n = one.last, charts.number
    pace, pairs = one.typical("pairs_per_s"), one.settings.get("train.pairs_per_step", 0)
    if live and pace and one.total > one.step:
        yield "left, evaluations not counted", _duration((one.total - one.step) * pairs / pace)
    for key, name, unit in (("loss", "loss", ""), ("rewards/accuracies", "pairs in the right order", "%")):
        held_out = f"eval/{key}" in last
        if held_out or key in last:
            value = float(last[f"eval/{key}" if held_out else key])
            yield f"{'held-out ' * held_out}{name}", n(100 * value if unit else value) + unit
    if pace:
        yield "tokens a second", n(one.typical("tokens_per_s"))
        yield "pairs a second", n(pace)
    if last.get("sharing"):
        yield "of the tokens shared, not computed again", f"{100 * float(last['sharing']):.0f}%"
    if "memory_gib" in last:
        planned = one.plan.get("memory_gib", {}).get("total")
        yield f"GiB at the peak{f', {n(planned)} planned' if planned else ''}", n(_peak(one))


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{max(minutes, 1)} min"


def _peak(one: Told) -> float:
    return max(float(row["memory_gib"]) for row in one.rows if "memory_gib" in row)


def _first(told: list[Told]) -> Iterator[str]:
    """Of several runs: how their settings differ, and what came of it."""
    if len(told) == 1:
        return
    differing = _differing([one.settings for one in told if one.settings])
    labels = [one.label for one in told]
    if all(one.settings for one in told):
        yield "<h2>What differs</h2>"
        rows = [[key, *(_value(one.settings.get(key)) for one in told)] for key in differing]
        table = pages.table(["setting", *labels], map(pages.texts, rows))
        yield f'<div class="scroll left">{table}</div>' if rows else "<p>No setting but the names.</p>"
    chief = (name for key in CHIEF for name in (key, f"eval/{key}"))
    keys = [key for key in (*chief, *_benchmark_keys(told)) if any(key in one.last for one in told)]
    rows = [["steps", *(f"{one.step}" for one in told)]]
    rows += [[key, *(_number(one.last.get(key)) for one in told)] for key in keys]
    yield f'<h2>Last values</h2><div class="scroll">{pages.table(["", *labels], map(pages.texts, rows))}</div>'


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [k for k in keys if k not in OWN_NAME and any(one.get(k) != settings[0].get(k) for one in settings)]


def _value(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _number(value: Any) -> str:
    return "" if value is None else charts.number(float(value))


# curves


def _curves(told: list[Told]) -> Iterator[str]:
    there = dict.fromkeys(key for one in told for row in one.rows for key in row if key not in ("step", "epoch"))
    benchmarks = _benchmarks(set(there))
    known = {key for _, keys in (*CURVES, *SPEED, *benchmarks) for key in keys}
    rest = [key for key in there if key not in known]
    more = [(key, (key,)) for key in rest]
    count = len(told) * len(there)
    most = min(600, max(60, charts.MOST // max(count, 1)))

    def drawn(panels: Sequence[tuple[str, tuple[str, ...]]]) -> str:
        return "".join(_chart(title, keys, told, most) for title, keys in panels if set(keys) & there.keys())

    if chief := drawn(CURVES):
        yield f'<h2>Curves</h2>{_tools(told)}<div class="charts">{chief}</div>'
    if judged := drawn(benchmarks):
        yield f'<h2>Benchmarks</h2><div class="charts">{judged}</div>'
    memory = "".join(_memory(one, f": {one.label}" if len(told) > 1 else "") for one in told)
    if (speed := drawn(SPEED)) or memory:
        yield f'<h2>Rate, speed and memory</h2><div class="charts">{speed}{memory}</div>'
        yield from (f'<p class="soft">{html.escape(one.plan["problem"])}</p>' for one in told if "problem" in one.plan)
    if rest:
        yield f'<details><summary>{len(rest)} more curves</summary><div class="charts">{drawn(more)}</div></details>'
    longest = max(len(one.rows) for one in told)
    if longest > most:
        yield (
            f'<p class="soft">Curves of more than {most} points (the longest has up to {longest}) are drawn by the '
            "first, lowest, highest and last of each stretch. All are in metrics.jsonl.</p>"
        )


def _tools(told: list[Told]) -> str:
    """What page.js makes work; without it they are not shown."""
    weight = 0.8 if max(len(one.rows) for one in told) > 150 else 0
    slider = f'<input id="smooth" type="range" min="0" max="0.98" step="0.02" value="{weight}">'
    runs = "".join(
        f'<label class="c{n % charts.COLOURS}"><input type="checkbox" value="{n}" checked><i></i>'
        f"{html.escape(one.label)}</label>"
        for n, one in enumerate(told)
    )
    chosen = f'<span class="runs tools">{runs}</span>' if len(told) > 1 else ""
    return f'<div class="tools"><label>smoothing {slider}<output></output></label>{chosen}</div>'


def _chart(title: str, keys: tuple[str, ...], told: list[Told], most: int) -> str:
    """One run: a colour a metric. Several: a colour a run, a dash a metric."""
    drawn, several = [], len(told) > 1
    for run, one in enumerate(told):
        for n, key in enumerate(keys):
            points = [(row["step"], float(row[key])) for row in one.rows if key in row]
            own = _short(key, keys)
            name = own if not several else one.label if len(keys) == 1 else f"{one.label}: {own}"
            look = {"colour": run if several else n, "dash": n if several else 0, "run": run}
            held_out = key.startswith("eval/")
            drawn.append(charts.Line(name, points, dots=held_out, smooth=not held_out and key not in EXACT, **look))
    return charts.lines(title, drawn, most=most)


def _short(key: str, keys: tuple[str, ...]) -> str:
    """As much of a metric's name as tells it from the others of its panel."""
    if len(keys) == 1:
        return key
    if any(f"eval/{one}" in keys for one in keys):
        return "held-out" if key.startswith("eval/") else "training"
    return key.rpartition("/")[2]


def _benchmarks(keys: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """A panel a benchmark ([evaluate]), with its first three metrics: those of the whole, before those of parts."""
    found: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        bench, dot, _ = key.removeprefix("eval/").partition(".")
        if key.startswith("eval/") and dot:
            found.setdefault(bench, []).append(key)
    return [(bench, tuple(names[:3])) for bench, names in sorted(found.items())]


def _benchmark_keys(told: list[Told]) -> list[str]:
    return [key for _, keys in _benchmarks({key for one in told for key in one.last}) for key in keys]


def _memory(one: Told, whose: str) -> str:
    """What was planned, by part, below what was measured; "" without a plan."""
    planned = one.plan.get("memory_gib")
    if not planned or "memory_gib" not in one.last:
        return ""
    parts = [charts.Bar(name, size, colour=7) for name, size in planned.items() if size and name != "total"]
    bars = [charts.Bar("measured", _peak(one)), charts.Bar("planned", planned["total"], colour=1), *parts]
    return charts.bars(f"Memory against the plan, GiB{whose}", bars, note=f"rank 0 of {one.plan['ranks']}")


# settings


def flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def standard() -> dict[str, Any]:
    """The defaults."""
    return {key: value for key, value in flat(Config().model_dump(mode="json")).items() if value is not None}


def _settings(told: list[Told]) -> Iterator[str]:
    if any(one.settings_text or one.rows for one in told):
        yield "<h2>Settings</h2>" if any(one.settings_text for one in told) else ""
    defaults = standard()
    for one in told:
        label = f": {html.escape(one.label)}" if len(told) > 1 else ""
        changed = {key: value for key, value in one.settings.items() if value != defaults.get(key)}
        if changed and len(told) == 1:
            yield "<p>What differs from the defaults.</p>"
            rows = [[key, _value(value), _value(defaults.get(key))] for key, value in changed.items()]
            table = pages.table(["setting", "here", "default"], map(pages.texts, rows))
            yield f'<div class="scroll left">{table}</div>'
        if one.settings_text:
            text = html.escape(one.settings_text)
            yield f"<details><summary>config.toml, whole{label}</summary><pre>{text}</pre></details>"
    keys = sorted({key for one in told for key in one.last if not math.isnan(float(one.last[key]))})
    rows = [[key, *(_exact(one.last.get(key)) for one in told)] for key in keys]
    table = pages.table(["metric", *(one.label for one in told)], map(pages.texts, rows))
    yield f'<details><summary>Last value of every metric</summary><div class="scroll">{table}</div></details>'


def _exact(value: Any) -> str:
    return "" if value is None else f"{float(value):.6g}"
