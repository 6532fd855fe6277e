"""The measured rows of the ops as tables: python -m bench.tables [--write] makes docs/benchmarks-rows.md of them.

Of the rows of one op, shape, mode, dtype and peer the newest is shown. Rows share a line where one run measured them;
no line compares two runs, so an older row of a peer that was not measured again has a line of its own.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks-rows.md"
FILES = {
    "ops-cpu.jsonl": "On a CPU",
    "gpu.jsonl": "On a GPU",
    "ops-cuda.jsonl": "On a GPU, by bench.ops",  # what that writes there
}
MEASURED = {  # the ops that a complete file has rows of
    "ops-cpu.jsonl": (
        "linear_logprob",
        "linear_preference_loss",
        "selective_logprob",
        "preference_loss",
        "splice_embeddings",
        "tree_attention",
        "changed_segments",
    ),
    "gpu.jsonl": (
        "roof",
        "linear_logprob",
        "linear DPO",
        "selective_logprob",
        "preference_loss",
        "splice_embeddings",
        "tree_attention",
    ),
}
HEAD = """# Measured rows

Each row of `bench/results/ops-cpu.jsonl` and `gpu.jsonl` that is the newest of its op, shape, mode, dtype and peer.
This page is made of the rows (`python -m bench.tables --write`), and a test holds it to them;
[benchmarks.md](benchmarks.md) says what they mean.

A line is one run, whose letter is explained below its section: compare within a line, not seconds of two lines.
In brackets is the number over the least of the line, for which the last columns (floors, parts of a call) do not count.
"median" is wall time, which other work on the machine distorts; "processor" is the least processor time, of all threads
together; "MiB" is memory beyond inputs and gradients; "of the roof" is the share of a large product's or copy's rate in
the same run. Below each table stands where another does better than the backend of ours that a user gets unasked."""
ABOUT = {
    "linear_logprob": "U x D x V: rows, width, vocabulary. Forward and backward, but where the mode says otherwise. "
    "Bare GEMMs are the products that the path needs; eager's logits are rounded where the dtype is bfloat16. Host "
    "time is until a call returns; on a CPU the kernels are empty then, the model 8 wide: it is what Python costs.",
    "linear_preference_loss": "P x L x D x V: pairs, tokens of an answer, width, vocabulary.",
    "linear DPO": "U x D x V: rows, width, vocabulary. Head and loss together.",
    "preference_loss": "P pairs of answers of L tokens, with weights of tokens but where the mode says otherwise. "
    "eager is two segment sums and a log-sigmoid; trl is DPOTrainer's own method with its metrics, trl: padded rows "
    "its loss and rewards alone.",
    "selective_logprob": "U x V: rows, vocabulary, from logits that exist. TRL's function gives bf16 for bf16.",
    "splice_embeddings": "T tokens of width D. A copy of the result is the floor.",
    "tree_attention": "T tokens, Hq query heads on Hkv key heads, Dh wide. loop is torch's kernel, a run at a time.",
    "changed_segments": "A pair of edited texts. difflib is Python's own.",
    "roof": "What the shares are of.",
}
TIME, MEMORY, PLAIN = "time", "memory", "plain"  # of a time and of memory less is better; a time has a ratio
MEASURES = {
    "median_s": ("median", TIME),
    "processor_best_s": ("processor", TIME),
    "device_s": ("device", TIME),
    "peak_mib": ("MiB", MEMORY),
    "fraction_of_roof": ("of the roof", PLAIN),
    "launches": ("launches", PLAIN),
    "replayed_to_the_same_bits": ("replayed the same", PLAIN),
}
FLOORS = ("bare GEMMs", "copy", "copy into new memory", "copy of the result")
PARTS = ("mmfast kernel", "mmfast kernel, index")
APART = {*FLOORS, *PARTS}
NOT_SAID = "not said"
Row = Mapping[str, Any]


class Run(NamedTuple):
    device: str
    torch: str
    date: str
    command: str

    @staticmethod
    def of(row: Row) -> Run:
        return Run(*(str(row.get(name, NOT_SAID)) for name in Run._fields))


class Case(NamedTuple):
    """What was asked of every peer."""

    op: str
    shape: str
    mode: str

    @staticmethod
    def of(row: Row) -> Case:
        shape = row.get("shape", "")
        shape = shape if isinstance(shape, str) else " x ".join(map(str, shape))
        length = f"{row['tokens an answer']} tokens an answer" if "tokens an answer" in row else ""
        told = ((shape, row.get("what"), length), (row.get("mode"), row.get("dtype")))
        return Case(row["op"], *(", ".join(str(part) for part in parts if part) for parts in told))

    def order(self) -> tuple[list[int], str, list[str]]:
        return [int(n) for n in re.findall(r"\d+", self.shape)], self.shape, self.mode.split(", ")


@dataclass(frozen=True)
class Line:
    """One case in one run."""

    case: Case
    run: Run
    rows: dict[str, Row]  # by peer

    def ours(self) -> str:
        """The one of ours that is used where nobody asks for another: the first. "" where none was measured."""
        return next((peer for peer in self.rows if peer.startswith("mmfast") and peer not in APART), "")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The newest rows, those of one run together. Of one day the later in the file is the newer."""
    newest: dict[tuple[Case, str], Row] = {}
    for row in sorted(rows, key=lambda row: str(row.get("date", ""))):
        newest[Case.of(row), str(row["peer"])] = row
    lines: dict[tuple[Case, Run], dict[str, Row]] = {}
    for row in rows:  # in the order of the file, which is the order in which a run measured
        case, peer = Case.of(row), str(row["peer"])
        if newest[case, peer] is row:
            lines.setdefault((case, Run.of(row)), {})[peer] = row
    found = [Line(case, run, of_peers) for (case, run), of_peers in lines.items()]
    return sorted(found, key=lambda line: (line.case.order(), line.run.date))


