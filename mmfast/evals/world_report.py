"""The demo's report: scores, controls, what changed in the words, and pictures with what was said of them before and
after. Printed tables, report.html and report.png."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from mmfast import pages
from mmfast.evals import words as phrases
from mmfast.evals.world import Score, change
from mmfast.job.rows import read
from mmfast.pages import charts
from mmfast.world.grammar import CLAIMS, claims, errors
from mmfast.world.scenes import KINDS, Scene, render
from mmfast.world.stretches import false_stretches

PLURALS = {name: f"{name}s" for name in CLAIMS}
STYLE = """figure{display:flex;gap:1.2rem;margin:1.4rem 0}figure img{width:168px;height:168px;image-rendering:pixelated}
dl{margin:0;columns:2 19rem}dt{font-weight:600;break-after:avoid}dd{margin:0 0 .4rem;break-inside:avoid}
.of{background:var(--wrong)}"""
PICTURED = 3  # models whose captions stand beside the pictures of report.png
Judge = tuple[float, int]  # (accuracy, pairs) of probe.of_world


def shares(score: Score) -> list[str]:
    """CHAIR_s with its interval, CHAIR_i, recall, and words a caption."""
    low, high = score.intervals["chair_s"]
    return [
        f"{100 * score.chair_s:.1f}% ({100 * low:.0f}-{100 * high:.0f})",
        f"{100 * score.chair_i:.1f}%", f"{100 * score.recall:.1f}%", f"{score.words:.1f}",
    ]  # fmt: skip


def wrong(score: Score) -> list[str]:
    """Wrong / claimed, for each kind of claim."""
    return [f"{n}/{of}" for n, of in score.claims.values()]


SHARES = ("CHAIR_s (95%)", "CHAIR_i", "recall", "words")


def controls_said(
    scores: Mapping[str, Score], labels: Mapping[str, str], judge: Judge, controls: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(control, what it gave, what that means). What a control gains is what training alone moves, and another run's
    gain counts beyond it. A control that gains a quarter of the best run's gain speaks against all of them."""
    accuracy, pairs = judge
    said = f"{100 * accuracy:.0f}% of {pairs} held-out pairs"
    rows = [("linear judge of the words alone", said, "a coin" if accuracy <= 0.6 else "the pairs have a tell")]
    most = min(change(scores["base"], one)[0] for name, one in scores.items() if name not in controls)
    for name in controls:
        by, low, high = change(scores["base"], scores[name])
        said = f"CHAIR_s {100 * by:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        small = "no improvement" if high >= 0 else "training moves it"
        rows.append((labels[name], said, small if high >= 0 or by > most / 4 else "improved unseen"))
    return rows


def print_tables(
    console: Console, scores: Mapping[str, Score], labels: Mapping[str, str], judge: Judge, controls: Sequence[str]
) -> None:
    """Narrow enough for 80 columns."""
    for title, headings, cells in (
        ("greedy captions of held-out pictures", SHARES, shares),
        ("wrong / claimed", tuple(PLURALS.values()), wrong),
    ):
        table = Table(title=title)
        table.add_column("", overflow="fold")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, score in scores.items():
            table.add_row(labels[name], *cells(score))
        console.print(table)
    table = Table("", "gave", "", title="controls: nothing to see, nothing to gain")
    for row in controls_said(scores, labels, judge, controls):
        table.add_row(*row)
    console.print(table)


