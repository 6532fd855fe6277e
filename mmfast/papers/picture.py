"""report.png of a seed: for each system what its methods changed, beside their blind controls; curves over gamma and
over rounds; and which kinds of claim were mended by looking.

A mark is a method, told apart by colour and by form: nobody has to tell red from green. A hollow one is a control.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from mmfast.evals.world_report import PLURALS
from mmfast.papers.reading import BASE, Curve, Seed, system_label

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")  # after Okabe and Ito
FORMS = "osD^vPX*"
COLUMNS = 3
GREY = "#8a8a8a"


def draw(seed: Seed) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    drawn(seed).savefig(file, dpi=90, format="png")
    return file.getvalue()


def drawn(seed: Seed) -> Any:
    """The picture as matplotlib's figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A panel for each system, the last of the grid says how to read them
    systems = [system for system in seed.systems if system != BASE]
    lines = -(-(len(systems) + 1) // COLUMNS)
    figure = Figure(figsize=(15, 5.6 * lines + 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(lines + 2, COLUMNS, height_ratios=[*[5.6] * lines, 3.8, 3.8])
    limits = _limits(seed)
    for place, system in enumerate(systems):
        _changes(figure.add_subplot(grid[divmod(place, COLUMNS)]), seed, system, limits)
    _key(figure.add_subplot(grid[divmod(len(systems), COLUMNS)]), seed)
    # Below them the curves, and the kinds of claim
    for line, of in ((lines, "gamma"), (lines + 1, "round")):
        curves = [curve for curve in seed.curves if curve.of == of]
        for column, measure in enumerate(("chair_s", "recall")):
            _curves(figure.add_subplot(grid[line, column]), seed, curves, of, measure)
    _kinds(figure.add_subplot(grid[lines:, 2]), seed)
    figure.suptitle(f"The papers in miniature, seed {seed.told.seed}", fontsize=15, weight="bold")
    return figure


def looks(seed: Seed, system: str) -> dict[str, tuple[str, str]]:
    """(colour, form) of each method that sees. Those of a curve look alike: a number at the mark tells them apart."""
    found: dict[str, tuple[str, str]] = {}
    for name in _seeing(seed, system):
        leader = _leader(seed, system, name)
        if leader not in found:
            at = len(set(found.values()))
            found[leader] = COLOURS[at % len(COLOURS)], FORMS[at % len(FORMS)]
        found[name] = found[leader]
    return found


def _leader(seed: Seed, system: str, name: str) -> str:
    """The first method of its curve, or itself."""
    for curve in seed.curves:
        if curve.system == system and name in curve.points.values():
            return next(one for one in seed.methods if one != BASE and one in curve.points.values())
    return name


def _seeing(seed: Seed, system: str) -> list[str]:
    return [name for name in seed.systems[system] if not seed.methods[name].blind]


def _limits(seed: Seed) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of recall and of CHAIR_s, the same for all panels, so that they can be compared. Controls with likelihood in them
    learn captions of other pictures and may lie far off: then the frame cuts them off."""
    seeing = [change for name, change in seed.changed.items() if not seed.methods[name].blind]
    blind = [change for name, change in seed.changed.items() if seed.methods[name].blind]
    recall, chair = (
        _frame([0, *(100 * end for one in seeing for end in one[m])], [100 * end for one in blind for end in one[m]])
        for m in ("recall", "chair_s")
    )
    return recall, chair


def _frame(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """What holds all values, and those of the others that are not far from them."""
    low, high = min(values), max(values)
    span = max(high - low, 5)
    near = [*values, *(one for one in others if low - span / 2 <= one <= high + span / 2)]
    room = 0.06 * (max(near) - min(near)) + 0.5
    return min(near) - room, max(near) + room


def _seen(start: tuple[float, float], end: tuple[float, float], limits: Any) -> tuple[tuple[float, float], bool]:
    """(The end, or where the line to it leaves the frame; whether it does.)"""
    share = 1.0
    for a, b, (low, high) in zip(start, end, limits, strict=True):
        if not low <= b <= high:
            share = min(share, ((low if b < low else high) - a) / (b - a))
    cut = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
    return (cut, True) if share < 1 else (end, False)


def _changes(axes: Any, seed: Seed, system: str, limits: Any) -> None:
    """Change of recall and of CHAIR_s against the base, each control joined to its method."""
    from matplotlib.patheffects import withStroke

    axes.set_title(system_label(system), loc="left", fontsize=12, weight="bold")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_xlabel("recall, change in points")
    axes.set_ylabel("CHAIR_s, change in points")
    axes.spines[["top", "right"]].set_visible(False)
    # Curves first, then controls, then methods on top
    styles = looks(seed, system)
    numbers: dict[str, str] = {}
    for curve in (c for c in seed.curves if c.system == system):
        path = [_point(seed, name) for name in curve.points.values() if name in seed.changed or name == BASE]
        colour = styles[next(name for name in curve.points.values() if name != BASE)][0]
        axes.plot(*zip(*path, strict=True), color=colour, lw=3, alpha=0.25, zorder=1, solid_joinstyle="round")
        sign = "γ" if curve.of == "gamma" else ""
        numbers |= {name: f"{sign}{at:g}" for at, name in curve.points.items()}
    named: set[str] = set()
    for name, (colour, form) in styles.items():
        if name not in seed.changed:
            continue
        control, (x, y) = seed.methods[name].control, _point(seed, name)
        if control in seed.changed:
            other, outside = _seen((x, y), _point(seed, control), limits)
            axes.plot(*zip((x, y), other, strict=True), color=GREY, lw=0.7, zorder=2)
            if outside:
                axes.plot(*other, form, color=colour, markerfacecolor="white", markersize=7, clip_on=False, zorder=6)
            else:
                _mark(axes, seed, control, colour, form, hollow=True)
        leader = _leader(seed, system, name)
        label = "" if leader in named else _legend(seed, system, name)
        named.add(leader)
        _mark(axes, seed, name, colour, form, label=label)
        if name in numbers:
            axes.annotate(
                numbers[name],
                (x, y),
                (5, 5),
                textcoords="offset points",
                fontsize=9,
                weight="bold",
                color=colour,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                zorder=5,
            )
    if named:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, ncols=2, fontsize=8)


def _point(seed: Seed, name: str) -> tuple[float, float]:
    if name == BASE:
        return 0.0, 0.0
    return 100 * seed.changed[name]["recall"][0], 100 * seed.changed[name]["chair_s"][0]


def _mark(axes: Any, seed: Seed, name: str, colour: str, form: str, *, label: str = "", hollow: bool = False) -> None:
    x, y = (_ends(seed.changed[name][measure]) for measure in ("recall", "chair_s"))
    axes.errorbar(
        x[0],
        y[0],
        xerr=x[1],
        yerr=y[1],
        fmt=form,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=5 if hollow else 7.5,
        elinewidth=0.4 if hollow else 1,
        alpha=0.75 if hollow else 1,
        zorder=3 if hollow else 4,
        label=label or None,
    )


def _ends(change: Sequence[float], by: float = 100) -> tuple[float, list[list[float]]]:
    """(the middle, the lengths of the bars below and above it)."""
    middle, low, high = (by * number for number in change)
    return middle, [[max(middle - low, 0)], [max(high - middle, 0)]]


def _legend(seed: Seed, system: str, name: str) -> str:
    for curve in seed.curves:
        if curve.system == system and name in curve.points.values():
            return _wrapped(f"{curve.label}, over γ" if curve.of == "gamma" else f"{curve.label}, over rounds")
    return _wrapped(seed.methods[name].label)


def _wrapped(label: str, width: int = 32) -> str:
    return "\n".join(textwrap.wrap(label, width))


def _key(axes: Any, seed: Seed) -> None:
    """How the panels are read."""
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title("How to read the panels", loc="left", fontsize=12, weight="bold")
    axes.plot([0.06, 0.2], [0.72, 0.86], color=GREY, lw=0.7)
    axes.errorbar(0.06, 0.72, 0.07, 0.05, fmt="o", color=COLOURS[0], markersize=7.5)
    axes.errorbar(
        0.2, 0.86, 0.05, 0.04, fmt="o", color=COLOURS[0], markerfacecolor="white", markersize=6, elinewidth=0.6
    )
    axes.text(0.28, 0.86, "its blind control: trained alike on pairs\nwhose pictures had been shuffled", va="center")
    axes.text(0.28, 0.72, "a method, with 95% intervals over pictures", va="center")
    told = [
        "The base model is where the grey lines cross.",
        "Down: fewer captions with an invented object.",
        "Right: more of what is there is named.",
        "The line between the two marks is what was",
        "learnt from the picture; where they lie together,",
        "nothing was. A hollow mark on the frame: that",
        "control lies outside, far worse than the base.",
        "Marks of one colour joined by a path: the number",
        "at the mark is gamma, or the round.",
        *(["", "Unfinished: some methods are not made yet."] if seed.missing or not seed.told.complete else []),
    ]
    axes.text(0, 0.6, "\n".join(told), va="top", linespacing=1.5)


def _curves(axes: Any, seed: Seed, curves: Sequence[Curve], of: str, measure: str) -> None:
    """The measure itself over gamma or rounds, controls hollow and dashed, the base a line across."""
    names = {"chair_s": "CHAIR_s, %", "recall": "recall, %"}
    whose = {system_label(curve.system) for curve in curves}
    told = f"{names[measure].split(',')[0]} over {'γ' if of == 'gamma' else 'rounds'}"
    axes.set_title(f"{whose.pop()}: {told}" if len(whose) == 1 else told, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("γ" if of == "gamma" else "round")
    axes.set_ylabel(names[measure])
    axes.spines[["top", "right"]].set_visible(False)
    if not curves:
        axes.text(0.5, 0.5, "not yet made", ha="center", va="center", transform=axes.transAxes, color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    # Marks of several curves stand side by side, or their bars would hide each other
    places = sorted({at for curve in curves for at in curve.points})
    axes.set_xticks(places, ["base" if of == "round" and at == 0 else f"{at:g}" for at in places])
    seen = {name for curve in curves for name in curve.points.values()} | ({BASE} & seed.scores.keys())
    blind = {seed.methods[name].control for name in seen} & seed.scores.keys()
    axes.set_ylim(
        _frame(*([100 * v for n in some for v in seed.scores[n].intervals[measure]] for some in (seen, blind)))
    )
    for k, curve in enumerate(curves):
        shift, colour, form = 0.05 * (k - (len(curves) - 1) / 2), COLOURS[k % len(COLOURS)], FORMS[k % len(FORMS)]
        label = curve.label if of == "gamma" else f"{system_label(curve.system)}: {curve.label}"
        style = {"color": colour, "marker": form}
        _line(axes, seed, {at + shift: name for at, name in curve.points.items()}, measure, label=label, **style)
        controls = {at + shift: seed.methods[name].control for at, name in curve.points.items()}
        controls = {at: name for at, name in controls.items() if name in seed.scores}
        if controls:
            _line(axes, seed, controls, measure, ls=":", markerfacecolor="white", alpha=0.7, **style)
    if BASE in seed.scores and of == "gamma":
        axes.axhline(100 * getattr(seed.scores[BASE], measure), color=GREY, lw=1, ls="--", label="base")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, ncols=3, fontsize=8)


def _line(axes: Any, seed: Seed, points: dict[float, str], measure: str, **style: Any) -> None:
    values = [(getattr(seed.scores[name], measure), *seed.scores[name].intervals[measure]) for name in points.values()]
    middles, bars = zip(*(_ends(value) for value in values), strict=True)
    lengths = [[bar[side][0] for bar in bars] for side in (0, 1)]
    axes.errorbar(list(points), middles, yerr=lengths, elinewidth=0.9, markersize=5.5, lw=1.3, **style)


def _kinds(axes: Any, seed: Seed) -> None:
    """How much rarer each kind of claim is wrong than in the blind control, for the chief method of each system."""
    axes.set_title("Wrong claims, beyond the blind control", loc="left", fontsize=11, weight="bold")
    axes.axvline(0, color=GREY, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("share of claims that are wrong, change in points")
    chiefs = [name for name in seed.chiefs.values() if name in seed.beyond]
    for row in range(0, len(PLURALS), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
    for k, name in enumerate(chiefs):
        for row, kind in enumerate(PLURALS):
            middle, bars = _ends(seed.beyond[name][kind])
            place = row + 0.14 * (k - (len(chiefs) - 1) / 2)
            axes.errorbar(
                middle,
                place,
                xerr=bars,
                fmt=FORMS[k % len(FORMS)],
                color=COLOURS[k % len(COLOURS)],
                elinewidth=1,
                markersize=6,
                label=_wrapped(seed.label(name), 44) if row == 0 else None,
            )
    axes.set_yticks(range(len(PLURALS)), list(PLURALS.values()))
    axes.set_ylim(len(PLURALS) - 0.5, -0.5)
    if chiefs:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8)
