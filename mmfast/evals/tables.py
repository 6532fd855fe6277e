"""Results as files, tables (Markdown, LaTeX, HTML) and bars; and what changed between two.

Results that were made in different ways never share a table: data, flavour, wording, template, decoding, judge and
parser must be the same, and the part that is not is named. The weights alone may differ.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfast.engines.base import canonical
from mmfast.evals.base import Mark, Result
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.intervals import differences
from mmfast.evals.judge import agreement
from mmfast.files import write_bytes

FREE = ("engine", "weights")  # parts of made_by in which the rows of a table may differ
MAY_DIFFER = ("template",)  # and one that models of two families cannot share: `across` says that it is meant


# files


def write_result(path: Path, result: Result) -> None:
    value = {"mmfast": "result", "version": 1, **asdict(result)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(value, ensure_ascii=False) + "\n").encode())


def read_result(path: str | Path) -> Result:
    path = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
    try:
        value = json.loads(path.read_bytes())
        if value.pop("mmfast") != "result" or value.pop("version") != 1:
            raise KeyError
        value["intervals"] = {name: tuple(ends) for name, ends in value["intervals"].items()}
        value["marks"] = [Mark(**mark) for mark in value["marks"]]
        value["more"] = [[Mark(**mark) for mark in run] for run in value["more"]]
        return Result(**value)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such result (mmfast eval score ... --json FILE writes one)") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no result of `mmfast eval score --json`") from None


# who may share a table


def refuse_unlike(results: Mapping[str, Result], across: Sequence[str] = ()) -> list[str]:
    """Raises where two results were made in different ways, naming the part. `across`: parts that are meant to differ;
    returned is a line for each that does."""
    if strange := [part for part in across if part not in MAY_DIFFER]:
        raise ValueError(f"--across {strange[0]}: only {', '.join(MAY_DIFFER)} may differ in a table")
    told = []
    (first, one), *others = results.items()
    for name, other in others:
        here = _parts(one), _parts(other)
        for part in {**here[0], **here[1]}:
            if here[0].get(part) == here[1].get(part) or (part == "judge.name" and _one_judge(*here)):
                continue
            line = f"{part}: {first} has {_short(here[0].get(part))}, {name} has {_short(here[1].get(part))}"
            if part not in across:
                raise ValueError(f"{first} and {name} cannot share a table: they differ in {line}")
            told.append(line)
    return told


def _one_judge(*parts: dict[str, Any]) -> bool:
    """A judge by any other name: a record alone has not the one that a command gave it."""
    return len({part.get("judge.identity") for part in parts}) == 1


def _parts(result: Result) -> dict[str, Any]:
    made_by = {k: v for k, v in result.made_by.items() if k not in FREE}
    data = sorted(made_by.pop("data").values())
    parts = {"benchmark": result.bench, "flavour": result.flavour, "data": data}
    for name, value in made_by.items():  # of settings each has its own name
        parts |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return parts


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(part)[:12] for part in value) or "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (text if len(text) <= 100 else text[:97] + "...") or "nothing that says it"


# tables


def rows_of(results: Mapping[str, Result], metrics: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """(headings, a line a result): each metric with its 95% interval."""
    there = list(dict.fromkeys(name for one in results.values() for name in one.metrics))
    if unknown := [name for name in metrics if name not in there]:
        raise ValueError(f"--metric {unknown[0]}: there are {', '.join(there)}")
    names = list(metrics) or there
    return ["", *names], [[label, *(_cell(one, name) for name in names)] for label, one in results.items()]


def _cell(result: Result, name: str) -> str:
    if name not in result.metrics:
        return "-"
    ends = result.intervals.get(name)
    value = number(result.metrics[name])
    return value if ends is None else f"{value} ({number(ends[0])} to {number(ends[1])})"


def number(value: float) -> str:
    """Four digits that count, and at most two places behind the point of what is large."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def markdown(results: Mapping[str, Result], metrics: Sequence[str] = (), across: Sequence[str] = ()) -> str:
    told = refuse_unlike(results, across)
    head, lines = rows_of(results, metrics)
    table = [head, ["---"] * len(head), *lines]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)
    return "\n\n".join([body, _under(next(iter(results.values()))), *told]) + "\n"


