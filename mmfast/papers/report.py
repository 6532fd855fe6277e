"""report.html and report.png of one seed, finished or not.

Every method stands with what changed against the base and what it gained over its own blind control, which was trained
alike on pairs whose pictures had been shuffled: that gain is what it learnt from the picture.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmfast import pages
from mmfast.evals import words as phrases
from mmfast.evals import world_report
from mmfast.evals.world_report import PLURALS, choose, figure, wrong
from mmfast.papers.picture import draw
from mmfast.papers.reading import BASE, Seed, read, system_label
from mmfast.papers.tables import MEASURES, SHARES, better, moved, shares, table
from mmfast.world.dataset import read_lines, read_scenes
from mmfast.world.scenes import KINDS

AGAINST_BASE, BEYOND_BLIND = "against the base", "beyond its blind control"
PICTURES = 6
STYLE = (
    world_report.STYLE
    + """
body{max-width:112rem}p{max-width:66rem}.missing{background:var(--warn);padding:.5rem .8rem}
.wide table{font-size:12.5px;white-space:nowrap}.wide small{font-size:11px}
.wide small,.blind{color:var(--soft)}.wide .blind{padding-left:1rem}
.wide td,.wide th{vertical-align:top;padding:.1rem .3rem}.wide th{position:sticky;top:0;background:var(--paper)}
.wide td{border:0}.wide td:not(:has(small)){border-top:1px solid var(--line)}.wide h3{margin:1rem 0 0}
.wide td:empty,.wide td:has(h3){border:0!important}.wide td:first-child{white-space:normal;min-width:14rem}
.wide small.better,.better{color:var(--link);font-weight:600}.wide small.worse,.worse{color:var(--c1);font-weight:600}
.told td:nth-child(n+5),.told th:nth-child(n+5),.steps td:last-child,.steps th:last-child{text-align:left}"""
)


def write(out: str | Path) -> Path:
    """report.html and report.png into the seed's folder; returns the page."""
    seed = read(out)
    picture = draw(seed)
    (seed.folder / "report.png").write_bytes(picture)
    page = seed.folder / "report.html"
    parts = [*_head(seed), pages.picture(picture, "What each method changed"), *_methods(seed), *_data(seed)]
    parts += [*_texts(seed), *_times(seed)]
    text = pages.page(f"The papers in miniature, seed {seed.told.seed}", parts, style=STYLE)
    page.write_text(text, encoding="utf-8")
    return page


def _head(seed: Seed) -> Iterator[str]:
    told = seed.told
    machine = ", ".join(f"{key} {value}" for key, value in told.machine.items())
    pictures = next(iter(seed.scores.values())).captions if seed.scores else 0
    yield (
        f"<p>World of commit {html.escape(told.world_commit)}, seed {told.seed}: {pictures} held-out pictures of "
        f"{len(KINDS)} kinds of object, one greedy caption each. {html.escape(machine)}</p>"
    )
    if seed.missing or not told.complete:
        lacking = html.escape("; ".join(seed.missing)) or "some methods"
        yield f'<p class="missing"><b>Unfinished.</b> Not yet made: {lacking}.</p>'
    if told.without:
        lines = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in told.without.items())
        yield f'<div class="missing"><b>Left out</b>, because they cannot be made:<ul>{lines}</ul></div>'


def _methods(seed: Seed) -> Iterator[str]:
    yield (
        "<h2>Every method</h2><p>CHAIR_s: per cent of captions that name an object which is not there. CHAIR_i: per "
        "cent of the objects named. Recall: per cent of the objects there that are named. Words: of a caption. Then "
        "wrong / claimed of each kind of claim. Below each number: the change against the base model, and the "
        "change beyond the method's own blind control, which was trained alike on pairs whose pictures had been "
        "shuffled; points with 95% intervals, the same pictures compared.</p>"
        "<p>A control with likelihood in it (SFT and its kin, an SFT term) learns captions of other pictures and gets "
        "worse than the base. A gain over such a control counts only beside one against the base.</p>"
        '<p><span class="better">Better</span> and <span class="worse">worse</span> are told where the interval leaves '
        "out zero: by chance alone five of a hundred do. Intervals cover the choice of pictures, not the chances of "
        "training: those are what several seeds are for.</p>"
    )
    headings = ("", *SHARES.values(), *PLURALS.values(), "pairs", "seconds", "of processor")
    rows = []
    for system, names in seed.systems.items():
        rows.append([f"<h3>{html.escape(system_label(system))}</h3>", *[""] * (len(headings) - 1)])
        rows += [row for name, label in seed.listed(names) for row in _rows(seed, name, label.strip())]
    yield f'<div class="wide">{pages.table(headings, rows)}</div>'


