"""DGPref's scores: what experts found of each caption's items -> one number a caption -> answers for pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row, iterate
from mmfast.data.formats.dgpref import ASPECTS as DECOMPOSED
from mmfast.data.formats.dgpref import image_name, image_path, kind_of, prompt_line
from mmfast.data.formats.messages import question
from mmfast.data.problems import BadRow, Problem
from mmfast.feedback.answer import Answer, Claim
from mmfast.feedback.candidates import bad_rows
from mmfast.packages import how_to_install

Singular = Callable[[str], str]
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
        items = [t for g in groups if len(t := tuple(p.strip() for p in g.split(", "))) == size]
        if aspect == "attribute":
            items = [t for t in items if t[0] != t[1]]
        if aspect == "count":
            words = {str(n): w for w, n in NUMBERS.items()}
            items = [(word, t[1]) for t in items if (word := words.get(t[0], t[0])) in NUMBERS]
        out[aspect] = items
    return out


def singulars() -> Singular:
    """DGPref's rule: a word in lower case, and its singular where the package inflect knows it as a plural."""
    try:
        import inflect
    except ImportError:
        raise ValueError(f"DGPref's scores need the package inflect: {how_to_install('dgpref')}") from None
    engine = inflect.engine()

    @cache
    def singular(word: str) -> str:
        lower = word.lower()
        return (engine.singular_noun(lower) or lower) if lower.strip() else lower

    return singular


def verdicts(
    program: dict[str, Any], expert: dict[str, Any], aspect: str, skip: Set[str], singular: Singular
) -> list[tuple[Any, int]]:
    """Each distinct item of a caption with +1 right, -1 wrong, 0 or -2 not judged.

    What was detected under an object's singular counts where there is such an entry; a counted item is always looked
    up by its own name, and words too vague to judge are compared as they are written.
    """
    checked: list[Any] = program.get(CHECKS[aspect]) or []
    items: list[Any] = list(dict.fromkeys(tuple(i) if isinstance(i, list) else i for i in checked))
    if aspect in ("object", "count"):
        boxes = {k: len(v.get("scores", v.get("bboxs", ()))) for k, v in (expert.get("object_result") or {}).items()}
        if aspect == "count":
            counts = [(item, boxes.get(item[1], 0)) for item in items]
            return [(item, -2 if not n else 1 if n == int(item[0]) else -1) for item, n in counts]
        names = [(item, singular(item) if singular(item) in boxes else item) for item in items if item not in skip]
        return [(item, 1 if boxes.get(name, 0) else -1) for item, name in names]
    table = expert.get(f"{aspect}_result") or {}
    table = table.get("scores", table)
    keys = ["###".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in items]
    return [(item, int(table.get(k, -2))) for item, k in zip(items, keys, strict=True)]


def judged_items(
    program: dict[str, Any], expert: dict[str, Any], aspects: Iterable[str], skip: Iterable[str], singular: Singular
) -> list[tuple[str, bool]]:
    """Each judged item as a claim: its words, and whether it holds. Those of a repeated aspect come again."""
    vague = WHOLE_IMAGE | set(skip)
    if unknown := [aspect for aspect in aspects if aspect not in CHECKS]:
        raise ValueError(f"--aspects: unknown aspect {unknown[0]!r}; known are {', '.join(CHECKS)}")
    items = [pair for aspect in aspects for pair in verdicts(program, expert, aspect, vague, singular)]
    return [(" ".join(map(str, i)) if isinstance(i, tuple) else str(i), v == 1) for i, v in items if v in (1, -1)]


def caption_score(
    program: dict[str, Any],
    expert: dict[str, Any],
    aspects: Sequence[str] = ASPECTS,
    average: bool = True,
    skip: Iterable[str] = (),
    singular: Singular | None = None,
) -> float:
    """Minus the share of judged items that are wrong (average), or their number. A repeated aspect counts again."""
    holds = [holds for _, holds in judged_items(program, expert, aspects, skip, singular or singulars())]
    return -holds.count(False) / (len(holds) or 1 if average else 1)


def expert_answers(
    scores: str | Path,
    captions: str | Path,
    *,
    options: dict[str, Any],
    aspects: Sequence[str] = ASPECTS,
    average: bool = True,
    skip: Iterable[str] = (),
    singular: Singular | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[Answer]:
    """The captions of every scored image. Captions of an image are taken by their number k, so a missing one is only
    that: missing (DGPref then scored the wrong caption). `names` of the options maps an index to an image's name.
    `problems`: as bad_rows() takes them."""
    # The captions by image and number, then the scores of each image
    skip, singular = frozenset(skip), singular or singulars()
    texts: dict[str, dict[int, tuple[str, Row]]] = {}
    for row in iterate(captions):
        with bad_rows(problems, row.source):
            name, k = image_name(row, options)
            texts.setdefault(name, {})[k] = (row.value["value"], row)
    for row in iterate(scores):
        with bad_rows(problems, row.source):
            name, value = row.value["key"], row.value["value"]
            yield from [
                Answer(
                    key=caption.value["key"],
                    row=caption.number,
                    group=name,
                    images=(image_path(name, options),),
                    prompt=(question(prompt_line(caption, options, k), 1),),
                    text=text,
                    scores={"score": caption_score(program, value["expert_scores"], aspects, average, skip, singular)},
                    source=row.source,
                    claims=tuple(
                        Claim(words, holds)
                        for words, holds in judged_items(
                            program, value["expert_scores"], dict.fromkeys(aspects), skip, singular
                        )
                    ),
                    meta={"name": name, "k": k},
                )
                for k, program in _programs(row, set(texts.get(name, ())))
                for text, caption in [texts[name][k]]
            ]


def _programs(row: Row, present: Set[int]) -> list[tuple[int, Any]]:
    """(Number, program) of each caption that is there."""
    if kind_of(row.value["value"]) != "experts":
        raise BadRow("format", "not a row of expert scores (all_program, expert_scores)")
    programs, listed = row.value["value"]["all_program"], sorted(present)
    if len(programs) not in (len(listed), max(listed, default=-1) + 1):
        raise BadRow("format", f"{len(programs)} programs for the captions {listed} of image {row.value['key']}")
    numbers = listed if len(programs) == len(listed) else range(len(programs))
    return [(k, program) for k, program in zip(numbers, programs, strict=True) if k in present]
