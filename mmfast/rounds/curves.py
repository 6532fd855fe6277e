"""The pictures of rounds.html: small panels of curves over rounds, and of each round's training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmfast import pages

ACROSS = 3  # panels beside each other
TRAINING = (
    ("loss", ("loss",)),
    ("pairs in the right order", ("rewards/accuracies",)),
    ("margin of rewards", ("rewards/margins",)),
    ("log-probs: chosen, rejected (dashed)", ("logps/chosen", "logps/rejected")),
    ("rewards: chosen, rejected (dashed)", ("rewards/chosen", "rewards/rejected")),
    ("norm of the gradient", ("grad_norm",)),
)
Point = tuple[float, float, float]  # a value and its interval's ends


def over_rounds(panels: Mapping[str, Mapping[int, Point]], kept: int | None) -> str:
    """A panel a metric, round 0 being the base; the round whose model is kept has a ring."""
    figure, places = _figure(len(panels))
    for axes, (title, points) in zip(places, panels.items(), strict=True):
        rounds = list(points)
        values, low, high = zip(*points.values(), strict=True)
        spread = [[max(v - a, 0) for v, a in zip(values, low, strict=True)]]
        spread += [[max(b - v, 0) for v, b in zip(values, high, strict=True)]]
        axes.errorbar(rounds, values, yerr=spread, marker="o", markersize=4, capsize=3, linewidth=1.2)
        axes.axhline(values[0], color="0.6", linewidth=0.8, linestyle=":")
        if kept is not None and kept in points:
            axes.plot([kept], [points[kept][0]], "o", markersize=10, markerfacecolor="none", color="C3")
        axes.set_xticks(rounds, ["base" if n == 0 else str(n) for n in rounds])
        axes.margins(x=0.15)
        _finish(axes, title)
    return _shown(figure, "the benchmark over rounds")


def of_training(runs: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    """Each round's curves over each other; "" where no metric was logged."""
    there = {key for rows in runs.values() for row in rows for key in row}
    panels = [(title, keys) for title, keys in TRAINING if keys[0] in there]
    if not panels:
        return ""
    figure, places = _figure(len(panels))
    for axes, (title, keys) in zip(places, panels, strict=True):
        for number, rows in runs.items():
            for key, style in zip(keys, ("-", "--"), strict=False):
                points = [(row["step"], row[key]) for row in rows if key in row]
                if points:
                    look = {"marker": "o" if len(points) == 1 else "", "markersize": 3, "linewidth": 1.2}
                    label = f"round {number}" if style == "-" else None
                    axes.plot(*zip(*points, strict=True), style, color=f"C{(number - 1) % 10}", label=label, **look)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(axes, title)
    places[0].legend(fontsize=7, loc="best")
    return _shown(figure, "training")


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = -(-panels // ACROSS)
    figure = Figure(figsize=(11, 2.3 * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(height, ACROSS, place + 1) for place in range(panels)]


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shown(figure: Any, alt: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format="png")
    return f"<p>{pages.picture(file.getvalue(), alt)}</p>"
