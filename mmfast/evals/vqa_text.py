"""How VQA's metric compares answers: normalised, and against what ten people said.

Two normalisers: `evalai`, which LLaVA uses (M4C's), lower-cases first and sets off possessives; `vqaeval` is the
official one of VQA. Both delete full stops that no digit follows (at most 32 of an answer: the official code passes a
flag where a count belongs), drop articles, and spell numbers up to ten as digits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
MOST_STOPS = 32
# What a word without one of its apostrophes becomes
SHORTENED = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in SHORTENED.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain(without_punctuation(text.replace("\n", " ").replace("\t", " ").strip(), r"(?<=\d)(,)+(?=\d)"))


def vqaeval(text: str) -> str:
    return _plain(without_punctuation(spaced(text), r"\d,\d"))


def spaced(text: str) -> str:
    """All that the official script does to answers when the ten people said the same."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str, comma: str, stop: str = r"\.(?!\d)") -> str:
    """Each mark is deleted where it stands beside a blank (or a number has commas), else it becomes a blank."""
    numbers, out = re.search(comma, text) is not None, text
    for mark in PUNCTUATION:
        beside = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside or numbers else " ")
    return re.sub(stop, "", out, count=MOST_STOPS)


def _plain(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def m4c(text: str, people: Sequence[str]) -> float:
    """LLaVA's score of an answer: everything is normalised. It wants ten people's answers."""
    return _left_out(evalai(text), [evalai(answer) for answer in people])


def official(text: str, people: Sequence[str]) -> float:
    """VQA's: answers are normalised only where the people differ."""
    text, people = spaced(text), [spaced(answer) for answer in people]
    if len(set(people)) > 1:
        text, people = vqaeval(text), [vqaeval(answer) for answer in people]
    return _left_out(text, people)


def _left_out(text: str, people: Sequence[str]) -> float:
    """Over the people, each left out in turn: a third for each other one who said the same, at most 1."""
    said = Counter(people)[text]
    each = [min(1.0, (said - (answer == text)) / 3) for answer in people]
    return sum(each) / len(each)
