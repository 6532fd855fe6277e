"""The rows of an input: of a data file or folder of shards; of a folder of images, a row each; of scene graphs, a row
each image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.containers.packed import PICTURES, kind_of
from mmfast.data.containers.read import READERS, Row, count, data_files, iterate
from mmfast.data.formats.dgpref import image_path


def input_rows(path: Path, root: Path) -> Iterator[Row]:
    """`root`: of relative image paths. Rows are counted through, per file."""
    if found := pictures_in(path):
        for number, file in enumerate(found):
            name = file.relative_to(path).as_posix()
            yield Row(path, number, {"id": name.rpartition(".")[0], "image": str(file.absolute())})
        return
    for row in iterate(path):
        graphs = _graphs(row.value)
        if not graphs:
            yield row
        for number, name in enumerate(graphs):
            yield Row(row.file, number, {"id": name, "image": image_path(name, {"root": str(root)})})


def pictures_in(path: Path) -> list[Path]:
    """The images of a folder and of the folders in it, by name, where it holds no file of rows; else none. Names that
    begin with a dot are no images of anybody's."""
    if not path.is_dir() or any(kind_of(file) in READERS for file in path.iterdir()):
        return []
    found = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(path).parts))


def input_files(path: Path) -> list[Path]:
    return pictures_in(path) or data_files(path)


def count_rows(path: Path, limit: int = 0) -> int:
    """How many rows an input has, for a progress bar: blank lines are not told apart."""
    found = pictures_in(path)
    total = len(found)
    for file in [] if found else data_files(path):
        total += count(file) or sum(1 for _ in islice(input_rows(file, file.parent), limit or None))
    return min(total, limit) if limit else total


def _graphs(value: Any) -> list[str]:
    """The names of the images of a file of scene graphs (GQA's: {name: {"objects": ...}}), in its order."""
    if not isinstance(value, dict) or not value:
        return []
    whole = all(isinstance(graph, dict) and isinstance(graph.get("objects"), dict) for graph in value.values())
    return list(value) if whole else []
