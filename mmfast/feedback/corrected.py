"""What is made of people's work: rows, a report, and files for training and evaluation."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mmfast.data.convert import Conversion, write_records
from mmfast.data.formats.messages import answer as said
from mmfast.data.records import Record
from mmfast.data.text.segments import without_blanks
from mmfast.data.text.templates import text_of
from mmfast.engines.people_desk import Work
from mmfast.engines.stage import MANIFEST
from mmfast.feedback.agreement import agreement
from mmfast.feedback.correct import NAME, Shown, corrected, paths, read_cards, row_of, works
from mmfast.files import write_bytes, write_json

# Our kinds as RLHF-V's MHumanEval counts them
TYPES = {"object": "object", "position": "position", "count": "number"}
OTHERS = "others"


@dataclass(frozen=True)
class Done:
    """A card that a person handed in, and the row that says what they said."""

    shown: Shown
    row: dict[str, Any]


class Folder:
    """A folder of `mmfast correct`, read from its journal: what holds now, while people may work on."""

    def __init__(self, folder: str | Path, annotators: Iterable[str] = ()) -> None:
        """`annotators`: whose work counts; empty: everybody's."""
        self.path = Path(folder)
        try:
            self.manifest = json.loads((self.path / MANIFEST).read_bytes())
            assert self.manifest["stage"] == NAME
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise ValueError(
                f"{folder} is no folder of corrections (mmfast correct ANSWERS --out writes one)"
            ) from None
        self.task = self.manifest["task"]
        cards = read_cards(self.path)
        self.cards = {one.key: replace(one, images=paths(one, self.path)) for one in cards}
        found, wanted = works(self.path), set(annotators)
        names = {name for who in found.values() for name in who}
        if unknown := sorted(wanted - names):
            raise ValueError(f"--annotator {unknown[0]}: nobody of this name was here ({', '.join(sorted(names))})")
        self.works = [
            (self.cards[key], name, work)
            for key, who in found.items()
            if key in self.cards
            for name, work in who.items()
            if not wanted or name in wanted
        ]
        place = {key: n for n, key in enumerate(self.cards)}
        self.works.sort(key=lambda one: (place[one[0].key], one[2].at))
        self.done = [Done(one, row_of(one, name, work)) for one, name, work in self.works if work.state == "done"]

    def write_rows(self) -> None:
        """rows-0.jsonl and the manifest as the journal has it now: for the stages that read rows."""
        lines = (json.dumps(one.row, ensure_ascii=False) + "\n" for one in self.done)
        write_bytes(self.path / "rows-0.jsonl", "".join(lines).encode(), durable=True)
        counts = {"rows": len(self.done), **Counter(work.state for _, _, work in self.works)}
        touched = {one.key for one, _, work in self.works if work.state != "open"}
        write_json(
            self.path / MANIFEST,
            {**self.manifest, "complete": touched >= self.cards.keys(), "counts": counts},
        )

    def report(self) -> dict[str, Any]:
        """What was done, by whom, how fast, what was found, and how far people agree."""
        people: dict[str, Any] = {}
        by_name: dict[str, list[Work]] = defaultdict(list)
        for _, name, work in self.works:
            by_name[name].append(work)
        for name, own in sorted(by_name.items()):
            states = Counter(work.state for work in own)
            times = [work.seconds for work in own if work.state == "done"]
            people[name] = {state: states[state] for state in ("done", "skipped", "open")}
            people[name]["seconds"] = round(median(times), 1) if times else None
        cards = {one.shown.key for one in self.done}
        out: dict[str, Any] = {"task": self.task, "cards": len(self.cards), "done": len(cards), "people": people}
        out["skipped"] = dict(Counter(work.reason for _, _, work in self.works if work.state == "skipped"))
        if self.task in ("correct", "mark"):
            out |= _found(self.done)
        elif self.task == "compare":
            out["verdicts"] = dict(Counter(one.row["verdict"] for one in self.done))
        elif self.done:
            metrics = self.done[0].row["scores"]
            out["mean scores"] = {m: round(fmean(one.row["scores"][m] for one in self.done), 3) for m in metrics}
        return out | {"agreement": agreement(one.row for one in self.done)}


