"""CSV and TSV: a line of names, then a row a line, every cell a text; and Muffin's TSV, which has no names.

An empty cell is a value that is not there. A column without a name (pandas writes its row numbers so) is not read.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.data.containers.packed import open_text
from mmfast.data.problems import BadRow

TSV_COLUMNS = ("ds_name", "image", "text", "origin_dataset", "origin_split", "idx", "image_path")
LARGEST = 1 << 30  # characters of a cell: images stand in them


def read_csv(file: Path) -> Iterator[Any]:
    yield from _table(file, ",")


def read_tsv(file: Path) -> Iterator[Any]:
    """Muffin's seven columns where one of the first lines has them, else a table whose first line names its columns."""
    with open_text(file) as f:
        muffin = any(_is_muffins(line) for line in islice(f, 5))
    yield from _muffins(file) if muffin else _table(file, "\t")


def _is_muffins(line: str) -> bool:
    """Seven cells, of which the third is base64: no name of a column is one."""
    cells = line.rstrip("\r\n").split("\t")
    if len(cells) != len(TSV_COLUMNS):
        return False
    try:
        return base64.b64decode(cells[2], validate=True)[:1] in (b"[", b"{", b'"')
    except binascii.Error:
        return False


def _muffins(file: Path) -> Iterator[Any]:
    """Image and text as base64."""
    with open_text(file) as f:
        for line in f:
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) == len(TSV_COLUMNS):
                yield dict(zip(TSV_COLUMNS, cells, strict=True))
            elif line.strip():
                yield BadRow("tsv", f"{len(cells)} tab-separated columns, not {len(TSV_COLUMNS)}")
            else:
                yield None


def _table(file: Path, delimiter: str) -> Iterator[Any]:
    csv.field_size_limit(LARGEST)
    with open_text(file, newline="") as f:
        lines = csv.reader(f, delimiter=delimiter, strict=True)
        try:
            names = next(lines, [])
            _check_names(file, names)
            for cells in lines:
                yield _row(names, cells)
        except csv.Error as error:
            raise ValueError(
                f"{file.name}: the table breaks at line {lines.line_num} ({error}): a quote inside a cell is written "
                "twice, and a cell with quotes, line breaks or separators stands in quotes"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{file.name}: not UTF-8 after line {lines.line_num} ({error.reason})") from None


def _check_names(file: Path, names: list[str]) -> None:
    """A table needs a first line of names that tell its columns apart."""
    given = [name for name in names if name]
    if not given:
        raise ValueError(f"{file.name}: its first line names no column")
    if twice := [name for name in given if given.count(name) > 1]:
        raise ValueError(f"{file.name}: two of its columns are named {twice[0]}")


def _row(names: list[str], cells: list[str]) -> Any:
    if not cells:
        return None
    if len(cells) != len(names):
        return BadRow("csv", f"{len(cells)} cells, and the first line names {len(names)} columns")
    return {name: cell or None for name, cell in zip(names, cells, strict=True) if name}
