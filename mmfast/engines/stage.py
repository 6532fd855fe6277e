"""A stage reads a file and writes a folder of rows; it may be killed at any instant and started again, on other ranks.

    rows-RANK.jsonl     one answer a line, only ever appended to, a request's answers in one write
    retried-RANK.jsonl  replies that could not be read and were asked for again (attempts.py)
    failed.jsonl        what could not be asked or answered, and why; written anew by each start, which tries it again
    manifest.json       what the rows were made by; a start with other settings is refused and told what differs

What is done is told by the rows' keys, never by counts. Readers take the union of the files by key, in the order of the
input (`row` is a row's number there), so that ranks, their number, order and restarts leave no trace.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmfast.data.images.decode import image_size
from mmfast.data.problems import BadRow
from mmfast.engines.attempts import Attempts, again, mend
from mmfast.engines.base import Engine, Picture, Reply, Request, refuse
from mmfast.engines.manifests import compare
from mmfast.engines.shards import Appender, cut_torn, parsed, read
from mmfast.files import write_bytes, write_json
from mmfast.job.runtime import Runtime

MANIFEST, FAILED = "manifest.json", "failed.jsonl"
ORDERED = ("prompt_id", "decode", "a", "b", "answer_key")  # fields by which the rows of one row of the input are sorted


@dataclass(frozen=True, kw_only=True)
class Item:
    """A request and where it comes from; or, with a `problem`, a row of the input that cannot be asked."""

    row: int  # of the input
    source: str  # "file:row", for messages
    request: Request | None = None
    problem: str = ""
    identical: bool = False  # with another of its group: nothing is asked, and it is counted
    fields: dict[str, Any] = field(default_factory=dict)  # of its rows, beside what the reply brings
    asked: Any = None  # what the stage itself keeps with it
    attempt: int = 1


@dataclass(kw_only=True)
class Tally:
    """What became of everything: nothing is dropped unseen."""

    rows: int = 0  # that the folder holds
    new: int = 0  # of them, since this start
    empty: int = 0
    cut: int = 0  # ended by max_tokens
    identical: int = 0  # with an earlier answer of their group
    asked: int = 0  # requests of the input, those that stood already and those that failed included
    failed: int = 0
    repeated: int = 0  # rows of the input that ask what an earlier one asks: answered once
    left: int = 0  # rows that answer nothing of today's input
    also: dict[str, int] = field(default_factory=dict)  # what the stage itself counts

    def __add__(self, other: Tally) -> Tally:
        """What became of two stages."""
        numbers = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "also"}
        return Tally(**numbers, also=dict(Counter(self.also) + Counter(other.also)))

    @property
    def share(self) -> float:
        return self.failed / max(self.asked, 1)

    def lines(self) -> list[str]:
        same = f"{self.identical} identical with another of their group"
        told = [
            f"{self.rows} rows, {self.new} of them new: {self.empty} empty, {self.cut} cut at max_tokens, {same}",
            f"{self.failed} of {self.asked} requests failed",
        ]
        told += [", ".join(f"{number} {name}" for name, number in self.also.items())] if self.also else []
        told += [f"{self.repeated} requests repeat an earlier one: answered once"] if self.repeated else []
        return told + ([f"{self.left} rows are of an earlier input or wording: they stay"] if self.left else [])


Owned = Callable[[str], bool]  # whether what is named so (an image's id; a key) is this rank's


@dataclass(kw_only=True)
class Stage:
    """`items` gives every item of the input in its order, None for another rank's. `made_by`: the manifest."""

    out: Path
    made_by: dict[str, Any]
    items: Callable[[Owned], Iterator[Item | None]]
    row: Callable[[Item, Reply], dict[str, Any]]  # what the stage makes of a reply, without its key and number
    whole: bool = True  # the input was not limited
    retries: int = 0  # of a reply of one sample that `unread` finds a fault in
    unread: Callable[[Item, Reply], str] = lambda item, reply: ""  # why a reply cannot be read; empty if it can
    counts: Callable[[Iterator[dict[str, Any]]], dict[str, int]] = lambda rows: {}  # of all rows, for the tally


