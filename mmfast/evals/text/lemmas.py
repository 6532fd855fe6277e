"""The singular of a word, in the three ways that published scripts take it. All are exact and need no download.

wordnet: nltk's lemmatiser for nouns, which is a few suffix rules and the question whether a word is in WordNet. The
file beside this one holds WordNet 3.0's nouns without a blank and its exceptions (`mmfast eval wordnet` makes it; its
licence, WORDNET_LICENSE, allows to give it on).
pattern, inflect: what clips/pattern (commit d25511f) and inflect (7.6.0) make of the words that CHAIR's two published
lists of synonyms can meet, found by running them over 292,535 forms. singular.json holds each form that they change
into such a word or out of one; of any other word nobody asks.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
WORDNET, SINGULAR = HERE / "wordnet_nouns.xz", HERE / "singular.json"
# How a plural ends -> how its singular does: WordNet's rules of detachment for nouns
ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
WAYS = ("wordnet", "pattern", "inflect")


def singular(word: str, way: str) -> str:
    """`way`: one of WAYS."""
    return wordnet(word) if way == "wordnet" else _table(way).get(word, word)


@cache
def wordnet(word: str) -> str:
    """As WordNetLemmatizer().lemmatize(word) of nltk 3.9: the shortest of its lemmas, itself where it has none."""
    nouns, exceptions = _nouns()
    forms = exceptions.get(word) or [word.removesuffix(old) + new for old, new in ENDINGS if word.endswith(old)]
    return min((form for form in (word, *forms) if form in nouns), key=len, default=word)


@cache
def _nouns() -> tuple[frozenset[str], dict[str, list[str]]]:
    """WordNet's nouns; its exceptions: a plural -> singulars."""
    nouns, _, exceptions = lzma.decompress(WORDNET.read_bytes()).decode().partition("\n\n")
    rows = (line.split() for line in exceptions.splitlines())
    return frozenset(nouns.split()), {row[0]: row[1:] for row in rows}


@cache
def _table(way: str) -> dict[str, str]:
    return json.loads(SINGULAR.read_text())[way]