def _rows(seed: Seed, name: str, label: str) -> Iterator[list[str]]:
    """The method's numbers, and in rows of their own the two changes."""
    one, score = seed.methods[name], seed.scores[name]
    first = f'<span class="blind">{html.escape(label)}</span>' if one.blind else f"<b>{html.escape(label)}</b>"
    costs = [f"{one.pairs or '-'}", f"{one.seconds:.0f}", f"{one.processor_seconds:.0f}"]
    yield [first, *shares(score), *wrong(score), *costs]
    for what, changes in ((AGAINST_BASE, seed.changed.get(name)), (BEYOND_BLIND, seed.beyond.get(name))):
        if changes:
            cells = [f'<small class="{better(m, changes[m])}">{moved(m, changes[m])}</small>' for m in MEASURES]
            yield [f"<small>{what}</small>", *cells, *["<small></small>"] * len(costs)]
        elif what == BEYOND_BLIND and one.control:
            yield [f"<small>{what}: not yet made</small>", *["<small></small>"] * (len(MEASURES) + len(costs))]


def _data(seed: Seed) -> Iterator[str]:
    """What each method was trained on, and why the rest was not used."""
    rows = []
    for name in (name for names in seed.systems.values() for name in names):
        one = seed.methods[name]
        if name != BASE and not one.blind:
            lengths = ["" if n is None else f"{n:.1f}" for n in (one.words_chosen, one.words_rejected)]
            rows.append([seed.label(name), str(one.pairs), *lengths, counts(one.made), counts(one.settings)])
    if rows:
        yield (
            "<h2>Training data</h2><p>A method whose chosen texts are the shorter ones may learn to say less. A blind "
            "control has its method's pairs and settings.</p>"
        )
        headings = ("", "pairs", "words chosen", "words rejected", "how they came about", "settings")
        yield f'<div class="told">{pages.table(headings, map(pages.texts, rows))}</div>'


def counts(tree: Mapping[str, Any], before: str = "") -> str:
    """Names and numbers of a tree as one line."""
    told = []
    for name, value in tree.items():
        name = f"{before}{name}".replace("_", " ")
        told.append(counts(value, f"{name}: ") if isinstance(value, Mapping) else f"{name} {_short(value)}")
    return ", ".join(filter(None, told))


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _texts(seed: Seed) -> Iterator[str]:
    """What changed in the words and some pictures, for the chief method of each system."""
    captions = seed.folder / "captions.jsonl"
    lines = read_lines(captions) if captions.exists() else []
    chiefs = [name for name in seed.chiefs.values() if lines and name in lines[0]]
    if not lines or BASE not in lines[0] or not chiefs:
        yield '<h2>The words</h2><p class="missing">Captions of the base and of a method are not there yet.</p>'
        return
    # Phrases
    said = {name: [line[name] for line in lines] for name in (BASE, *chiefs)}
    labels = {name: seed.label(name) for name in said}
    truths = [line["truth"] for line in lines]
    yield "<h2>What changed in the words</h2><p>Share of captions that have a phrase, one method of each system.</p>"
    for name in chiefs:
        found = phrases.changed(said[BASE], said[name], truths)
        yield phrases.as_html(found, labels[name], labels[BASE])
    # Pictures, by the names in the captions' file
    scenes = {scene.name: scene for scene in read_scenes(seed.folder / "world")}
    shown = [scenes[line["name"]] for line in lines]
    yield "<h2>Pictures</h2><p>Objects that are not there are marked. Most are pictures on which the base invents.</p>"
    for n in choose(shown, said[BASE], PICTURES):
        yield figure(shown[n], {labels[name]: texts[n] for name, texts in said.items()})


def _times(seed: Seed) -> Iterator[str]:
    told = seed.told
    spent = [(step, one.seconds, one.processor_seconds, counts(one.made)) for step, one in told.steps.items()]
    spent.append(("the whole seed" if told.complete else "the seed so far", told.seconds, told.processor_seconds, ""))
    rows = [[step, f"{seconds:.0f}", f"{processor:.0f}", made] for step, seconds, processor, made in spent]
    yield "<h2>Time</h2><p>Steps that several methods share; the time of a method's own training stands in its row.</p>"
    headings = ("", "seconds", "of processor", "what came of it")
    yield f'<div class="steps">{pages.table(headings, map(pages.texts, rows))}</div>'


__all__ = ["table", "write"]
