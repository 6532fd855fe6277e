"""Data sets that have images and no questions: COCO's captions and instances, scene graphs of GQA and Visual Genome.

What is asked about each comes from lines. Images are numbered as DGPref numbers them: by their place among the keys of
the whole file of scene graphs; COCO's by their place among the sorted names of their files, where DGPref took the order
in which its folder happened to be listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.dgpref import PLACES
from mmfast.data.problems import BadRow
from mmfast.feedback.experts.graph import things
from mmfast.feedback.published.base import Found, Kind, Taking, text_in

COCO = "images and annotations with captions or category_id"


def _is_coco(value: dict[str, Any]) -> bool:
    marks = value.get("annotations")
    first = marks[0] if isinstance(marks, list) and marks else None
    known = isinstance(first, dict) and "image_id" in first and bool({"caption", "category_id"} & set(first))
    return known and isinstance(value.get("images"), list)


def _coco(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    """An image with its captions, with its objects and how many there are of each, or (a folder of both files) both."""
    images: dict[Any, dict[str, Any]] = {}
    said: dict[Any, list[tuple[int, str]]] = {}
    objects: dict[Any, Counter[str]] = {}
    # What is said of each image, by the annotations' own numbers
    for row in rows:
        if isinstance(row.value, BadRow) or not _is_coco(row.value):
            raise ValueError(f"{row.source} is no file of COCO's captions or instances: {COCO}")
        try:
            images |= {image["id"]: image for image in row.value["images"]}
            names = {one["id"]: str(one["name"]) for one in row.value.get("categories") or []}
            for mark in row.value["annotations"]:
                if "caption" in mark:
                    said.setdefault(mark["image_id"], []).append((int(mark["id"]), str(mark["caption"]).strip()))
                elif "keypoints" not in mark:  # people told again
                    objects.setdefault(mark["image_id"], Counter())[names[mark["category_id"]]] += 1
        except (KeyError, TypeError, ValueError) as error:
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"{row.source}: an image, a category or an annotation is not whole ({told})") from None

    # The images, numbered by their files' names
    def make(row: Row) -> Iterator[Found]:
        image = row.value
        name, key = text_in(image.get("file_name"), "file_name of an image"), image.get("id")
        if key not in said and key not in objects:
            taking.left["images without an annotation"] += 1
            return
        counted = {"objects": dict(sorted(objects[key].items()))} if key in objects else {}
        yield Found(
            images=(name,),
            places=_coco_places(name, image),
            answer="\n".join(text for _, text in sorted(said.get(key, ()))),
            id=str(row.number),
            more={"name": name, **counted},
        )

    ordered = sorted(images.values(), key=lambda image: str(image.get("file_name")))
    return taking.each((Row(source, n, image) for n, image in enumerate(ordered)), make)


def _coco_places(name: str, image: dict[str, Any]) -> tuple[str, ...]:
    """Beside the root, or in the folder of its part: train2014, val2017."""
    part = name.split("_")[1] if name.startswith("COCO_") and name.count("_") > 1 else ""
    part = part or Path(str(image.get("coco_url") or "")).parent.name
    return (name, f"{part}/{name}") if part else (name,)


def _is_graph(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("objects"), dict | list)


def _are_graphs(value: dict[str, Any]) -> bool:
    """GQA's whole file, or a row of Visual Genome's list."""
    return bool(value) and (all(map(_is_graph, value.values())) or ("image_id" in value and _is_graph(value)))


def _graphs(source: Path, rows: Iterator[Row], taking: Taking) -> Iterator[Found]:
    """An image with its objects and how many there are of each."""

    def make(row: Row) -> Iterator[Found]:
        name, graph = row.value["name"], row.value["graph"]
        if name is None or not _is_graph(graph):
            raise BadRow("format", "a scene graph has a name (image_id) and objects")
        try:
            called = Counter(thing["called"][0] for thing in things(graph) if thing["called"])
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRow("format", f"an object of the scene graph {name} is not whole: {error}") from None
        places = tuple(place.format(name=name) for place in PLACES)
        more = {"name": str(name), "objects": dict(sorted(called.items()))}
        yield Found(images=(f"{name}.jpg",), places=places, id=str(row.number), more=more)

    return taking.each(_numbered(source, rows), make)


def _numbered(source: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """A row a graph, numbered through the whole source."""
    number = 0
    for row in rows:
        if isinstance(row.value, BadRow):
            yield Row(row.file, number, row.value)
            number += 1
            continue
        single = "image_id" in row.value and _is_graph(row.value)
        graphs = [(row.value["image_id"], row.value)] if single else row.value.items()
        for name, graph in graphs:
            yield Row(row.file, number, {"name": name, "graph": graph})
            number += 1


KINDS = (
    Kind(
        name="coco",
        looks_for=COCO,
        accepts=_is_coco,
        read=_coco,
        asks=False,
    ),
    Kind(
        name="graphs",
        looks_for="scene graphs: {name: {objects}}, or rows of image_id and objects",
        accepts=_are_graphs,
        read=_graphs,
        asks=False,
    ),
)
