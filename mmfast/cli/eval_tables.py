"""`mmfast eval wordnet`, `chair-table`, `amber-table`: what a user makes once for a benchmark, of data of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]


def register(app: typer.Typer) -> None:
    for name, command in (("wordnet", wordnet), ("chair-table", chair_table), ("amber-table", amber_table)):
        app.command(name)(command)


def wordnet(
    source: Annotated[Path, typer.Argument(help="The folder of a WordNet's dictionary, or nltk's wordnet.zip.")],
    out: Target,
) -> None:
    """Nouns and exceptions of a WordNet, as mmfast's own file of them was made (mmfast/evals/text)."""
    from mmfast.evals.make_tables import wordnet_table

    nouns, exceptions = wordnet_table(source, out)
    print(f"{out}: {nouns:,} nouns, {exceptions:,} exceptions")


def chair_table(
    annotations: Annotated[Path, typer.Argument(help="The folder of {captions,instances}_{train,val}2014.json.")],
    synonyms: Annotated[Path, typer.Option(help="The list of synonyms: a line a class.")],
    out: Target = Path("objects.txt.xz"),
    reading: Annotated[
        str, typer.Option(help="Whose way to read the captions: original, sima, dgpref, objhal.")
    ] = "original",
) -> None:
    """The objects of each image of COCO 2014, for CHAIR and Object HalBench."""
    from mmfast.evals.make_tables import chair_table as made

    images, objects = made(annotations, synonyms, out, reading)
    print(f"{out}: {images:,} images, {objects:,} objects")


def amber_table(
    relation: Annotated[Path, typer.Argument(help="AMBER's relation.json.")],
    spacy: Annotated[str, typer.Option(help="The model whose vectors say which words are alike.")] = "en_core_web_lg",
    out: Target = Path("similarity.json"),
) -> None:
    """Which of AMBER's words are alike, for its generative part."""
    from mmfast.evals.make_tables import amber_table as made

    print(f"{out}: {made(relation, out, spacy)} pairs of words are alike by {spacy}")
