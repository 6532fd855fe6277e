"""Charts of a page as SVG: lines over steps, and bars with their intervals. They are whole without a script; page.js
adds values at the pointer and smoothing."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, LOW = 50, 405, 8, 166  # of the field in which lines are drawn
MOST = 24_000  # points of all lines of a page, which keeps it under a megabyte
COLOURS = 8
BAR = 22  # height of a bar with what is around it


@dataclass(frozen=True)
class Line:
    """`points` in the order of their steps."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0
    run: int = 0
    dots: bool = False
    smooth: bool = True  # where the reader asks for it


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    ends: tuple[float, float] | None = None  # of an interval
    colour: int = 0


def number(value: float, digits: int = 4) -> str:
    """Short, for people: 12.5k, 0.0312, 5e-07."""
    if not math.isfinite(value):
        return "not finite"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def labels(shown: Sequence[float]) -> list[str]:
    """Of the numbers of an axis: with as many digits as tell each from the next."""
    digits = 4
    while len({number(one, digits) for one in shown}) < len(shown) and digits < 16:
        digits += 1
    return [number(one, digits) for one in shown]


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers within the ends."""
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Of each stretch of a long line its first, lowest, highest and last point, and the first that is not finite: the
    line looks the same."""
    if len(points) <= most:
        return list(points)
    stretches, kept = max(most // 5, 1), set[int]()
    for n in range(stretches):
        stretch = range(n * len(points) // stretches, (n + 1) * len(points) // stretches)
        finite = [i for i in stretch if math.isfinite(points[i][1])]
        kept |= {stretch[0], stretch[-1], *[i for i in stretch if not math.isfinite(points[i][1])][:1]}
        if finite:
            kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def lines(title: str, drawn: Sequence[Line], *, most: int = 600, across: str = "step") -> str:
    """A chart. Values that are not finite are red ticks below their line's gap."""
    drawn = [line for line in drawn if line.points]
    kept = [thinned(line.points, most) for line in drawn]
    across_ends = _ends([x for points in kept for x, _ in points], 0.0)
    ends = _ends([y for points in kept for _, y in points if math.isfinite(y)], 0.06)
    xs, ys = (RIGHT - LEFT) / (across_ends[1] - across_ends[0]), (TOP - LOW) / (ends[1] - ends[0])
    x0, y0 = LEFT - xs * across_ends[0], LOW - ys * ends[0]
    # Grid and numbers
    parts = []
    for tick, said in zip(shown := ticks(*ends), labels(shown), strict=True):
        y = y0 + ys * tick
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{said}</text>')
    for tick, said in zip(shown := ticks(*across_ends, whole=True), labels(shown), strict=True):
        parts.append(f'<text x="{x0 + xs * tick:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{said}</text>')
    # Lines, their gaps, and the place of the pointer; then what a script reads
    key, data = [], []
    for line, points in zip(drawn, kept, strict=True):
        place = [(x0 + xs * x, y0 + ys * y if math.isfinite(y) else math.nan) for x, y in points]
        look = f'class="c{line.colour % COLOURS} d{line.dash % 3}" data-run="{line.run}"'
        dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in place if y == y]
        lost = "".join(f"M{x:.1f},{LOW}v5" for x, y in place if y != y)
        parts.append(f'<g data-line {look}><path d="{_path(place)}"/><path d=""/>')
        parts += dots if line.dots or len(dots) == 1 else []
        parts.append((f'<path class="lost" d="{lost}"/>' if lost else "") + "</g>")
        last = number(line.points[-1][1])
        key.append(f"<span {look}><i></i>{html.escape(line.name)} <b>{last}</b></span>")
        numbers = [_short(y) if math.isfinite(y) else None for _, y in points]
        data.append({"x": [x for x, _ in points], "y": numbers, "smooth": line.smooth})
    scale = " ".join(f"{value:.9g}" for value in (x0, xs, y0, ys))
    return (
        f'<figure class="chart" data-lines><figcaption>{html.escape(title)}<span></span></figcaption>'
        f'<div class="key">{"".join(key)}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" data-scale="{scale}" data-top="{TOP}" data-low="{LOW}" '
        f'data-across="{html.escape(across)}">{"".join(parts)}<path class="at" d=""/></svg>'
        f'<script type="application/json">{json.dumps(data, separators=(",", ":"))}</script></figure>'
    )


def bars(title: str, drawn: Sequence[Bar], *, unit: str = "", note: str = "") -> str:
    """A bar below the other, from zero on, its value behind it; an interval is a line through its end."""
    widest = max(len(bar.name) for bar in drawn)
    left = min(max(60, 7 * widest), 200) + 8
    ends = [abs(number) for bar in drawn for number in (bar.value, *(bar.ends or ()))]
    scale = (WIDTH - left - 62) / (max(ends) or 1)
    parts = []
    for n, bar in enumerate(drawn):
        y, length = n * BAR, scale * max(bar.value, 0)
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 15}">{html.escape(bar.name)}</text>')
        parts.append(f'<g class="c{bar.colour % COLOURS}"><rect x="{left}" y="{y + 3}" width="{length:.1f}" ')
        parts.append(f'height="{BAR - 6}" rx="2"/></g>')
        if bar.ends:
            low, high = (left + scale * max(end, 0) for end in bar.ends)
            parts.append(f'<path class="span" d="M{low:.1f},{y + 11}H{high:.1f}M{low:.1f},{y + 7}v8')
            parts.append(f'M{high:.1f},{y + 7}v8"/>')
            length = max(length, high - left)
        parts.append(
            f'<text class="value" x="{left + length + 6:.1f}" y="{y + 15}">{number(bar.value, 3)}{unit}</text>'
        )
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}<span>{html.escape(note)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {BAR * len(drawn) + 4}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _ends(values: Sequence[float], more: float) -> tuple[float, float]:
    """Of an axis that holds the values and `more` of their spread on both sides; never of no length."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-30:
        more, spread = 1.0, max(abs(low) * 0.1, 1e-12) if low else 1.0
    else:
        spread = (high - low) * more
    return (low - spread, high + spread) if more else (low, high)


def _path(place: Iterable[tuple[float, float]]) -> str:
    text, pen = "", "M"
    for x, y in place:
        if y != y:
            pen = "M"
            continue
        text += f"{pen}{x:.1f},{y:.1f}"
        pen = "L"
    return text


def _short(value: float) -> float:
    return float(f"{value:.5g}")
