"""How a critic's text is read: parsers by the names that prompts give. None of them raises, and none invents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")


def verdict(text: str, labels: Mapping[str, str]) -> tuple[str | None, str]:
    """(The meaning of the verdict in double brackets, why there is none.) It may be repeated, but not contradicted."""
    meanings = {label: meaning for meaning, label in labels.items()}
    said = list(dict.fromkeys(found.strip() for found in BRACKETS.findall(text)))
    if not text.strip():
        return None, "the reply is empty"
    if not said:
        return None, "the reply has no verdict in [[ ]]"
    if foreign := [label for label in said if label not in meanings]:
        return None, f"[[{foreign[0][:40]}]] is no verdict"
    if len(said) > 1:
        return None, f"the reply holds {' and '.join(f'[[{label}]]' for label in said)}"
    return meanings[said[0]], ""


def last_brackets(text: str, labels: Mapping[str, str]) -> tuple[str | None, str]:
    """SIMA's rule: what stands between the last [[ and the next ]], to the letter; where either is missing, all up to
    there."""
    meanings = {label: meaning for meaning, label in labels.items()}
    said = text.rpartition("[[")[2].partition("]]")[0]
    return meanings.get(said), "" if said in meanings else f"{said[:40]!r} is no verdict"


PARSERS: dict[str, Callable[[str, Mapping[str, str]], tuple[str | None, str]]] = {
    "verdict": verdict,
    "last_brackets": last_brackets,
}


def reason(text: str) -> str:
    """What is said beside the verdict: the text without the last line that has brackets."""
    lines = text.strip().split("\n")
    last = max((n for n, line in enumerate(lines) if "[[" in line), default=None)
    return "\n".join(line for n, line in enumerate(lines) if n != last).strip()