def _found(done: list[Done]) -> dict[str, Any]:
    """Segments by kind, and the share of works with at least one: MHumanEval's rates, in percent. Words that were added
    are no fault of what was said."""
    kinds = Counter(one["kind"] for d in done for one in d.row["segments"] if one["from"])
    types = [{_type(one["kind"]) for one in d.row["segments"] if one["from"]} for d in done]
    added = sum(not one["from"] for d in done for one in d.row["segments"])
    rates = {name: sum(name in found for found in types) for name in (*TYPES.values(), OTHERS)}
    rates["all"] = sum(map(bool, types))
    return {
        "segments": dict(kinds.most_common()),
        **({"places where words were added": added} if added else {}),
        "segments an answer": round(kinds.total() / len(done), 2) if done else None,
        "rates": {name: round(100 * number / len(done), 2) for name, number in rates.items()} if done else {},
    }


def _type(kind: str) -> str:
    return TYPES.get(kind, OTHERS)


# files


def pairs(folder: Folder) -> tuple[list[Record], dict[str, int]]:
    """Preference pairs: a corrected answer over what it was, or the better of two over the worse; with counts of what
    gives none."""
    if folder.task == "correct":
        return _corrected_pairs(folder)
    if folder.task == "compare":
        return _compared_pairs(folder)
    raise ValueError(f"the task {folder.task} gives no pairs: correct and compare do")


def _corrected_pairs(folder: Folder) -> tuple[list[Record], dict[str, int]]:
    """Segments of both sides are those that the person marked and wrote: `segments = "record"` weighs exactly these."""
    counts, out = Counter({"right as they are": 0, "corrected alike by another": 0}), []
    made: set[tuple[str, str]] = set()
    for one in folder.done:
        found, text = one.row["segments"], one.row["corrected"]
        (old,) = one.shown.answers.values()
        if text == old:
            counts["right as they are"] += 1
            continue
        if not text.strip():
            counts["nothing is left of"] += 1
            continue
        if (one.shown.key, text) in made:
            counts["corrected alike by another"] += 1
            continue
        made.add((one.shown.key, text))
        # Blanks at the ends belong to the tokens of the words behind them
        new = [without_blanks(text, *span) for span in corrected(old, found)[1]]
        spans = {"chosen": new, "rejected": [without_blanks(old, *s["span"]) for s in found]}
        meta = {"kinds": [s["kind"] for s in found], "seconds": one.row["seconds"]}
        out.append(
            _record(
                one.shown,
                one.row["key"],
                text,
                old,
                segments={side: kept for side, each in spans.items() if (kept := [s for s in each if s[0] < s[1]])},
                meta=meta | {"annotator": one.row["annotator"], "answer_key": one.row["answer_key"]},
            )
        )
    return out, dict(counts)


def _compared_pairs(folder: Folder) -> tuple[list[Record], dict[str, int]]:
    """The verdict that more people gave than any other."""
    counts, out = Counter({"ties": 0, "people are divided": 0}), []
    cards: dict[str, list[Done]] = defaultdict(list)
    for one in folder.done:
        cards[one.shown.key].append(one)
    for key, some in cards.items():
        (verdict, most), *others = Counter(one.row["verdict"] for one in some).most_common()
        row, shown = some[0].row, some[0].shown
        if others and others[0][1] == most:
            counts["people are divided"] += 1
        elif verdict == "tie":
            counts["ties"] += 1
        else:
            better, worse = (row["a"], row["b"]) if verdict == "a" else (row["b"], row["a"])
            votes = {one.row["annotator"]: one.row["verdict"] for one in some}
            meta = {"answers": {"chosen": better, "rejected": worse}, "verdicts": votes}
            out.append(_record(shown, key, shown.answers[better], shown.answers[worse], meta=meta))
    return out, dict(counts)


def _record(one: Shown, name: str, chosen: str, rejected: str, **fields: Any) -> Record:
    return Record(
        id=name,
        source=name,
        images=tuple(one.images),
        prompt=tuple(one.prompt),
        chosen=(said(chosen),),
        rejected=(said(rejected),),
        **fields,
    )


