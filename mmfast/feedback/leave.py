"""Out of the folders of stages into the files of a seed's own pipeline, so that one may go on there."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.data.images.index import is_path
from mmfast.feedback.answers import answers_of, read_answers
from mmfast.feedback.folders import compared
from mmfast.feedback.grade import Checked, items_of
from mmfast.feedback.reading import Reading
from mmfast.feedback.seeds import dgpref, mllm_dpo, rlaifv, sima
from mmfast.feedback.seeds.leaving import Leaf, Leaving
from mmfast.files import whole

FILES: dict[str, Leaf] = {
    f"{seed}.{name}": leaf
    for seed, module in (("rlaifv", rlaifv), ("sima", sima), ("mllm_dpo", mllm_dpo), ("dgpref", dgpref))
    for name, leaf in module.WRITES.items()
}


@dataclass(kw_only=True)
class Left:
    rows: int = 0
    lines: list[str] = field(default_factory=list)  # what is not carried, and what was told on reading


def leave(
    source: Path,
    out: Path,
    name: str,
    *,
    answers: Path | None = None,
    items: Path | None = None,
    verdicts: Path | None = None,
    images: str = "",
    options: dict[str, Any] | None = None,
) -> Left:
    """Write `source` (answers of any kind, or a folder of critique) as the file `name` of a seed's pipeline.

    images  image paths are told from this folder on; else whole
    """
    # What is asked for is there
    if name not in FILES:
        raise ValueError(f"--as: there is no file {name!r}; there are {', '.join(FILES)}")
    leaf = FILES[name]
    if out.suffix not in leaf.suffixes:
        raise ValueError(f"{out.name}: {name} is written as {' or '.join(leaf.suffixes)}")
    for need, given in (("items", items), ("verdicts", verdicts)):
        if need in leaf.needs and given is None:
            raise ValueError(f"--as {name} needs --{need}: a folder of mmfast {OF[need]}")
        if given is not None and need not in leaf.needs and not (need == "items" and name in TAKES_ITEMS):
            raise ValueError(f"--{need} has no effect on {name}")
    # Read, write, tell
    left = Left()
    notes: list[str] = []
    told: dict[str, Any] = {"notes": notes, "options": options or {}}
    reading = Reading(root=source.parent, answers=answers, **told)
    critic = "compared" in leaf.needs
    pairs = list(compared(source, reading)) if critic else []
    found = answers_of(source, reading) if critic else read_answers(source, answers=answers, **told)
    leaving = Leaving(
        out=out,
        answers=list(found),
        named=_namer(images),
        items={} if items is None else items_of(items, notes),
        found=(lambda one, item: None) if verdicts is None else Checked(verdicts, notes).of,
        compared=pairs,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as temporary:
        WRITERS[out.suffix](temporary, _counted(leaf.write(leaving), left))
        if not left.rows:
            lost = [f"{number} {what}" for what, number in leaving.lost.most_common() if number]
            raise ValueError("; ".join([f"there is nothing to write, so {out.name} is not made", *lost, *notes]))
    left.lines = notes + [f"not carried: {number} {what}" for what, number in leaving.lost.most_common() if number]
    return left


OF = {"items": "decompose", "verdicts": "check"}
TAKES_ITEMS = ("rlaifv.facts", "rlaifv.questions")  # they can also have come with the answers


def _counted(rows: Iterator[dict[str, Any]], left: Left) -> Iterator[dict[str, Any]]:
    for row in rows:
        left.rows += 1
        yield row


def _namer(root: str) -> Callable[[Any], str]:
    def named(image: Any) -> str:
        if not is_path(image):
            raise ValueError(
                "an image lies inside a row, and these files name images: mmfast feedback import keeps it in a folder"
            )
        return os.path.relpath(image, os.path.abspath(root)) if root else image

    return named


def _jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _pickle(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        pickle.dump({row["key"]: row["value"] for row in rows}, file, protocol=4)


WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".pkl": _pickle}