def number(value: float) -> str:
    """Three digits, never as a power."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def values_of(line: Line, field: str) -> dict[str, Any]:
    return {peer: row[field] for peer, row in line.rows.items() if row.get(field) is not None}


def cells(line: Line, field: str, peers: Sequence[str]) -> tuple[str, list[str]]:
    """The measure with its unit, and the cell of each peer."""
    (name, kind), values = MEASURES[field], values_of(line, field)
    scale = 1.0
    if kind == TIME:
        unit, scale = ("ms", 1e3) if min(values.values()) >= 1e-3 else ("us", 1e6)
        name = f"{name} {unit}"
    contest = [value for peer, value in values.items() if peer not in APART]
    best = min(contest) if kind == TIME and contest and len(values) > 1 else None

    def cell(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "", True: "yes", False: "no"}[value]
        return number(value * scale) + (f" ({value / best:.2f})" if best else "")

    return name, [cell(values.get(peer)) for peer in peers]


def worse(line: Line) -> str:
    """Where another does better than what a user of ours gets, or ""."""
    ours, told = line.ours(), []
    for field, (name, kind) in MEASURES.items():
        values = values_of(line, field)
        others = {peer: value for peer, value in values.items() if peer not in {ours, *APART}}
        if kind == PLAIN or ours not in values or not others:
            continue
        own, peer = values[ours], min(others, key=lambda peer: others[peer])
        if kind == TIME and own / others[peer] >= 1.005:
            told.append(f"{name} {own / others[peer]:.2f} times {peer}'s")
        elif kind == MEMORY and number(own) != number(min(own, others[peer])):
            told.append(f"{name} {number(own)}, {peer}'s {number(others[peer])}")
    return f"- {line.case.shape}, {line.case.mode}: {'; '.join(told)}" if told else ""


def table(lines: Sequence[Line], letters: Mapping[Run, str]) -> Iterator[str]:
    """The lines of one op, and where another does better."""
    peers = list(dict.fromkeys(peer for line in lines for peer in line.rows))
    peers.sort(key=lambda peer: (peer in PARTS, peer in FLOORS, not peer.startswith("mmfast")))
    yield "| shape | mode | | " + " | ".join(peers) + " | run |"
    yield "|---" * (len(peers) + 4) + "|"
    for line in lines:
        labels = [line.case.shape, line.case.mode, letters[line.run]]
        for field in MEASURES:
            if any(row.get(field) is not None for row in line.rows.values()):
                unit, shown = cells(line, field, peers)
                yield "| " + " | ".join([*labels[:2], unit, *shown, labels[2]]) + " |"
                labels = ["", "", ""]
    found = list(filter(None, map(worse, lines)))
    if any(line.ours() and len(line.rows.keys() - APART) > 1 for line in lines):
        yield "\nAnother does better at:\n" if found else "\nNo other does better."
        yield from found


def told(run: Run, rows: Sequence[Row]) -> str:
    """The run of a letter."""
    loads = [row["load"] for row in rows if "load" in row]
    busy = f", load {min(loads):.0f} to {max(loads):.0f}" if loads else ""
    packages: Mapping[str, str] = next((row["peer_versions"] for row in rows if row.get("peer_versions")), {})
    beside = [f", {name} {version}" for name, version in packages.items() if name != "torch" and version != "absent"]
    made = f"`{run.command}`" if run.command.startswith("python ") else f"by hand ({run.command})"
    return f"{run.device}, torch {run.torch}{''.join(beside)}, {run.date}{busy}: {made}"


def section(title: str, rows: Sequence[Row], wanted: Sequence[str]) -> Iterator[str]:
    timed = [row for row in rows if "median_s" in row]
    lines = lines_of(timed)
    yield f"\n## {title}"
    for row in rows:
        if "outcome" in row:
            outcome = row["outcome"].splitlines()[0]
            yield f"\n{row['mode']}: {outcome} ({row['s']:.0f} s, {row['device']}, {row['date']})"
    runs = dict.fromkeys(line.run for line in lines)
    letters = {run: chr(ord("A") + i % 26) * (1 + i // 26) for i, run in enumerate(runs)}
    ops = dict.fromkeys(row["op"] for row in timed)
    for op in sorted(ops, key=lambda op: [*ABOUT, op].index(op)):
        yield f"\n### {op}\n"
        yield ABOUT.get(op, "") + "\n"
        yield from table([line for line in lines if line.case.op == op], letters)
    if lacking := [op for op in wanted if op not in ops]:
        yield f"\nNo row yet: {', '.join(lacking)}."
    yield "\nRuns:\n"
    for run, letter in letters.items():
        yield f"- {letter}: {told(run, [row for row in timed if Run.of(row) == run])}"
    if hidden := len(timed) - sum(len(line.rows) for line in lines):
        yield f"\n{hidden} older rows of the same are in the file and not shown."


def page(results: Path = RESULTS) -> str:
    parts = [HEAD]
    for name, title in FILES.items():
        if rows := read(results / name):
            parts += section(title, rows, MEASURED.get(name, ()))
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="to docs/benchmarks-rows.md; else it is printed")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
