"""A seed's numbers as text, and its tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mmfast.evals.world import Score
from mmfast.evals.world_report import PLURALS, wrong
from mmfast.papers.reading import BASE, Seed, read, system_label

SHARES = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "recall": "recall", "words": "words"}
MEASURES = SHARES | {name: f"wrong {plural}" for name, plural in PLURALS.items()}
WIDTH = 80
Change = tuple[float, float, float]


def shares(score: Score) -> list[str]:
    """CHAIR_s, CHAIR_i and recall in per cent, then words a caption, all with their intervals."""
    cells = []
    for name in SHARES:
        by, digits = (1, 1) if name == "words" else (100, 0)
        low, high = (by * end for end in score.intervals[name])
        cells.append(f"{by * getattr(score, name):.1f} ({low:.{digits}f}-{high:.{digits}f})")
    return cells


def moved(name: str, change: Change) -> str:
    """A change in points, of words in words, and its interval."""
    middle, low, high = (signed((1 if name == "words" else 100) * number) for number in change)
    return f"{middle} ({low} to {high})"


def signed(number: float) -> str:
    """+1.5 or -1.5, and 0.0 without a sign."""
    text = f"{number:+.1f}"
    return text if text.strip("+-0.") else text[1:]


def better(name: str, change: Change) -> str:
    """ "better" or "worse" where the interval lies on one side of zero; more words are neither."""
    _, low, high = change
    if name == "words" or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (name == "recall") else "worse"


def table(out: str | Path) -> list[Table]:
    """The seed's tables. A method's blind control stands under it in the first and the third."""
    seed = read(out)
    unmade = seed.missing or ([] if seed.told.complete else ["some methods"])
    without = [f"{name}: {why}" for name, why in seed.told.without.items()]
    lists = {"unfinished: not yet made": unmade, "left out, because they cannot be made": without}
    return [*_tables(seed), *(listed(title, lines) for title, lines in lists.items() if lines)]


def _tables(seed: Seed) -> Iterator[Table]:
    # Scores and changes, with the controls
    told = f"papers in miniature, seed {seed.told.seed}: greedy captions, per cent (95%)"
    scored = {name: [*shares(score)[:3], f"{score.words:.1f}"] for name, score in seed.scores.items()}
    yield _grouped(seed, told, tuple(SHARES.values()), scored)
    told = "against the base, change in points (95%)"
    yield _grouped(seed, told, ("CHAIR_s", "recall"), {name: _moves(found) for name, found in seed.changed.items()})
    # What was learnt from the picture; claims and costs, without the controls
    seeing = {name: one for name, one in seed.methods.items() if not one.blind}
    told = "beyond its own blind control: what it learnt from the picture, in points"
    beyond = {name: _moves(seed.beyond.get(name)) for name in seeing if name != BASE}
    yield _grouped(seed, told, ("CHAIR_s", "recall"), beyond)
    claims = {name: wrong(seed.scores[name]) for name in seeing}
    yield _grouped(seed, "wrong / claimed", tuple(PLURALS.values()), claims)
    costs = {n: [f"{m.pairs or ''}", f"{m.seconds:.0f}", f"{m.processor_seconds:.0f}"] for n, m in seeing.items()}
    yield _grouped(seed, "cost of its training and captions", ("pairs", "seconds", "of processor"), costs)


def _moves(found: Mapping[str, Change] | None) -> list[str]:
    return [moved(name, found[name]) if found else "-" for name in ("chair_s", "recall")]


def _grouped(seed: Seed, title: str, headings: tuple[str, ...], cells: Mapping[str, list[str]]) -> Table:
    made = Table(title=title, width=WIDTH)
    made.add_column("", overflow="fold", ratio=1)
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    for system, names in seed.systems.items():
        shown = [name for name in names if name in cells]
        if shown:
            made.add_section()
            made.add_row(Text(system_label(system), "bold"))
        for name, label in seed.listed(shown):
            made.add_row(Text(label), *cells[name])
    return made


def listed(title: str, lines: Sequence[str]) -> Table:
    made = Table(title=title, width=WIDTH, show_header=False)
    for line in lines:
        made.add_row(Text(line))
    return made
