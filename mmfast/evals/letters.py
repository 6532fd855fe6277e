"""Which option an answer means: the rules of VLMEvalKit, as they are now and as they were in 2023 (MMBench's paper).

Both look for one letter among the words, then for one option whose text is in the answer; "" where they find none, and
then a judge is asked. Both are meant for answers that begin with a letter: "A dog" is A in either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

REFUSED = (  # for which the rule of today reads Z: no option
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "Failed to obtain answer via API"
LAST = 5  # today's rule wants the letter behind this word, counted from the end
# Around a letter, in the order that the rule of 2023 tries them
MARKS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def today(text: str, choices: Mapping[str, str]) -> str:
    """The letter by today's rule; "Z" for a refusal."""
    if FAILED in text:
        return _by_text(text, choices, bounded=True)
    if any(refusal in text for refusal in REFUSED):
        return "Z"
    words = text.translate({ord(mark): " " for mark in ".()[],:;!*#{}"}).split()
    found = [letter for letter in choices if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - LAST:
        return found[0]
    if not found and "Z" in words:
        return "Z"
    told = re.search(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", text, re.IGNORECASE)
    if told and told[1].upper() in choices:
        return told[1].upper()
    return _by_text(text, choices, bounded=True)


def of_2023(text: str, choices: Mapping[str, str]) -> str:
    """The letter by the rule of 2023, which knows the letters A to E whatever the options are."""
    words = [] if FAILED in text else text.split()
    found = [letter for letter in "ABCDE" if letter in words]
    if len(found) == 1 and not ("A" in words and len(words) > 3):  # "A" may be an article
        return found[0]
    for mark in MARKS:
        found = [letter for letter in "ABCDE" if mark.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return _by_text(text, choices, bounded=False)


def _by_text(text: str, choices: Mapping[str, str], *, bounded: bool) -> str:
    """The one option whose text is in the answer. Today's rule wants an answer at most twice as long as all options."""
    if bounded and len(text.lower()) > 2 * sum(len(choice) for choice in choices.values()):
        return ""
    found = [letter for letter, choice in choices.items() if choice.lower() in text.lower()]
    return found[0] if len(found) == 1 else ""


def alone(text: str, choices: Mapping[str, str]) -> str:
    """Our own: the one letter that stands alone, in any brackets, but for "A" before a word; "" in doubt."""
    found = set(re.findall(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])", re.sub(r"\bA(?= [a-z])", "", text)))
    letters = [letter for letter in choices if letter in found]
    return letters[0] if len(letters) == 1 else ""


Rule = Callable[[str, Mapping[str, str]], str]
RULES: dict[str, Rule] = {"today": today, "2023": of_2023}
