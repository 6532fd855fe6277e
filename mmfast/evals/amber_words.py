"""AMBER's generative part: a description's nouns against what annotators saw, and what they expected to be made up.

The order in which words are looked for decides, and is the official script's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from mmfast.evals.base import Scoring
from mmfast.evals.reading import json_of
from mmfast.evals.text import words
from mmfast.evals.text.lemmas import wordnet
from mmfast.evals.text.tagger import Tags, tagger

MODEL = "en_core_web_lg"  # whose vectors decide officially which words are alike
Described = tuple[dict[str, float], dict[str, Any]]


def describer(scoring: Scoring) -> Callable[[str, Mapping[str, Any]], Described]:
    """Marks a description, by the benchmark's words."""
    data = scoring.data
    near: dict[str, list[str]] = json_of(data, "relation")
    vocabulary = {*near, *(word for several in near.values() for word in several)}
    safe = set(data.read("safe").decode().split("\n"))
    alike, tags = similarity(json_of(data, "similar"), vocabulary, scoring), tagger(data.read("tagger"))

    def describe(text: str, truth: Mapping[str, Any]) -> Described:
        nouns = [noun for noun in nouns_of(text, tags) if noun in vocabulary]
        # Each word with the annotated one that it stands for: associated words come first
        there, feared = (
            [(word, at) for at, name in enumerate(truth[key]) for word in near[name]]
            + [(name, at) for at, name in enumerate(truth[key])]
            for key in ("truth", "hallu")
        )
        covered: set[int] = set()
        hit: set[int | None] = set()
        wrong: list[str] = []
        for noun in nouns:
            if noun in safe:
                continue
            if (at := _first(there, {noun})) is not None:
                covered.add(at)
                continue
            hit |= {_first(feared, {noun}), _first(feared, alike[noun])}
            if (at := _first(there, alike[noun])) is not None:
                covered.add(at)
            else:
                wrong.append(noun)
        sums = {
            "items": 1,
            "clean": not wrong,
            "nouns": len(nouns),
            "wrong": len(wrong),
            "truths": len(truth["truth"]),
            "covered": len(covered),
            "feared": len(truth["hallu"]),
            "hit": len(hit - {None}),
        }
        return {name: float(value) for name, value in sums.items()}, {"wrong_words": wrong}

    return describe


def _first(entries: list[tuple[str, int]], good: set[str]) -> int | None:
    return next((at for word, at in entries if word in good), None)


@lru_cache(maxsize=20_000)  # answers are marked twice: by the official parser and by ours
def nouns_of(text: str, tags: Tags) -> tuple[str, ...]:
    return tuple(wordnet(token) for token, tag in tags(words(text)) if tag.startswith("NN"))


def similarity(table: Any, vocabulary: set[str], scoring: Scoring) -> dict[str, set[str]]:
    """A word -> those that are like it: itself too, unless the model does not know it."""
    if not isinstance(table, dict) or not {"vocabulary", "similar_pairs", "self_not_similar"} <= table.keys():
        raise ValueError("the table of words that are alike is none: make it with `mmfast eval amber-table`")
    missing = sorted(vocabulary - set(table["vocabulary"]))
    if missing:
        raise ValueError(
            f"the table of words that are alike lacks {len(missing)} of AMBER's words (the first: {missing[0]}): make "
            "it again with `mmfast eval amber-table`"
        )
    model = table.get("model", "an unnamed model")
    if model != MODEL:
        scoring.notes.append(
            f"approximate: words are alike by {model}, not by {MODEL}; on real captions such tables move CHAIR by "
            "about 0.3 and Hal by about 1"
        )
    alike = {word: {word} - set(table["self_not_similar"]) for word in table["vocabulary"]}
    for first, second in table["similar_pairs"]:
        alike[first].add(second)
        alike[second].add(first)
    return alike
