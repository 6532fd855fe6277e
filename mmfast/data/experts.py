"""DGPref's scores: what experts found of each caption's items -> one number a caption -> candidates for pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmfast.data.candidates import Candidate
from mmfast.data.problems import BadRow
from mmfast.data.readers.dgpref import ASPECTS as DECOMPOSED
from mmfast.data.readers.dgpref import image_path, kind_of, prompt_line
from mmfast.data.rows import Row, iterate

ASPECTS = ("object", "count", "attribute", "spatial", "scale", "text")  # relation is off in the published recipe
WHOLE_IMAGE = frozenset(
    ("scene", "image", "picture", "photo", "view", "frame", "figure", "side", "backdrop", "background")
)
NUMBER_WORDS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
NUMBERS = {word: n for n, word in enumerate(NUMBER_WORDS, 2)}
CHECKS = {
    "object": "obj_check", "count": "count_check", "attribute": "attribute_check", "relation": "relation_check",
    "scale": "scale_check", "spatial": "spatial_check", "text": "text_check",
}  # fmt: skip


def parse_decomposition(value: dict[str, str]) -> dict[str, list[tuple[str, ...]]]:
    """The decomposing model's four answers as tuples; "NONE" is none (DGPref took it for an entity)."""
    out: dict[str, list[tuple[str, ...]]] = {}
    for aspect in DECOMPOSED:
        text = value.get(aspect, "").strip()
        groups = [g.partition(")")[0] for g in text.split("(")[1:]]
        if aspect == "entity":
            listed = (groups[0] if groups else text).split(", ")
            out[aspect] = [(e.strip(),) for e in listed if e.strip() and e.strip().upper() != "NONE"]
            continue
        size = 3 if aspect == "relation" else 2
        found = [tuple(p.strip() for p in g.split(", ")) for g in groups]
        found = [t for t in found if len(t) == size]
        if aspect == "attribute":
            found = [t for t in found if t[0] != t[1]]
        if aspect == "count":
            words = {str(n): w for w, n in NUMBERS.items()}
            found = [(words.get(t[0], t[0]), t[1]) for t in found]
            found = [t for t in found if t[0] in NUMBERS]
        out[aspect] = found
    return out


def singular(name: str) -> str:
    """A plain English rule: enough to find a plural's own detection."""
    for ending, repair in (("ies", "y"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if name.endswith(ending) and not name.endswith(("ss", "us")) and len(name) > len(ending) + 1:
            return name[: -len(ending)] + repair
    return name


def verdicts(
    program: dict[str, Any], found: dict[str, Any], aspect: str, skip: frozenset[str]
) -> list[tuple[Any, int]]:
    """Each distinct item of a caption with +1 right, -1 wrong, 0 or -2 not judged."""
    items = list(dict.fromkeys(tuple(i) if isinstance(i, list) else i for i in program.get(CHECKS[aspect]) or ()))
    out = []
    if aspect in ("object", "count"):
        boxes = {k: len(v.get("bboxs", ())) for k, v in (found.get("object_result") or {}).items()}
        for item in items:
            name = item if aspect == "object" else item[1]
            name = singular(name) if singular(name) in boxes else name
            if aspect == "object":
                if name not in skip:
                    out.append((item, 1 if boxes.get(name, 0) else -1))
            else:
                count = boxes.get(name, 0)
                out.append((item, -2 if not count else 1 if count == int(item[0]) else -1))
        return out
    table = found.get(f"{aspect}_result") or {}
    table = table.get("scores", table)
    keys = ["###".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in items]
    return [(item, int(table.get(k, -2))) for item, k in zip(items, keys, strict=True)]


def judged_items(program: dict[str, Any], found: dict[str, Any], aspects: Sequence[str]) -> list[tuple[str, bool]]:
    """Each judged item as a claim: its words, and whether it holds."""
    out = []
    for aspect in dict.fromkeys(aspects):
        for item, given in verdicts(program, found, aspect, WHOLE_IMAGE):
            if given in (1, -1):
                out.append((" ".join(map(str, item)) if isinstance(item, tuple) else str(item), given == 1))
    return out


def caption_score(
    program: dict[str, Any],
    found: dict[str, Any],
    aspects: Sequence[str] = ASPECTS,
    average: bool = True,
    skip: Iterable[str] = (),
) -> float:
    """Minus the share of judged items that are wrong (average), or their number. A repeated aspect counts again."""
    vague = WHOLE_IMAGE | frozenset(skip)
    wrong = judged = 0
    for aspect in aspects:
        if aspect not in CHECKS:
            raise ValueError(f"--aspects: unknown aspect {aspect!r}; known are {', '.join(CHECKS)}")
        given = [v for _, v in verdicts(program, found, aspect, vague)]
        wrong += given.count(-1)
        judged += given.count(-1) + given.count(1)
    if average:
        return -wrong / judged if judged else 0.0
    return -float(wrong)


def expert_candidates(
    scores: str | Path,
    captions: str | Path,
    *,
    options: dict[str, Any],
    aspects: Sequence[str] = ASPECTS,
    average: bool = True,
    skip: Iterable[str] = (),
) -> Iterator[Candidate]:
    """The captions of every scored image. Captions of an image are taken by their number k, so a missing one is only
    that: missing (DGPref then scored the wrong caption). `names` of the options maps an index to an image's name."""
    from mmfast.data.readers.dgpref import image_name

    texts: dict[str, dict[int, tuple[str, Row]]] = {}
    for row in iterate(captions):
        name, k = image_name(row, options)
        texts.setdefault(name, {})[k] = (row.value["value"], row)
    for row in iterate(scores):
        name, value = row.value["key"], row.value["value"]
        if kind_of(value) != "experts":
            raise ValueError(f"{row.source}: not a row of expert scores (all_program, expert_scores)")
        present = sorted(texts.get(name, {}))
        programs = value["all_program"]
        if len(programs) not in (len(present), max(present, default=-1) + 1):
            raise ValueError(f"{row.source}: {len(programs)} programs for the captions {present} of image {name}")
        numbers = present if len(programs) == len(present) else range(len(programs))
        for k, program in zip(numbers, programs, strict=True):
            if k not in texts[name]:
                continue
            text, caption = texts[name][k]
            try:
                asked = prompt_line(caption, options, k)
            except BadRow as error:
                raise ValueError(f"{caption.source}: {error}") from None
            yield Candidate(
                group=name,
                images=(image_path(name, options),),
                question=asked,
                text=text,
                scores={"score": caption_score(program, value["expert_scores"], aspects, average, skip)},
                source=row.source,
                claims=tuple(judged_items(program, value["expert_scores"], aspects)),
                meta={"name": name, "k": k},
            )
