"""What a decomposing model wrote, read back. Nothing is invented: a piece that is no item is counted, a reply that
holds no item and does not say NONE is not read at all (None), and the last piece of a reply that was cut is left out.

Each format is read in two ways: ours, and to the letter as its system reads it (`_compat`), faults included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmfast.feedback.expert_scores import NUMBERS
from mmfast.feedback.items import AS_DIGITS, SIZES, Item, item_of


@dataclass(frozen=True)
class Pieces:
    """What a reply held: tuples of an aspect, or lines."""

    found: tuple[tuple[str, ...], ...] = ()
    malformed: int = 0  # pieces that are no item


Parser = Callable[[str, str, bool], Pieces | None]  # (reply, aspect, was it cut?)

NONE = re.compile(r"\W*none\W*", re.IGNORECASE)
TAG = re.compile(r"^\s*(?:\[\w+\]|\w+)\s*:")  # "[ENT]:" before the answer
BULLET = re.compile(r"^\s*(?:[-*•–]|\d{1,3}[.)])\s+(.*\S)\s*$")
COUNTS = {*NUMBERS, "one"}
QUOTED = "quotations"


def brackets(reply: str, aspect: str, cut: bool = False) -> Pieces | None:
    """(a, b); (c, d) with as many parts as the aspect has; of entities (a, b, c), each its own."""
    if NONE.fullmatch(TAG.sub("", reply) or " "):
        return Pieces()
    groups = re.findall(r"\(([^()]*)\)", reply)  # one that is not closed was cut
    parts = [tuple(part.strip(" \t\r\n\"'“”") for part in group.split(",")) for group in groups]
    if SIZES[aspect] == 1:
        pieces = [(part,) for group in parts for part in group]
    else:
        pieces = parts
    kept = [piece for piece in pieces if _is_item(piece, aspect)]
    malformed = len(pieces) - len(kept) + (reply.count("(") > len(groups))
    return Pieces(tuple(dict.fromkeys(map(_tidy, kept))), malformed) if kept else None


def _is_item(piece: tuple[str, ...], aspect: str) -> bool:
    if len(piece) != SIZES[aspect] or not all(re.search(r"\w|[^\x00-\x7f]", part) for part in piece):
        return False
    if any(NONE.fullmatch(part) for part in piece):
        return False
    if aspect == "count":
        return AS_DIGITS.get(piece[0], piece[0].lower()) in COUNTS
    return not (aspect == "attribute" and piece[0].casefold() == piece[1].casefold())


def _tidy(piece: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in piece)


def brackets_compat(reply: str, aspect: str, cut: bool = False) -> Pieces:
    """DGPref's: what stands after the reply's last colon; parts at ", "; of entities the first group alone, or the
    whole text where there is none, so that NONE becomes an object."""
    text = reply.rpartition(":")[2]
    groups = re.findall(r"\((.*?)\)", text)
    if SIZES[aspect] == 1:
        listed = (groups[0] if groups else text).split(", ")
        return Pieces(tuple(dict.fromkeys((entity.strip(),) for entity in listed)))
    split = [group.split(", ") for group in groups]
    whole = [parts for parts in split if len(parts) == SIZES[aspect]]
    items = [tuple(part.strip() for part in parts) for parts in whole]
    if aspect == "attribute":
        items = [parts for parts in items if parts[0] != parts[1]]
    if aspect == "count":  # what is counted stays as it stands, blanks included
        words = [(AS_DIGITS.get(parts[0].strip(), parts[0].strip()), parts[1]) for parts in whole]
        items = [parts for parts in words if parts[0] in NUMBERS]
    return Pieces(tuple(dict.fromkeys(items)), len(groups) - len(items))


def bullets(reply: str, aspect: str = "", cut: bool = False) -> Pieces | None:
    """A line an item: "- ", "* ", "1. ". Other lines are no items; headings ("Claims:", "###") are not counted."""
    if NONE.fullmatch(reply or " "):
        return Pieces()
    lines = [line for line in reply.splitlines() if line.strip()]
    found = [m[1] if (m := BULLET.match(line)) else None for line in lines]
    other = [
        line
        for line, text in zip(lines, found, strict=True)
        if text is None and not line.strip().startswith("#") and not line.strip().endswith(":")
    ]
    kept = [text for text in found if text and not NONE.fullmatch(text)]
    if cut and found and found[-1] and kept:
        kept.pop()
    return Pieces(tuple((text,) for text in kept), len(other) + bool(cut)) if kept else None


def bullets_compat(reply: str, aspect: str = "", cut: bool = False) -> Pieces:
    """RLAIF-V's: of every line that is not empty and has no "###", all but the first character."""
    lines = [line for line in reply.split("\n") if line.strip() and "###" not in line]
    return Pieces(tuple((line[1:].strip(),) for line in lines))


def no_reply(reply: str, aspect: str, cut: bool = False) -> Pieces:
    """Of aspects that are taken from the answer itself: no model is asked."""
    return Pieces()


def written(aspect: str, pieces: Sequence[tuple[str, ...]]) -> str:
    """What these parsers read back. Of claims the first part, which may be followed by its question."""
    if aspect in ("claims", "questions"):
        return "\n".join(f"- {piece[0]}" for piece in pieces) or "NONE"
    if aspect == "entity":
        return f"({', '.join(name for (name,) in pieces)})" if pieces else "NONE"
    return "; ".join(f"({', '.join(piece)})" for piece in pieces) or "NONE"


PARSERS: dict[str, Parser] = {
    "brackets": brackets,
    "brackets_compat": brackets_compat,
    "bullets": bullets,
    "bullets_compat": bullets_compat,
    QUOTED: no_reply,
    QUOTED + "_compat": no_reply,
}
_GROUP = r"\([^(),\n]+(?:, [^(),\n]+){%d}\)"


def shape(aspect: str, lines: int = 0) -> str:
    """The regular expression of a reply, for engines that can hold it to that; `lines`: so many bullets, no more."""
    if SIZES.get(aspect) == 1:
        return r"NONE|\([^()\n]+\)"
    if aspect in SIZES:
        group = _GROUP % (SIZES[aspect] - 1)
        return f"NONE|{group}(; {group})*"
    return rf"- [^\n]+(\n- [^\n]+){{{lines - 1}}}" if lines else r"NONE|- [^\n]+(\n- [^\n]+)*"


DENIED = re.compile(r"\s*\((?:expected: )?no\)\s*$", re.IGNORECASE)  # behind a question: a no makes the claim true


def items_of(aspect: str, pieces: Pieces, *, compat: bool = False) -> list[Item]:
    return [item_of(aspect, piece, compat=compat) for piece in pieces.found]


def claims_of(claims: Sequence[str], questions: Sequence[str] | None) -> list[Item]:
    """RLAIF-V's: claim and question by their order. Without questions of the same number the claims stay without."""
    if questions is None or len(questions) != len(claims):
        return [Item(kind="claim", claim=claim) for claim in claims]
    return [
        Item(kind="claim", claim=claim, question=DENIED.sub("", asked), negated=bool(DENIED.search(asked)))
        for claim, asked in zip(claims, questions, strict=True)
    ]