def write_pairs(folder: Folder, target: Path) -> list[str]:
    """In the canonical format."""
    records, counts = pairs(folder)
    return _written(records, counts, target, "trl")


def write_rlhfv(folder: Folder, target: Path) -> list[str]:
    """In RLHF-V's format: .parquet has its columns with the images inside, as the published set; also .jsonl, .tsv."""
    records, counts = pairs(folder)
    inside, number = target.suffix.lower() in (".parquet", ".tsv"), count()

    def row(record: Record) -> Record:
        origin = {key: record.meta[key] for key in ("annotator", "kinds") if key in record.meta}
        meta = {"ds_name": "mmfast", "origin_dataset": folder.manifest["input"], "origin_split": origin}
        meta["image_path"] = Path(record.images[0]).name if record.images else ""
        images = tuple({"bytes": Path(p).read_bytes(), "path": Path(p).name} if inside else p for p in record.images)
        return replace(record, id=str(next(number)), segments=None, meta=meta, images=images)

    return _written(records, counts, target, "rlhfv", row)


def _written(
    records: list[Record],
    counts: dict[str, int],
    target: Path,
    to: str,
    row: Callable[[Record], Record] = lambda record: record,
) -> list[str]:
    left = [f"{number} {name}" for name, number in counts.items() if number]
    if not records:
        raise ValueError("; ".join([f"there is no pair to write, so {target.name} is not made", *left]))
    result = Conversion()
    write_records(map(row, records), target, to, target.parent, result)
    return [*result.lines(), *(f"no pair: {line}" for line in left)]


def write_mhumaneval(folder: Folder, target: Path) -> list[str]:
    """A judgement a line: {id, question, answer, images, annotator, hallucinations [{span, text, kind, type}]}. `type`
    is the kind as MHumanEval counts it (object, position, number, others)."""
    if folder.task not in ("mark", "correct"):
        raise ValueError(f"the task {folder.task} marks nothing: mark and correct do")

    def row(one: Done) -> dict[str, Any]:
        return {
            "id": one.shown.prompt_id or one.row["answer_key"],
            "question": text_of(one.shown.prompt[-1]).strip(),
            "answer": next(iter(one.shown.answers.values())),
            "images": one.shown.images,
            "annotator": one.row["annotator"],
            "hallucinations": [
                {"span": s["span"], "text": s["from"], "kind": s["kind"], "type": _type(s["kind"])}
                for s in one.row["segments"]
                if s["from"]  # an addition marks nothing that was said
            ],
        }

    return _lines(folder, target, map(row, folder.done), "judgements")


def write_scores(folder: Folder, target: Path) -> list[str]:
    """Scored answers, as `mmfast data pairs`, `sft` and `steerlm` read them: the mean of each metric over people."""
    if folder.task != "rate":
        raise ValueError(f"the task {folder.task} rates nothing: rate does")
    cards: dict[str, list[Done]] = defaultdict(list)
    for one in folder.done:
        cards[one.shown.key].append(one)

    def row(some: list[Done]) -> dict[str, Any]:
        shown, scores = some[0].shown, [one.row["scores"] for one in some]
        return {
            "question": text_of(shown.prompt[-1]).strip(),
            "answer": next(iter(shown.answers.values())),
            "images": shown.images,
        } | {metric: fmean(one[metric] for one in scores) for metric in scores[0]}

    return _lines(folder, target, map(row, cards.values()), "scored answers")


def _lines(folder: Folder, target: Path, rows: Iterator[dict[str, Any]], told: str) -> list[str]:
    if target.suffix != ".jsonl":
        raise ValueError(f"{target.name}: {told} are written as .jsonl")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        raise ValueError(f"{folder.path}: nothing was handed in yet, so {target.name} is not made")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, "".join(lines).encode())
    return [f"{len(lines)} {told}"]


Writer = Callable[[Folder, Path], list[str]]
WRITERS: dict[str, Writer] = {
    "--pairs": write_pairs,
    "--rlhfv": write_rlhfv,
    "--mhumaneval": write_mhumaneval,
    "--scores": write_scores,
}
