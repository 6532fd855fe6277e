"""The demo's report: scores, and pictures with what was said of them before and after. report.html and report.png."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from .evaluate import Score
from .grammar import claims, errors
from .scenes import KINDS, Scene, render

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .9rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}figure{display:flex;gap:1.2rem;margin:1.4rem 0}
figure img{width:168px;height:168px;image-rendering:pixelated}
mark{background:#ffc9c9}dt{font-weight:600}dd{margin:0 0 .4rem}"""


def choose(scenes: Sequence[Scene], before: Sequence[str], number: int) -> list[int]:
    """The first scenes that `before` hallucinates on, and a quarter on which it does not."""
    wrong = [n for n, scene in enumerate(scenes) if errors(before[n], scene)["object"]]
    right = [n for n in range(len(scenes)) if n not in set(wrong)]
    return sorted((wrong[: number - number // 4] + right)[:number])


def marked(text: str, scene: Scene) -> str:
    """HTML of the caption, invented objects marked."""
    absent = [" ".join(kind) for kind in claims(text).kinds if kind not in scene.kinds]
    said = html.escape(text)
    return re.sub(rf"\b({'|'.join(absent)})", r"<mark>\1</mark>", said) if absent else said


def _picture(scene: Scene) -> str:
    file = io.BytesIO()
    render(scene).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def write_report(
    out: Path,
    scenes: Sequence[Scene],
    captions: Mapping[str, Sequence[str]],
    scores: Mapping[str, Score],
    labels: Mapping[str, str],
    number: int = 8,
) -> Path:
    """`captions` and `scores` by model name; the first name is the model before. Returns the path of the page."""
    chosen = choose(scenes, captions[next(iter(captions))], number)
    rows = [
        f"<tr><td>{labels[n]}</td>"
        + "".join(f"<td>{100 * v:.1f}%</td>" for v in (s.chair_i, s.chair_s, s.recall))
        + f"<td>{s.words:.1f}</td><td>{s.wrong_counts:.2f}</td><td>{s.wrong_relations:.2f}</td></tr>"
        for n, s in scores.items()
    ]
    figures = []
    for n in chosen:
        said = "".join(f"<dt>{labels[m]}</dt><dd>{marked(t[n], scenes[n])}</dd>" for m, t in captions.items())
        figures.append(f'<figure><img alt="{scenes[n].name}" src="{_picture(scenes[n])}"><dl>{said}</dl></figure>')
    heads = "<th></th><th>CHAIR_i</th><th>CHAIR_s</th><th>object recall</th><th>words</th><th>wrong counts</th>"
    runs = [f'<a href="{n}/report.html">{n}</a>' for n in labels if (out / n / "report.html").exists()]
    page = out / "report.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>mmfast demo</title><style>{_STYLE}</style>"
        "<h1>Greedy captions of held-out pictures</h1>"
        f"<p>{len(scenes)} pictures of {len(KINDS)} kinds of object. CHAIR_i: share of the mentioned objects "
        "that are not there. CHAIR_s: share of captions with such an object. Wrong counts and relations: a caption.</p>"
        f"<table><tr>{heads}<th>wrong relations</th></tr>{''.join(rows)}</table>"
        f"<p>Training curves: {', '.join(runs)}</p>{''.join(figures)}\n",
        encoding="utf-8",
    )
    shown = {m: [texts[n] for n in chosen] for m, texts in captions.items()}
    _draw(page.with_suffix(".png"), [scenes[n] for n in chosen], shown, scores, labels)
    return page


def _draw(
    path: Path,
    scenes: Sequence[Scene],
    captions: Mapping[str, Sequence[str]],
    scores: Mapping[str, Score],
    labels: Mapping[str, str],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = (len(scenes) + 1) // 2
    figure = Figure(figsize=(14, 3.2 + 2.3 * lines))
    grid = figure.add_gridspec(lines + 1, 4, height_ratios=[1.25, *[1] * lines], width_ratios=[1, 2.6, 1, 2.6],
                               left=0.05, right=0.98, top=0.96, bottom=0.01, hspace=0.16, wspace=0.06)  # fmt: skip
    bars = figure.add_subplot(grid[0, :])
    measures = {"CHAIR_i": "chair_i", "CHAIR_s": "chair_s", "object recall": "recall"}
    width = 0.8 / len(scores)
    colours = ("#c0504d", "#a5a5a5", "#4f81bd")
    for k, (name, one) in enumerate(scores.items()):
        heights = [100 * one.as_dict()[m] for m in measures.values()]
        places = [i + (k - (len(scores) - 1) / 2) * width for i in range(len(measures))]
        drawn = bars.bar(places, heights, width * 0.92, label=labels[name], color=colours[k % 3])
        bars.bar_label(drawn, fmt="%.1f", fontsize=9)
    bars.set_xticks(range(len(measures)), list(measures))
    bars.set_ylim(0, 112)
    bars.set_ylabel("%")
    bars.legend(loc="upper left", frameon=False)
    bars.spines[["top", "right"]].set_visible(False)
    for n, scene in enumerate(scenes):
        line, side = divmod(n, 2)
        picture = figure.add_subplot(grid[line + 1, 2 * side])
        picture.imshow(render(scene), interpolation="nearest")
        picture.axis("off")
        text = figure.add_subplot(grid[line + 1, 2 * side + 1])
        text.axis("off")
        top = 0.98
        for name, said in captions.items():
            absent = [" ".join(kind) for kind in claims(said[n]).kinds if kind not in scene.kinds]
            note = f"   (invents: {', '.join(absent)})" if absent else ""
            text.text(0, top, labels[name] + note, fontsize=8, weight="bold", va="top",
                      color="#b00020" if absent else "#222", transform=text.transAxes)  # fmt: skip
            wrapped = textwrap.wrap(said[n], 70)
            text.text(0, top - 0.075, "\n".join(wrapped), fontsize=8, va="top", transform=text.transAxes)
            top -= 0.12 + 0.075 * len(wrapped)
    FigureCanvasAgg(figure).print_png(str(path))
