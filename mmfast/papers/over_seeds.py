"""Several seeds beside each other: of every method its mean, each seed's value, and whether each seed alone says so.

A row is what bench/results keeps of one method on one seed. The summary is made of rows alone, so that a table in the
docs can be made again from what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from mmfast.evals.world_report import PLURALS
from mmfast.papers.reading import BASE, SYSTEMS, Seed, read, system_label
from mmfast.papers.tables import WIDTH, Change, listed, signed

Row = Mapping[str, Any]
SIGNS = (
    "Signs: a seed's + or - where its 95% interval leaves out zero, 0 where it does not, ? where it was not measured."
)


def rows(folder: str | Path) -> list[dict[str, Any]]:
    """One row a method of a finished seed, and one of the whole seed's cost."""
    seed = read(folder)
    if seed.missing or not seed.told.complete:
        lacking = "; ".join(seed.missing) or "its driver has not ended"
        raise ValueError(f"{seed.folder} is unfinished ({lacking}): `mmfast demo --papers` goes on with it")
    return [*(_row(seed, name) for names in seed.systems.values() for name in names), _cost(seed)]


def _row(seed: Seed, name: str) -> dict[str, Any]:
    one = seed.methods[name]
    told = one.model_dump(exclude={"counted"})
    row = {"seed": seed.told.seed, "peer": name} | told | seed.scores[name].as_dict()
    if name in seed.changed:
        row["change"] = seed.changed[name]
    if name in seed.beyond:
        row["beyond"] = seed.beyond[name]
    return row


def _cost(seed: Seed) -> dict[str, Any]:
    told = seed.told.model_dump(include={"seconds", "processor_seconds", "steps", "without"})
    return {"seed": seed.told.seed, "peer": "cost"} | told


@dataclass(frozen=True)
class Over:
    """One method over the seeds; None where a seed lacks it."""

    name: str
    label: str
    system: str
    seeds: tuple[int, ...]
    found: tuple[Row | None, ...]  # in the order of the seeds

    def values(self, measure: str) -> list[float | None]:
        """CHAIR and recall in per cent, words a caption."""
        by = 1 if measure == "words" else 100
        return [None if row is None else by * row[measure] for row in self.found]

    def changes(self, kind: str, measure: str) -> list[Change | None]:
        """`kind`: "change" (against the base) or "beyond" (its blind control); in points, words in words."""
        by = 1 if measure == "words" else 100
        told = [None if row is None or kind not in row else row[kind][measure] for row in self.found]
        return [None if one is None else (by * one[0], by * one[1], by * one[2]) for one in told]

    def signs(self, kind: str, measure: str) -> str:
        """A character a seed: what its interval alone says."""
        return "".join(map(_sign, self.changes(kind, measure)))


def _sign(change: Change | None) -> str:
    if change is None:
        return "?"
    _, low, high = change
    return "+" if low > 0 else "-" if high < 0 else "0"


@dataclass(frozen=True)
class Summary:
    seeds: tuple[int, ...]
    methods: tuple[Over, ...]
    without: tuple[str, ...]  # what could not be made, with its seed and the reason


def summary(folders: Sequence[str | Path]) -> Summary:
    """Of the seeds in these folders, all finished."""
    return summed([row for folder in folders for row in rows(folder)])


def summed(found: Sequence[Row]) -> Summary:
    """The same of rows, as bench/results/papers.jsonl keeps them. Blind controls are not listed: a method's `beyond`
    says what they did."""
    # Each method once a seed
    methods = [row for row in found if "system" in row and not row["blind"]]
    seeds = tuple(sorted({row["seed"] for row in methods}))
    at = {(row["peer"], row["seed"]): row for row in methods}
    if len(at) < len(methods):
        peer, seed = next(key for key in at if sum((row["peer"], row["seed"]) == key for row in methods) > 1)
        raise ValueError(f"seed {seed} has several rows of {peer}: a table holds each seed once, leave one of them out")
    # By system, in the order of the first seed that has it
    known = [*SYSTEMS, *(row["system"] for row in methods)]
    first = {row["peer"]: row for row in reversed(methods)}
    names = sorted(dict.fromkeys(row["peer"] for row in methods), key=lambda n: known.index(first[n]["system"]))
    over = (Over(n, first[n]["label"], first[n]["system"], seeds, tuple(at.get((n, s)) for s in seeds)) for n in names)
    without = (f"seed {row['seed']}, {n}: {why}" for row in found for n, why in row.get("without", {}).items())
    return Summary(seeds, tuple(over), tuple(without))


