"""A reply that does not parse is asked for again with another seed. What was said before stays beside the rows, so that
a start goes on from there:

    retried-RANK.jsonl   {"key", "attempt", "problem", "reply", "row"}, only ever appended to
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mmfast.engines.base import Reply, Request
from mmfast.engines.shards import Appender, cut_torn, read

TEMPERATURE = 0.7  # of a retry where the first attempt was greedy: another seed alone would change nothing


def again(request: Request) -> Request:
    """The same request with the next seed. Its key stays: it names the row, not the attempt."""
    decode = request.decode
    drawn = replace(
        decode, seed=(decode.seed + 1) % 2**63, temperature=decode.temperature or TEMPERATURE, beams=1
    )  # a search has no seeds
    return replace(request, decode=drawn)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("retried-*.jsonl"))


def mend(folder: Path) -> None:
    """Its files end with whole lines. Nobody else may be writing them."""
    for path in files(folder):
        cut_torn(path)


class Attempts:
    """What was asked in vain, by all ranks of all starts."""

    def __init__(self, folder: Path, rank: int) -> None:
        kept = {(row["key"], row["attempt"]) for path in files(folder) for _, row in read(path)}
        self.vain = Counter(key for key, _ in kept)
        self.file = Appender(folder / f"retried-{rank}.jsonl")

    def resumed(self, request: Request) -> tuple[Request, int]:
        """The request as it is to be asked now, and the number of that attempt, from 1."""
        done = self.vain[request.key]
        for _ in range(done):
            request = again(request)
        return request, done + 1

    def keep(self, reply: Reply, attempt: int, problem: str, row: int) -> None:
        said = {"text": reply.text, "finish": reply.finish, "tokens": reply.tokens}
        self.file.write([{"key": reply.key, "attempt": attempt, "problem": problem, "reply": said, "row": row}])
