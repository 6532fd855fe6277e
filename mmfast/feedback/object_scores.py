"""CHAIR as a score: how many kinds of objects an answer names that its image has not, by people's annotation of it.

DGPref's other source of pairs: captions of an image whose numbers differ by two or more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mmfast.data.problems import BadRow, Problem
from mmfast.feedback.answer import Answer
from mmfast.feedback.candidates import bad_rows

SCORE = "chair"  # minus the number: higher is better


def object_scored(
    answers: Iterable[Answer],
    objects: Mapping[str, frozenset[str]],
    named: Callable[[str], Iterable[str]],
    image_id: Callable[[Any], str],
    problems: list[Problem] | None = None,
) -> Iterator[Answer]:
    """Each answer with its score. `objects`: those of each image; `named`: those that a text names, repeats kept;
    `image_id`: of a file's name. An answer about an image that has no annotation is a bad row."""
    for one in answers:
        with bad_rows(problems, one.source):
            known = one.meta.get("name") or next((image for image in one.images if isinstance(image, str)), None)
            key = image_id(known) if known else ""
            if key not in objects:
                raise BadRow("score", f"--objects has no image {known or 'of this row: it names none'}")
            wrong = set(named(one.text)) - objects[key]
            yield replace(one, scores=one.scores | {SCORE: -float(len(wrong))})


def graph_names(content: bytes) -> dict[str, list[str]] | None:
    """The names of the things in each image of GQA's or Visual Genome's scene graphs; None where it is no such file."""
    if content.lstrip()[:1] not in (b"{", b"["):
        return None
    from mmfast.feedback.experts.graph import things

    graphs = json.loads(content)
    if isinstance(graphs, list):
        if not all(isinstance(graph, dict) and {"image_id", "objects"} <= set(graph) for graph in graphs):
            raise ValueError("--objects: a list of scene graphs has an image_id and objects in each")
        graphs = {str(graph["image_id"]): graph for graph in graphs}
    if not all(isinstance(graph, dict) and "objects" in graph for graph in graphs.values()):
        return None
    try:
        return {image: [name.lower() for t in things(g) for name in t["called"][:1]] for image, g in graphs.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--objects: a thing of the scene graphs is not whole: {error}") from None