def run(
    stage: Stage,
    engine: Engine,
    runtime: Runtime,
    *,
    debug: int = 0,
    allow: float = 0.0,
    follow: Callable[[int, str], None] = lambda waiting, note: None,
) -> Tally:
    """Ask for what is missing, write it, and count. Every rank calls it, and every rank asks its engine, were it for
    nothing.

    debug    how many rows are printed
    allow    the share of failures with which the folder is complete
    follow   told how many requests wait for replies, and a note
    """
    # The folder is ours; its files end with whole lines and hold nothing made by other settings
    runtime.hold(stage.out, "--out")
    runtime.from_main(lambda: _begin(stage))
    standing = {row["key"]: row["row"] for path in shards(stage.out) for _, row in read_rows(path)}
    attempts = Attempts(stage.out, runtime.rank)
    runtime.barrier()  # nobody writes before all have read
    work = _Work(stage, engine, runtime, standing, attempts, debug, follow)
    # Ask, and ask again; all ranks as often, since an engine may need them all
    with ExitStack() as ends:
        for file in (work.failed, work.rows, work.attempts.file):
            ends.callback(file.close)
        requests = work.requests()
        for left in range(stage.retries, -1, -1):
            replies = engine.answer(requests)
            if isinstance(replies, Generator):  # where this stops early, so does what it has begun
                ends.callback(replies.close)
            for reply in replies:
                work.take(reply)
            work.finish()
            if not left or not any(runtime.gather(bool(work.again))):
                break
            requests = work.retried()
    # Count, all ranks together
    parts = runtime.gather((work.counts, work.failures))
    return runtime.from_main(lambda: _end(stage, [p[0] for p in parts], [f for p in parts for f in p[1]], allow))


