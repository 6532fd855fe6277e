"""Which characters of an answer a claim came from: [from, to), counted in code points.

A claim is reworded, so its words are looked for in any form and order: the sentence that holds most of them, and in it
the shortest stretch that holds them all. "brown dog" finds "dog ... is brown", "buckets" finds "bucket", "3" finds
"three"; of repeats the closest words win, then the earliest. A claim without words of its own has no span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from mmfast.data.text.segments import sentences

Span = tuple[int, int]

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # scripts that put no blanks between words: each sign is one
WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}]|[\u0300-\u036f\u200d])+(?:['’](?=[^\W\d_])[^\W_{UNSPACED}]+)?")
# Words that say nothing of what is claimed
_EMPTY = """
a an the this that these those there here it its is are was were be been being has have had do does and or of to in on
at with by for from as into image picture photo photograph scene shows show showing shown appears appear depicts visible
seen can some other
"""
EMPTY = frozenset(_EMPTY.split())
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_UNLIKE = "men:man women:woman children:child people:person feet:foot teeth:tooth geese:goose mice:mouse oxen:ox"
UNLIKE = dict(pair.split(":") for pair in _UNLIKE.split())
_SINGULAR = "bus gas lens glass dress grass plus canvas cactus iris axis atlas series species news"
SINGULAR_S = frozenset(_SINGULAR.split())
ENOUGH = 0.5  # share of a claim's words that must stand in a stretch; below it the whole sentence is taken


def span_of(answer: str, claim: str) -> Span | None:
    """None where the answer has none of the claim's words."""
    claim = claim.strip()
    if not claim:
        return None
    # As it stands
    edges = ("(?<!\\w)" if _spaced(claim[0]) else "", "(?!\\w)" if _spaced(claim[-1]) else "")
    if found := re.search(edges[0] + re.escape(claim) + edges[1], answer, re.IGNORECASE):
        return found.span()
    # Word by word, in the sentence that holds most of them
    wanted = _distinct([word for word in words_of(claim) if word.casefold() not in EMPTY])
    if not wanted:
        return None
    best: tuple[int, list[tuple[int, int, int]]] = (0, [])
    place: Span | None = None
    for first, end in sentences(answer):
        hits = _hits(answer, first, end, wanted)
        number = len({which for *_, which in hits})
        if number > best[0]:
            best, place = (number, hits), (first, end)
    if place is None:
        return None
    return _shortest(best[1]) if best[0] >= ENOUGH * len(wanted) else place


def content(text: str) -> list[str]:
    """The words of a text that say something; all of them where none does."""
    words = words_of(text)
    return [word for word in words if word.casefold() not in EMPTY] or words


def words_of(text: str) -> list[str]:
    return [m[0] for m in WORD.finditer(text)]


def same(one: str, other: str) -> bool:
    """Forms of one word: plurals, endings of verbs, numbers as words and as digits."""
    return not forms(one).isdisjoint(forms(other))


@lru_cache(maxsize=1 << 16)
def forms(word: str) -> frozenset[str]:
    """What a word may be a form of. Rules of English endings; a word of another language is its own only form."""
    word = unicodedata.normalize("NFKC", word).casefold()
    for ending in ("'s", "’s"):
        word = word.removesuffix(ending)
    if word in NUMBERS:
        return frozenset((NUMBERS[word],))
    found = {word, UNLIKE.get(word, word)}
    if word.endswith("s") and not word.endswith("ss") and word not in SINGULAR_S:
        found |= {word[:-1]}
        found |= {word[:-2]} if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")) else set()
        found |= {word[:-3] + "y"} if word.endswith("ies") else set()
        found |= {word[:-3] + "f", word[:-3] + "fe"} if word.endswith("ves") else set()
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= 3:
            found |= {stem, stem + "e"}
            found |= {stem[:-1]} if stem[-1] == stem[-2] else set()
    if word.endswith("ying") and len(word) > 4:
        found |= {word[:-4] + "ie"}
    return frozenset(form for form in found if len(form) >= 2 or form == word)


def plural(noun: str) -> bool:
    """Does a noun phrase name several? By its last word, or its first where that is a number."""
    words = [word.casefold() for word in words_of(noun)]
    if not words or (words[0] in NUMBERS and words[0] != "one"):
        return bool(words)
    last = words[-1]
    if last in UNLIKE:
        return True
    return len(last) > 2 and last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in SINGULAR_S


def _spaced(sign: str) -> bool:
    """Is it part of a word that ends at blanks?"""
    return bool(re.match(rf"[^\W{UNSPACED}]", sign))


def _distinct(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for word in words:
        if not any(same(word, other) for other in kept):
            kept.append(word)
    return kept


def _hits(answer: str, first: int, end: int, wanted: Sequence[str]) -> list[tuple[int, int, int]]:
    """(from, to, which wanted word) of each word of a sentence that is wanted."""
    found = []
    for m in WORD.finditer(answer, first, end):
        which = next((n for n, word in enumerate(wanted) if same(word, m[0])), -1)
        found += [(m.start(), m.end(), which)] if which >= 0 else []
    return found


def _shortest(hits: Sequence[tuple[int, int, int]]) -> Span:
    """The shortest stretch with each word that is hit at all; the earliest of equals. Where its words stand in another
    order than the claim's it counts as half as long again: "one circle" is not "circles and one"."""
    needed = len({which for *_, which in hits})
    best, cost = (hits[0][0], hits[-1][1]), float("inf")
    for left in range(len(hits)):
        met: list[int] = []
        for right in range(left, len(hits)):
            if hits[right][2] not in met:
                met.append(hits[right][2])
            if len(met) == needed:
                first, end = hits[left][0], hits[right][1]
                own = (end - first) * (1 if met == sorted(met) else 1.5)
                best, cost = ((first, end), own) if own < cost else (best, cost)
                break
    return best
