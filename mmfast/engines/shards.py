"""Files of rows that are only ever appended to: one JSON object a line. A kill leaves at most a torn last line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(where it begins, the row) of each line. A torn last line is left out; another damaged one raises."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            row = parsed(line)
            if row is None:
                raise ValueError(f"{path} line {number} is damaged: remove this line, and it is asked for again")
            yield at, row
            at += len(line)


def parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return row if isinstance(row, dict) else None


def cut_torn(path: Path) -> None:
    """The file ends behind its last whole line. Nobody else may be writing it."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - (1 << 16))
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
    if keep < end:
        os.truncate(path, keep)


class Appender:
    """Appends rows to a file that appears with the first. What `write` was given lies in the file when it returns, and,
    where it is `durable`, on disk."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self.file, self.durable = path, None, durable

    file: BinaryIO | None

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            if data and self.file is None:
                self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # closed by `close`
            while data and self.file is not None:
                data = data[self.file.write(data) :]
            if self.durable and self.file is not None:
                os.fsync(self.file.fileno())
        except OSError as error:
            if self.file is not None:
                self.file.close()
                self.file = None
            raise self._named(error) from None

    def close(self) -> None:
        """What was written is on disk when this returns."""
        if self.file is not None:
            try:
                os.fsync(self.file.fileno())
            except OSError as error:
                raise self._named(error) from None
            finally:
                self.file.close()
                self.file = None

    def _named(self, error: OSError) -> ValueError:
        return ValueError(
            f"cannot write {self.path} ({error.strerror}); what is in it stays: the same command goes on from it"
        )