class _Work:
    """One rank's share: requests go out, replies come in, rows are written."""

    def __init__(
        self,
        stage: Stage,
        engine: Engine,
        runtime: Runtime,
        standing: dict[str, int],
        attempts: Attempts,
        debug: int,
        follow: Callable[[int, str], None],
    ) -> None:
        self.stage, self.engine, self.runtime, self.standing = stage, engine, runtime, standing
        self.rows = Appender(stage.out / f"rows-{runtime.rank}.jsonl")
        self.failed = Appender(stage.out / _failed_of(runtime.rank))
        self.attempts = attempts
        self.again: list[Item] = []  # whose replies could not be read
        self.debug, self.follow = debug, follow
        self.waiting: dict[str, Item] = {}
        self.replies: dict[str, dict[int, Reply]] = {}
        self.failures: list[dict[str, Any]] = []
        self.seen: set[str] = set()
        self.good: dict[str, str] = {}  # image id -> why it cannot be read; empty where it can
        self.counts = {"new": 0, "asked": 0, "repeated": 0, "met": 0, "identical": 0, "standing": len(standing)}
        self.tokens, self.began = 0, time.monotonic()

    def owned(self, name: str) -> bool:
        return int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) % self.runtime.world == self.runtime.rank

    def requests(self) -> Iterator[Request]:
        """What is to be asked. A request some of whose answers are missing is asked again as a whole."""
        for item in self.stage.items(self.owned):
            # What is another's, is not asked, was asked already, or cannot be asked
            if item is None:
                continue
            if item.identical:
                self.counts["identical"] += 1
                continue
            request = item.request
            if request is not None and request.key in self.seen:
                self.counts["repeated"] += 1
                continue
            self.counts["asked"] += 1
            if request is None:
                self.fail(item, item.problem)
                continue
            # What stands already
            self.seen.add(request.key)
            found = [self.standing[name] for name in _names(request) if name in self.standing]
            self.counts["met"] += len(found)
            if any(number != item.row for number in found):
                raise ValueError(
                    f"{self.stage.out}: its rows were made of another order of the input ({item.source} is row "
                    f"{item.row} and was {found[0]}): append new rows at the end, or give another --out"
                )
            if len(found) == len(_names(request)):
                self._told()
            elif problem := refuse(self.engine, request) or self._unreadable(request):
                self.fail(item, problem)
            else:
                request, attempt = self.attempts.resumed(request)
                self.waiting[request.key] = replace(item, request=request, attempt=attempt)
                yield request

    def retried(self) -> Iterator[Request]:
        items, self.again = self.again, []
        for item in items:
            assert item.request is not None
            request = again(item.request)
            self.waiting[request.key] = replace(item, request=request, attempt=item.attempt + 1)
            yield request

    def _unreadable(self, request: Request) -> str:
        for number, picture in enumerate(request.images, 1):
            if picture.id not in self.good:
                self.good[picture.id] = _why_unreadable(picture)
            if why := self.good[picture.id]:
                return f"image {number} ({picture.source}): {why}"
        return ""

    def take(self, reply: Reply) -> None:
        item = self.waiting.get(reply.key)
        if item is None or item.request is None or not 0 <= reply.sample < max(item.request.n, 1):
            raise ValueError(f"the engine answered what it was not asked: request {reply.key}, sample {reply.sample}")
        found = self.replies.setdefault(reply.key, {})
        found[reply.sample] = reply
        self.tokens += reply.tokens
        if len(found) == max(item.request.n, 1):
            self._settle(item, item.request)

    def finish(self) -> None:
        """What the engine never answered has failed."""
        for item in list(self.waiting.values()):
            assert item.request is not None
            self._settle(item, item.request)
        self._told()

    def _settle(self, item: Item, request: Request) -> None:
        """A request's answers, in one write; those that stood already stay as they are."""
        found = self.replies.pop(request.key, {})
        del self.waiting[request.key]
        if (problem := self._unread(item, request, found)) and item.attempt <= self.stage.retries:
            self.attempts.keep(found[0], item.attempt, problem, item.row)
            self.again.append(item)
            return
        rows, problems = [], []
        for sample, name in enumerate(_names(request)):
            reply = found.get(sample)
            if name in self.standing:
                continue
            if reply is None or reply.finish == "error":
                problems.append((reply.error if reply else "") or "the engine gave no answer")
                continue
            rows.append({"key": name, **self.stage.row(item, reply), "row": item.row})
            if self.debug > 0:
                self.debug -= 1
                print(_debugged(request, reply, rows[-1]), flush=True)
        self.rows.write(rows)
        self.counts["new"] += len(rows)
        if problems:
            some = f"{len(problems)} of {max(request.n, 1)} answers: " if len(problems) < request.n else ""
            self.fail(item, some + "; ".join(dict.fromkeys(problems)))
        self._told()

    def _unread(self, item: Item, request: Request, found: dict[int, Reply]) -> str:
        good = request.n == 1 and 0 in found and found[0].finish != "error"
        return self.stage.unread(item, found[0]) if good else ""

    def fail(self, item: Item, problem: str) -> None:
        key = item.request.key if item.request else ""
        row = {"row": item.row, "source": item.source, "key": key, "error": problem} | item.fields
        self.failures.append(row)
        self.failed.write([row])

    def _told(self) -> None:
        speed = self.tokens / max(time.monotonic() - self.began, 1e-9)
        notes = [f"{speed:.0f} tokens/s"] * bool(self.tokens) + [f"{len(self.failures)} failed"] * bool(self.failures)
        if usage := getattr(self.engine, "usage", None):  # a server's calls and costs
            notes.append(usage.told())
        self.follow(len(self.waiting), ", ".join(notes))


def _names(request: Request) -> list[str]:
    """The keys of its rows."""
    return [f"{request.key}.{sample}" for sample in range(max(request.n, 1))]


def _why_unreadable(picture: Picture) -> str:
    """Its bytes are not kept: many requests wait at once."""
    try:
        image_size(Path(picture.source).read_bytes() if picture.content is None else picture.content)
    except (BadRow, OSError) as error:
        return str(error)
    return ""


def _debugged(request: Request, reply: Reply, row: dict[str, Any]) -> str:
    said = "\n".join(f"  {m['role']}: {_shown(m['content'])}" for m in request.messages)
    said_back = repr(reply.text) if request.n else json.dumps(reply.labels or {"logp": reply.logp})
    shown = f"  reply ({reply.finish}): {said_back}\n  row: {json.dumps(row, ensure_ascii=False)}"
    return f"--- {row['key']}\n{said}\n{shown}"


def _shown(content: Any) -> str:
    return content if isinstance(content, str) else "".join(p.get("text", f"<{p['type']}>") for p in content)


# the folder


