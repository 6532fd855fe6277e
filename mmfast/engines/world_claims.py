"""What a caption of the embedded world claims, by its grammar, in the form in which a decomposing model is asked."""

from __future__ import annotations

from mmfast.world.grammar import NUMBERS, claims
from mmfast.world.scenes import Kind

DECOMPOSE = "decompose"  # the task of requests that ask for an aspect of an answer
CENTRE = "centre"  # of the picture: what the world's places are seen from


def decomposed(aspect: str, text: str) -> list[tuple[str, ...]]:
    """What a caption of the world says, in the pieces of an aspect; claims each with its question."""
    said = claims(text)
    names = {kind: " ".join(kind) for kind in said.kinds}
    many = {kind: (NUMBERS[n], _several(kind, n)) for kind, n in said.counts.items()}
    match aspect:
        case "entity":
            return [(name,) for name in names.values()]
        case "count":
            return [*many.values()]
        case "relation":
            return [(names[kind], place, CENTRE) for kind, place in said.relations.items()]
        case "text":
            return [(word, names[kind]) for kind, word in said.words.items()]
        case "claims" | "questions":
            told: list[tuple[str, ...]] = [(f"There is {_a(kind)}.", f"Is there {_a(kind)}?") for kind in said.kinds]
            for number, things in many.values():
                be = "is" if number == "one" else "are"
                told.append((f"There {be} {number} {things}.", f"{be.title()} there {number} {things}?"))
            for kind, place in said.relations.items():
                told.append((f"The {names[kind]} is {place} the centre.", f"Is the {names[kind]} {place} the centre?"))
            for kind, word in said.words.items():
                told.append((f"The {names[kind]} says {word}.", f"Does the {names[kind]} say {word}?"))
            return told if aspect == "claims" else [(question,) for _, question in told]
    return []


def _several(kind: Kind, number: int) -> str:
    return " ".join(kind) + ("" if number == 1 else "es" if kind[1].endswith("s") else "s")


def _a(kind: Kind) -> str:
    return f"{'an' if kind[0][0] in 'aeiou' else 'a'} {' '.join(kind)}"
