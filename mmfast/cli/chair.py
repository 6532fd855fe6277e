"""`mmfast data pairs --rule chair`: what objects of an image and words of an answer are, for pairs by CHAIR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

OBJECTS = typer.Option(
    None, help="chair: scene graphs of GQA or Visual Genome, {image: [objects]}, or a table of mmfast eval chair-table."
)
SYNONYMS = typer.Option(None, help="chair: the list of synonyms, a line a class of objects.")
NEEDED = {
    "--objects": "what is in the images (GQA's train_sceneGraphs.json)",
    "--synonyms": "the words for each class of objects (github.com/LisaAnne/Hallucination, data/synonyms.txt)",
}


def needs_objects(rule: str, objects: Path | None, synonyms: Path | None) -> None:
    """--objects and --synonyms are what --rule chair reads, and no other rule."""
    for name, path in (("--objects", objects), ("--synonyms", synonyms)):
        if rule != "chair" and path is not None:
            raise ValueError(f"{name} is for --rule chair: {rule} reads no objects")
        if rule == "chair" and path is None:
            raise ValueError(f"--rule chair needs {name}: {NEEDED[name]}")
        if path is not None and not path.is_file():
            raise ValueError(f"{name} {path}: there is no such file")


def by_objects(found: Iterator[Any], objects: Path, synonyms: Path, problems: list[Any] | None) -> Iterator[Any]:
    """Answers with the score `chair`. Words are read as DGPref reads them: no two words are one in an answer, but a
    name of a scene graph may be two ("toilet seat" is a toilet, "baby elephant" an elephant)."""
    from mmfast.evals.coco import Vocabulary, image_id, object_table
    from mmfast.evals.text.lemmas import singular
    from mmfast.feedback.object_scores import graph_names, object_scored

    # The words
    text = synonyms.read_text(encoding="utf-8")
    vocabulary, joined = Vocabulary(text, "dgpref"), Vocabulary(text, "original").joined

    def named(answer: str) -> list[str]:
        return [kind for _, kind in vocabulary.mentions(answer)]

    def there(names: list[str]) -> frozenset[str]:
        single = [singular(name, vocabulary.how.way) for name in names]
        pairs = [joined[name] for name in single if name in joined]
        return frozenset(kind for words in (single, pairs) for _, kind in vocabulary.known(words))

    # The objects
    content = objects.read_bytes()
    try:
        graphs = graph_names(content)
    except ValueError as error:
        raise ValueError(f"{objects}: {error}") from None
    if graphs is None:
        table = object_table(content, objects.name, vocabulary)
    else:
        table = {image_id(image): there(names) for image, names in graphs.items()}
    return object_scored(found, table, named, image_id, problems)