# -- as text ---------------------------------------------------------------------------------------------------------


def level(values: Sequence[float | None]) -> str:
    """Mean and each seed's value."""
    there = [value for value in values if value is not None]
    each = ", ".join("?" if value is None else f"{value:.1f}" for value in values)
    return f"{fmean(there):.1f} ({each})" if there else "?"


def movement(over: Over, kind: str, measure: str) -> str:
    """Mean of the changes, each seed's, and the signs."""
    changes = over.changes(kind, measure)
    there = [change[0] for change in changes if change is not None]
    if not there:
        return ""
    each = ", ".join("?" if change is None else signed(change[0]) for change in changes)
    return f"{signed(fmean(there))} ({each}) {over.signs(kind, measure)}"


def markdown(found: Summary) -> str:
    """Two tables for the docs: hallucinated objects and recall; then every kind of claim, beyond the blind control."""
    # Levels and changes
    lines = [
        f"Seeds {', '.join(map(str, found.seeds))}: the mean (each seed), in per cent; changes in points. {SIGNS}",
        "",
        "| method | pairs | CHAIR_s | recall | words | CHAIR_s, against the base | beyond its blind control "
        "| recall, against the base | beyond its blind control |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    moves = [(kind, measure) for measure in ("chair_s", "recall") for kind in ("change", "beyond")]
    for over in found.methods:
        pairs = fmean(row["pairs"] for row in over.found if row is not None)
        cells = [_named(over), "" if over.name == BASE else f"{pairs:.0f}"]
        cells += [level(over.values(measure)) for measure in ("chair_s", "recall", "words")]
        cells += [movement(over, *move) for move in moves]
        lines.append(f"| {' | '.join(cells)} |")
    # Kinds of claim
    told = "How often each kind of claim is wrong: the change beyond the blind control, in points."
    lines += ["", told, "", f"| method | {' | '.join(PLURALS.values())} |", "|---" * (1 + len(PLURALS)) + "|"]
    for over in found.methods:
        cells = [movement(over, "beyond", kind) for kind in PLURALS]
        if any(cells):
            lines.append(f"| {' | '.join([_named(over), *cells])} |")
    lines += ["", "Left out, because they cannot be made:", ""] if found.without else []
    return "\n".join([*lines, *(f"- {one}" for one in found.without)]) + "\n"


def _named(over: Over) -> str:
    label = over.label.replace("|", "\\|")
    return label if over.name == BASE else f"{system_label(over.system)}: {label}"


def tables(found: Summary) -> Iterator[Table]:
    """For a terminal of 80 columns: a line a measure, or the seeds would not fit beside each other."""
    seeds = ", ".join(map(str, found.seeds))
    made = Table(title=f"seeds {seeds}: mean (each seed), per cent and points", width=WIDTH, caption=SIGNS)
    made.add_column("", overflow="fold", ratio=1)
    made.add_column("mean (each seed)", overflow="fold")
    for over in found.methods:
        made.add_section()
        made.add_row(Text(_named(over), "bold"), "")
        for measure, name in (("chair_s", "CHAIR_s"), ("recall", "recall")):
            made.add_row(name, level(over.values(measure)))
            for kind, told in (("change", "  against the base"), ("beyond", "  beyond its blind control")):
                if moved := movement(over, kind, measure):
                    made.add_row(told, moved)
    yield made
    if found.without:
        yield listed("left out, because they cannot be made", found.without)
