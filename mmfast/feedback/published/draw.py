"""Prompts drawn by a seed from what a published data set gives.

Each has a number of its own, by seed, image and question, and those with the least numbers are taken. So the draw does
not depend on the order of the file, on other rows, or on how many are taken: fewer are the beginning of more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.engines.base import canonical
from mmfast.feedback.published.base import INSIDE, Found


@dataclass(kw_only=True)
class Drawing:
    """How prompts are drawn, and what is told of it."""

    root: Path  # of image paths
    take: int = 0  # how many; 0: all. Of images, where lines are asked about them
    seed: int = 0
    per_image: int = 0  # most prompts of an image; 0: all
    lines: tuple[str, ...] | None = None  # what is asked about images; (): nothing. None: they have their own questions
    left: Counter[str] = field(default_factory=Counter)  # why prompts are not among those drawn -> how many
    missing: dict[str, None] = field(default_factory=dict)  # image files that are not there
    there: int = 0  # how many can be drawn, as far as was looked
    images: int = 0  # of those drawn

    @property
    def unit(self) -> str:
        return "prompts" if self.lines is None else "images"


def drawn(found: Iterable[Found], how: Drawing) -> list[dict[str, Any]]:
    """The rows of a set of prompts, in the order in which they are drawn. Raises where there are fewer than asked."""
    distinct = _distinct(found, how)
    # Those with the least numbers whose images are there, and not too many of one image
    order = sorted(distinct, key=lambda key: _number(how.seed, *key))
    of_image: Counter[str] = Counter()
    taken: list[tuple[str, Found, tuple[str, ...]]] = []
    for key in order:
        one, answers = distinct[key]
        if how.lines is None and how.per_image and of_image[key[0]] == how.per_image:
            how.left[f"prompts beyond {how.per_image} of an image"] += 1
        elif (placed := _placed(one, how)) is not None:
            of_image[key[0]] += 1
            taken.append((_name(key, one), placed, answers))
            if len(taken) == how.take:
                break
    how.there, how.images = len(taken), len(of_image)
    if not taken or len(taken) < how.take:
        raise ValueError(_too_few(how, len(distinct)))
    return [row for name, one, answers in taken for row in _rows(name, one, answers, how)]


def _distinct(found: Iterable[Found], how: Drawing) -> dict[tuple[str, str], tuple[Found, tuple[str, ...]]]:
    """Each image and question once, with the answers that it has: the most frequent first, then as they are written."""
    known: dict[tuple[str, str], Found] = {}
    answers: dict[tuple[str, str], Counter[str]] = {}
    for one in found:
        key = "\n".join(one.images), one.asked if isinstance(one.asked, str) else canonical(one.asked)
        if key in known:
            how.left[f"repeats of an image{' and question' if how.lines is None else ''}"] += 1
            known[key] = min(known[key], one, key=lambda each: canonical([each.id, each.more]))
        else:
            known[key] = one
        answers.setdefault(key, Counter()).update([one.answer] if one.answer else [])
    return {
        key: (one, tuple(text for text, _ in sorted(answers[key].items(), key=lambda item: (-item[1], item[0]))))
        for key, one in known.items()
    }


def _number(seed: int, *names: str) -> str:
    return hashlib.sha256(canonical([seed, *names]).encode()).hexdigest()


def _name(key: tuple[str, str], one: Found) -> str:
    """Its id: DGPref's number of an image, or the image's own name with a digest of the question."""
    first = key[0].partition("\n")[0]
    stem = first[len(INSIDE) :][:12] if first.startswith(INSIDE) else Path(first).stem
    return one.id or f"{stem}-{hashlib.sha256(canonical(list(key)).encode()).hexdigest()[:8]}"


def _placed(one: Found, how: Drawing) -> Found | None:
    """With its image where that lies under the root; None where one is not there."""
    images: list[str] = []
    for image in one.images:
        places: Sequence[str] = one.places if one.places and len(one.images) == 1 else (image,)
        place = next((p for p in places if image.startswith(INSIDE) or (how.root / p).is_file()), None)
        if place is None:
            how.missing.setdefault(image)
            return None
        images.append(place)
    return Found(images=tuple(images), asked=one.asked, answer=one.answer, id=one.id, more=one.more)


def _rows(name: str, one: Found, answers: tuple[str, ...], how: Drawing) -> Iterator[dict[str, Any]]:
    shown: dict[str, Any] = {"image": one.images[0]} if len(one.images) == 1 else {"images": list(one.images)}
    truth: dict[str, Any] = {"reference": answers[0]} if answers else {}
    truth |= {"references": list(answers)} if len(answers) > 1 else {}
    if how.lines is None or not how.lines:
        asked = {"prompt": one.asked} if one.asked else {}
        yield {"id": name, **shown, **asked, **truth, **one.more}
        return
    # Some of the lines or all, each with DGPref's numbers of image and line
    numbers = sorted(range(len(how.lines)), key=lambda k: _number(how.seed, name, str(k)))
    for k in sorted(numbers[: how.per_image or None]):
        yield {"id": f"{name}_{k}", **shown, "prompt": how.lines[k], **truth, **one.more, "k": k}


def _too_few(how: Drawing, distinct: int) -> str:
    gone = ""
    if how.missing:
        first = next(iter(how.missing))
        gone = (
            f"; {len(how.missing):,} images are missing under {how.root}, the first {first} (--images names the root)"
        )
    if how.there:
        return f"--take {how.take:,}: there are {how.there:,} {how.unit}{gone}"
    return f"nothing can be drawn of {distinct:,} {how.unit}{gone}"


def lines_of(name: str, eight: Sequence[str]) -> tuple[str, ...]:
    """What is asked about images without questions: `eight` wordings, none, or the lines of a file."""
    if name == "eight":
        return tuple(eight)
    if name == "none":
        return ()
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--lines {name}: eight, none, or a file of a prompt a line, and there is no such file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines or len(set(lines)) < len(lines):
        raise ValueError(f"--lines {name}: the file {'holds a line twice' if lines else 'holds no line'}")
    return tuple(lines)