def shards(folder: Path) -> list[Path]:
    """Its files of rows, in the order of their ranks."""
    found = {path: path.stem.removeprefix("rows-") for path in folder.glob("rows-*.jsonl")}
    return sorted((path for path, rank in found.items() if rank.isdigit()), key=lambda path: int(found[path]))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What `shards.read` gives; a line that is no row of a stage raises and is named."""
    for number, (at, row) in enumerate(read(path), 1):
        if not isinstance(row.get("key"), str) or not isinstance(row.get("row"), int):
            raise ValueError(f"{path} line {number} is no row of a stage (key and row are missing): remove this line")
        yield at, row


def rows(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Every row once, in the order of the input. Held in memory is only where each stands."""
    order: dict[str, tuple[tuple, int, int]] = {}
    folder = Path(folder)
    files = shards(folder)
    if not files and not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} is no folder of rows: it has no {MANIFEST}")
    for number, path in enumerate(files):
        for at, row in read_rows(path):
            names = tuple(str(row.get(name, "")) for name in ORDERED)
            place = row["row"], *names[:2], row.get("sample", 0), *names[2:]
            order.setdefault(row["key"], (place, number, at))
    opened = [path.open("rb") for path in files]
    try:
        for _, (_, number, at) in sorted(order.items(), key=lambda entry: (entry[1][0], entry[0])):
            opened[number].seek(at)
            read_again = parsed(opened[number].readline())
            assert read_again is not None, "it was whole just now"
            yield read_again
    finally:
        for file in opened:
            file.close()


def _failed_of(rank: int) -> str:
    """While a stage runs each rank has a file of failures; at its end they are one."""
    return FAILED if rank == 0 else f"failed-{rank}.jsonl"


def _begin(stage: Stage) -> None:
    """The folder as a start needs it: of these settings, with whole lines, without the failures of an earlier start."""
    path = stage.out / MANIFEST
    try:
        if path.exists():
            if differences := compare(_read_manifest(path), stage.made_by):
                raise ValueError(
                    f"{stage.out} was made otherwise: {'; '.join(differences)}. Give another --out, or its settings"
                )
        elif shards(stage.out):
            raise ValueError(f"{stage.out} has rows, but no {MANIFEST} that says what made them: give another --out")
        write_json(path, {**stage.made_by, "complete": False, "counts": {}})
        for shard in shards(stage.out):
            cut_torn(shard)
            for _ in read_rows(shard):
                pass
        mend(stage.out)
        for left in stage.out.glob("failed*.jsonl"):
            left.unlink()
    except OSError as error:
        raise ValueError(f"--out: cannot write {error.filename or stage.out}: {error.strerror}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = parsed(path.read_bytes())
    if manifest is None or "stage" not in manifest:
        raise ValueError(f"{path} is no manifest of rows, or damaged: give another --out")
    return manifest


def _end(stage: Stage, counts: list[dict[str, int]], failures: list[dict[str, Any]], allow: float) -> Tally:
    """The failures in the input's order, what the rows are like, and the manifest that says that all is done."""
    total = {name: sum(part[name] for part in counts) for name in counts[0]}
    tally = Tally(new=total["new"], asked=total["asked"], failed=len(failures), repeated=total["repeated"])
    tally.identical = total["identical"]
    tally.left = counts[0]["standing"] - total["met"] if stage.whole else 0
    failures.sort(key=lambda row: (row["row"], row.get("prompt_id", ""), row["key"]))
    if failures:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in failures)
        write_bytes(stage.out / FAILED, lines.encode())
    for left in stage.out.glob("failed-*.jsonl"):
        left.unlink()
    said: set[bytes] = set()
    for row in rows(stage.out):
        tally.rows += 1
        answer = row.get("answer", row.get("raw"))
        tally.empty += isinstance(answer, str) and not answer.strip()
        tally.cut += row.get("finish") == "length"
        if "group" in row and isinstance(row.get("answer"), str):
            name = hashlib.sha256(f"{row['group']}\n{answer}".encode()).digest()[:12]
            tally.identical += name in said
            said.add(name)
    tally.also = stage.counts(rows(stage.out))
    counted = {name: getattr(tally, name) for name in ("rows", "asked", "failed", "empty", "cut", "identical")}
    complete = stage.whole and tally.share <= allow
    write_json(stage.out / MANIFEST, {**stage.made_by, "complete": complete, "counts": counted | tally.also})
    return tally
