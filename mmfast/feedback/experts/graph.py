"""Scene graphs as experts: what people annotated of an image. GQA's files and Visual Genome's, which DGPref draws from.

Nobody annotates all: what a graph does not name counts as not there, so verdicts of -1 are only as good as the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmfast.engines.base import Picture
from mmfast.feedback.experts import FALSE, TRUE, UNSEEN, Case, Verdict
from mmfast.feedback.experts.boxes import Box, Finder, Found, Sizes
from mmfast.feedback.items import Item
from mmfast.feedback.spans import NUMBERS, content, same
from mmfast.files import sha256_of


class Graph(Finder):
    kinds = Finder.kinds | {"attribute", "relation"}

    def __init__(self, file: str, *, images: str = "name", **sizes: Any) -> None:
        """
        file    GQA's train_sceneGraphs.json (an object: name -> graph), or Visual Genome's scene_graphs.json (a list)
        images  how a picture is found in it: "name": by its file's name; "index": by its position among the file's
                keys, the number before "_" in its file's name, as DGPref counts
        sizes   thresholds of scale and place (boxes.Sizes)
        """
        super().__init__(Sizes(**sizes))
        if images not in ("name", "index"):
            raise ValueError(f'images = "{images}": a picture is found by "name" or by "index"')
        self.file, self.by = Path(file), images
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"there is no file of scene graphs {file}") from None
        except ValueError as error:
            raise ValueError(f"{file} is no JSON file: {error}") from None
        if isinstance(content, list):
            content = {str(graph["image_id"]): graph for graph in content}
        if not isinstance(content, dict) or not all(isinstance(g, dict) and "objects" in g for g in content.values()):
            raise ValueError(f"{file} holds no scene graphs: each must have objects")
        self.graphs: dict[str, dict[str, Any]] = content
        self.order = list(content)

    def identity(self) -> dict[str, Any]:
        return {"expert": "graph", "file": sha256_of(self.file), "images": self.by, **super().identity()}

    def graph(self, picture: Picture) -> dict[str, Any]:
        name = Path(picture.source).stem
        if self.by == "index":
            number = name.split("_")[0]
            name = self.order[int(number)] if number.isdecimal() and int(number) < len(self.order) else ""
        if name not in self.graphs:
            raise ValueError(f"{self.file.name} has no graph of {picture.source}")
        return self.graphs[name]

    def find(self, picture: Picture, names: Sequence[str]) -> Found:
        from mmfast.data.images.decode import image_size

        graph = self.graph(picture)
        width, height = (graph.get(edge) for edge in ("width", "height"))
        if not width or not height:
            width, height = image_size(picture.data)
        boxes: dict[str, tuple[Box, ...]] = {}
        for name in names:
            some = [thing for thing in things(graph) if called(thing, name)]
            boxes[name] = tuple(Box(t["x"], t["y"], t["x"] + t["w"], t["y"] + t["h"]) for t in some)
        return Found(width, height, boxes)

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        for case in cases:
            by_boxes = [item for item in case.items if item.kind in Finder.kinds]
            (found,) = super().check(
                [Case(images=case.images, items=tuple(by_boxes), names=case.names, whole=case.whole)]
            )
            of = dict(zip((item.name for item in by_boxes), found, strict=True))
            try:
                yield [
                    of[i.name] if i.name in of else annotated(i, self.graph(case.images[0]), case.whole)
                    for i in case.items
                ]
            except ValueError as error:
                yield [Verdict(error=str(error))] * len(case.items)


def things(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of either form, each with `called`, `like` and `related` ((relation, the other's id))."""
    objects = graph["objects"]
    if isinstance(objects, dict):  # GQA
        return [
            thing
            | {"id": str(name), "called": [thing["name"]], "like": thing.get("attributes", [])}
            | {"related": [(r["name"], str(r["object"])) for r in thing.get("relations", [])]}
            for name, thing in objects.items()
        ]
    related: dict[str, list[tuple[str, str]]] = {}
    for r in graph.get("relationships", []):
        related.setdefault(str(r["subject_id"]), []).append((r["predicate"], str(r["object_id"])))
    return [
        thing
        | {"id": str(thing["object_id"]), "called": thing.get("names", []), "like": thing.get("attributes", [])}
        | {"related": related.get(str(thing["object_id"]), [])}
        for thing in objects
    ]


def called(thing: dict[str, Any], name: str) -> bool:
    return any(alike(name, own) for own in thing["called"])


def alike(one: str, other: str) -> bool:
    """The same words in any form, but for numbers: "two dogs" and "Dog" are, "dog house" and "dog" are not."""
    ones, others = ([word for word in content(text) if word.lower() not in NUMBERS] for text in (one, other))
    return len(ones) == len(others) and all(same(a, b) for a, b in zip(ones, others, strict=True))


def annotated(item: Item, graph: dict[str, Any], whole: frozenset[str]) -> Verdict:
    """An attribute or a relation, as the graph has it of any thing of that name."""
    known = things(graph)
    if item.kind == "attribute":
        of = [thing for thing in known if called(thing, item.args[1])]
        if not of:
            return Verdict(value=UNSEEN, evidence={"missing": [item.args[1]]})
        like = sorted({own for thing in of for own in thing["like"]})
        return Verdict(value=TRUE if any(alike(item.args[0], own) for own in like) else FALSE, evidence={"like": like})
    one, relation, other = item.args
    names = [name for name in (one, other) if name.lower() not in whole]
    if missing := [name for name in names if not any(called(thing, name) for thing in known)]:
        return Verdict(value=UNSEEN, evidence={"missing": missing})
    if len(names) < 2:
        return Verdict(evidence={"why": "the graph relates things to each other, not to the picture"})
    others = {thing["id"] for thing in known if called(thing, other)}
    said = [r for thing in known if called(thing, one) for r, to in thing["related"] if to in others]
    holds = any(relation.lower() == own.lower() or alike(relation, own) for own in said)
    return Verdict(value=TRUE if holds else FALSE, evidence={"relations": said})