def latex(results: Mapping[str, Result], metrics: Sequence[str] = (), across: Sequence[str] = ()) -> str:
    told = refuse_unlike(results, across)
    head, lines = rows_of(results, metrics)
    rows = [" & ".join(map(_escaped, line)) + r" \\" for line in (head, *lines)]
    body = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    notes = [_under(next(iter(results.values()))), *told]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes)]) + "\n"


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)


def _under(result: Result) -> str:
    """What all rows of a table share."""
    made_by = result.made_by
    parts = [result.bench, f"flavour {result.flavour}", f"parser {made_by['parser']}"]
    parts += [f"wording {made_by['wording']}"] if made_by["wording"] else []
    parts += [f"judge {made_by['judge']['name']}"] if made_by["judge"] else []
    parts += [f"{name} {digest[:12]}" for name, digest in made_by["data"].items()]
    return f"{', '.join(parts)}; in brackets 95% intervals over images"


def lines(result: Result) -> list[str]:
    """A result in words, for a terminal."""
    told = [_under(result)]
    for name, value in result.metrics.items():
        ends = result.intervals.get(name)
        shown = f"({number(ends[0])} to {number(ends[1])})" if ends else "(no interval)"
        ours = result.strict.get(name)
        by_ours = f"; by our parser {number(ours)}" if ours is not None and ours != value else ""
        told.append(f"  {name:24} {number(value):>9}  {shown}{by_ours}")
    told.append("  " + ", ".join(f"{count} {name}" for name, count in result.counts.items()))
    return told + [f"  {note}" for note in result.notes]


def bars(results: Mapping[str, Result], path: Path, metrics: Sequence[str] = (), across: Sequence[str] = ()) -> None:
    """A picture: for each metric a group of bars, one a result, with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    refuse_unlike(results, across)
    names = rows_of(results, metrics)[0][1:]
    figure = Figure(figsize=(max(6, 1.1 * len(names) * max(len(results), 2) ** 0.5), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, width = figure.add_subplot(), 0.8 / len(results)
    for k, (label, one) in enumerate(results.items()):
        there = [(i, name) for i, name in enumerate(names) if name in one.metrics]
        heights = [one.metrics[name] for _, name in there]
        ends = [one.intervals.get(name, (value, value)) for (_, name), value in zip(there, heights, strict=True)]
        below = [max(value - low, 0.0) for value, (low, _) in zip(heights, ends, strict=True)]
        above = [max(high - value, 0.0) for value, (_, high) in zip(heights, ends, strict=True)]
        places = [i + (k - (len(results) - 1) / 2) * width for i, _ in there]
        axes.bar(places, heights, 0.92 * width, yerr=[below, above], label=label, color=f"C{k}", capsize=2)
    axes.set_xticks(
        range(len(names)), names, rotation=30 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    axes.set_title("\n".join(textwrap.wrap(_under(next(iter(results.values()))), 90)), fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


# two results


def changed(before: Result, after: Result, across: Sequence[str] = ()) -> dict[str, tuple[float, float, float]]:
    """(after - before, and its 95% interval) of each metric, the same images compared."""
    refuse_unlike({"the first": before, "the second": after}, across)
    one, flavour = bench_of(before.bench), before.flavour.removesuffix(", own prompt")
    metrics = lambda sums: one.metrics(sums, flavour)  # noqa: E731
    return differences(before.marks, after.marks, metrics, (before.more, after.more))


def agreed(first: Result, second: Result) -> dict[str, float]:
    """How far two judges of the same answers agree, item by item: in the verdict that a mark tells, or else in what it
    adds to the sums."""
    if first.bench != second.bench or first.made_by["weights"] != second.made_by["weights"]:
        raise ValueError("two judges are compared on the same answers: these are of other models or benchmarks")
    if not (first.made_by["judge"] and second.made_by["judge"]):
        raise ValueError(f"a result of {first.bench} has no judge: only judged results are compared so")
    one, other = ({m.id: _verdict(m) for m in result.marks} for result in (first, second))
    both = sorted(one.keys() & other.keys())
    found = agreement({key: one[key] for key in both}, {key: other[key] for key in both})
    return found | {"judged by one alone": float(len(one.keys() ^ other.keys()))}


def _verdict(mark: Mark) -> Any:
    return mark.told["verdict"] if "verdict" in mark.told else canonical(dict(mark.sums))
