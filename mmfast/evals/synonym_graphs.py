"""Mementos' comparison of words: lists of a judge, and graphs that say which words mean the same."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from mmfast.data.containers.pickles import RestrictedUnpickler
from mmfast.evals.base import ratio

Graph = Mapping[str, Mapping[str, Sequence[str]]]  # a word -> the next one, or "" -> the reference's words for it
LISTS = ("Object list 1", "Action list 1", "Object list 2", "Action list 2")
CLASSES = {("__main__", "ActionGraph"), ("__main__", "ObjectGraph")}  # of the official pickles
REST = "\0rest"  # what the official script makes of all that is left, however much: one element that no word equals


def replaced(reference: list[str], said: list[str], graph: Graph, *, pairs: bool, fixed: bool) -> list[str]:
    """What was said, in words of the reference where the graph knows them; each of these is taken once. `pairs`: two
    words of the list may be one action."""
    waiting, out, at = list(reference), [], 0
    while at < len(said) and waiting:
        for word in waiting:
            if word in graph.get(said[at], {}).get("", ()):
                taken = 1
            elif pairs and at + 1 < len(said) and word in graph.get(said[at], {}).get(said[at + 1], ()):
                taken = 2
            else:
                continue
            out.append(word)
            waiting.remove(word)
            at += taken
            break
        else:
            out.append(said[at])
            at += 1
    rest = said[at:]
    return out + (rest if fixed or not rest else [REST])


def compared(reference: list[str], said: list[str]) -> tuple[float, float, float]:
    """(recall, precision, F1) of sets."""
    true, told = set(reference), set(said)
    both = len(true & told)
    recall, precision = ratio(both, len(true)), ratio(both, len(told))
    return recall, precision, ratio(2 * (precision * recall), precision + recall)


def official_lists(reply: str) -> dict[str, list[str]] | None:
    """The four lists; None where the official script breaks off. An empty list has one empty word there."""
    found = {}
    for line in filter(None, reply.split("\n")):
        parts = line.split(": ")
        if len(parts) != 2:
            return None
        found[parts[0]] = [word.strip() for word in parts[1].strip("[]").split(",")]
    return found if found.keys() >= set(LISTS) else None


def strict_lists(reply: str) -> dict[str, list[str]] | None:
    """Our reading: lines around the lists, marks around their names and empty lists do no harm."""
    found: dict[str, list[str]] = {}
    for line in reply.split("\n"):
        name, mark, value = line.partition(":")
        known = next((n for n in LISTS if name.strip(" *#-.").lower() == n.lower()), None)
        if known and mark:
            words = (word.strip(" \"'") for word in value.strip(" *[]").split(","))
            found[known] = [word for word in words if word]
    return found if len(found) == len(LISTS) else None


def graph_of(content: bytes, role: str) -> Graph:
    """Of JSON, or of the official pickle, of which nothing but plain data is read."""
    if content[:1] == b"{":
        return json.loads(content)
    try:
        return _Graphs(io.BytesIO(content)).load().graph
    except (pickle.UnpicklingError, AttributeError, EOFError) as error:
        raise ValueError(f"the graph {role} of Mementos is refused: {error}") from None


class _Known:
    """Stands for the class that the official pickles are of; its state is plain data."""

    graph: Graph


class _Graphs(RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Known if (module, name) in CLASSES else super().find_class(module, name)