def choose(scenes: Sequence[Scene], before: Sequence[str], number: int) -> list[int]:
    """The first scenes that `before` hallucinates on, and a quarter on which it does not."""
    wrong = [n for n, scene in enumerate(scenes) if errors(before[n], scene)["object"]]
    right = [n for n in range(len(scenes)) if n not in set(wrong)]
    return sorted((wrong[: number - number // 4] + right)[:number])


def marked(text: str, scene: Scene) -> str:
    """HTML of the caption: objects that are not there, and in another colour what is wrongly said of those that are."""
    out, at = "", 0
    for begin, end, kind in false_stretches(text, scene):
        tag = "<mark>" if kind == "object" else f'<mark class="of" title="wrong {kind}">'
        out, at = f"{out}{html.escape(text[at:begin])}{tag}{html.escape(text[begin:end])}</mark>", end
    return out + html.escape(text[at:])


def figure(scene: Scene, said: Mapping[str, str]) -> str:
    """HTML of a picture beside what was said of it, by the speakers' labels."""
    told = "".join(f"<dt>{html.escape(label)}</dt><dd>{marked(text, scene)}</dd>" for label, text in said.items())
    return f"<figure>{pages.picture(pages.png(render(scene)), scene.name)}<dl>{told}</dl></figure>"


def charted(scores: Mapping[str, Score], labels: Mapping[str, str]) -> str:
    """Bars of the models by each measure."""
    parts = []
    for title, measure in (("CHAIR_s", "chair_s"), ("CHAIR_i", "chair_i"), ("Recall", "recall")):
        bars = []
        for n, (name, score) in enumerate(scores.items()):
            low, high = (100 * end for end in score.intervals.get(measure, (0.0, 0.0)))
            ends = (low, high) if measure in score.intervals else None
            bars.append(charts.Bar(labels[name], 100 * score.as_dict()[measure], ends, 7 if n == 0 else 0))
        note = "more is better" if measure == "recall" else "less is better"
        parts.append(charts.bars(title, bars, unit="%", note=note))
    return f'<div class="charts">{"".join(parts)}</div>'


def trained(out: Path, labels: Mapping[str, str]) -> str:
    """Speed and memory of the runs that are there, each with its own page; "" where none is."""
    rows = []
    for name, label in labels.items():
        file = out / name / "metrics.jsonl"
        steps = [row for row in read(file) if "tokens_per_s" in row] if file.is_file() else []
        if steps:
            link = f'<a href="{html.escape(name)}/report.html">{html.escape(label)}</a>'
            pace = [f"{median(row[key] for row in steps):,.0f}" for key in ("pairs_per_s", "tokens_per_s")]
            rows.append([link, str(steps[-1]["step"]), *pace, f"{max(row['memory_gib'] for row in steps):.2f}"])
    if not rows:
        return ""
    return (
        "<h2>Training</h2><p>Medians over the steps of each run; the names lead to their curves. Reward accuracies on "
        "held-out pairs prove little: they can be near 100% while as many objects are invented as before.</p>"
        + pages.table(("", "steps", "pairs a second", "tokens a second", "GiB at the peak"), rows)
    )


def write_report(
    out: Path,
    scenes: Sequence[Scene],
    captions: Mapping[str, Sequence[str]],
    scores: Mapping[str, Score],
    labels: Mapping[str, str],
    truths: Sequence[str],
    judge: Judge,
    controls: Sequence[str] = (),
    number: int = 8,
) -> Path:
    """`captions` and `scores` by model name; the first name is the model before. Returns the path of the page."""
    # The parts: scores, changed words, pictures with their captions
    first = next(iter(captions))
    picked = choose(scenes, captions[first], number)
    scored = [[labels[name], *shares(s), *wrong(s)] for name, s in scores.items()]
    changes = [
        phrases.as_html(phrases.changed(captions[first], texts, truths), labels[name], labels[first])
        for name, texts in captions.items()
        if name != first
    ]
    figures = [figure(scenes[n], {labels[m]: texts[n] for m, texts in captions.items()}) for n in picked]
    # The page, and the same as one picture
    page = out / "report.html"
    text = (
        f"<p>{len(scenes)} pictures of {len(KINDS)} kinds of object. CHAIR_i: share of the mentioned objects "
        "that are not there. CHAIR_s: share of captions with such an object (95% interval over pictures). "
        "Then, of each kind of claim, wrong / claimed.</p>"
        + charted(scores, labels)
        + f'<div class="scroll">{pages.table(("", *SHARES, *PLURALS.values()), map(pages.texts, scored))}</div>'
        + "<h2>Controls</h2><p>Blind runs had other pictures with their pairs. What they gain is what training alone "
        "moves, and another run's gain counts beyond it. Intervals cover the choice of pictures, not the chances of "
        "training.</p>"
        + pages.table(("", "gave", ""), map(pages.texts, controls_said(scores, labels, judge, controls)))
        + trained(out, labels)
        + "<h2>What changed in the words</h2><p>Share of the captions that have a phrase.</p>"
        f"{''.join(changes)}<h2>Pictures</h2><p>Marked are <mark>objects that are not there</mark> and "
        f'<mark class="of">what is wrongly said</mark> of those that are: colour, count, place or word.</p>'
        f'{"".join(figures)}<p>The same as one picture: <a href="report.png">report.png</a></p>'
    )
    title = "Greedy captions of held-out pictures"
    page.write_text(pages.page("mmfast demo", [text], heading=title, style=STYLE), encoding="utf-8")
    shown = {m: [texts[n] for n in picked] for m, texts in list(captions.items())[:PICTURED]}
    _draw(page.with_suffix(".png"), [scenes[n] for n in picked], shown, scores, labels)
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
    # Bars of the scores on top
    bars = figure.add_subplot(grid[0, :])
    measures = {"CHAIR_i": "chair_i", "CHAIR_s": "chair_s", "object recall": "recall"}
    width = 0.8 / len(scores)
    for k, (name, one) in enumerate(scores.items()):
        heights = [100 * one.as_dict()[m] for m in measures.values()]
        places = [i + (k - (len(scores) - 1) / 2) * width for i in range(len(measures))]
        drawn = bars.bar(places, heights, width * 0.92, label=labels[name], color=f"C{k}")
        bars.bar_label(drawn, fmt="%.0f", fontsize=8)
    bars.set_xticks(range(len(measures)), list(measures))
    bars.set_ylim(0, 112)
    bars.set_ylabel("%")
    bars.legend(loc="upper left", frameon=False, ncols=2, fontsize=8)
    bars.spines[["top", "right"]].set_visible(False)
    # Below them each picture with its captions, two in a line
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
