"""Parts of speech by nltk's averaged perceptron tagger, whose model its user fetches: one file of nltk_data."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mmfast.packages import how_to_install

Tags = Callable[[list[str]], list[tuple[str, str]]]  # tokens -> each with its tag


@lru_cache(maxsize=2)
def tagger(content: bytes) -> Tags:
    """nltk's pos_tag, of the content of averaged_perceptron_tagger_eng.zip; nltk's own data are not looked at."""
    try:
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError:
        raise ValueError(f"words are tagged by nltk, which is not installed: {how_to_install('eval')}") from None
    made = PerceptronTagger(load=False)
    made.model.weights, made.tagdict = _part(content, "weights"), _part(content, "tagdict")
    made.classes = made.model.classes = set(_part(content, "classes"))
    return made.tag


def _part(content: bytes, part: str) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            name = next(name for name in file.namelist() if name.endswith(f".{part}.json"))
            return json.loads(file.read(name))
    except (zipfile.BadZipFile, StopIteration):
        raise ValueError(
            f"the tagger's file has no {part}: give averaged_perceptron_tagger_eng.zip of nltk_data as it is"
        ) from None
