"""Replies given before: looked up by all that makes them, asked for only when missing, and appended to a file.

The file has two kinds of lines: {"engine": digest, "identity", "can"}, once an engine, and {"asked": name, "reply"}.
Errors are not kept: they are asked for again. Without an engine nothing is ever asked.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmfast.engines.base import Engine, Reply, Request, canonical
from mmfast.engines.shards import Appender, cut_torn, read

TOGETHER = 256  # recorded replies that may wait while the engine is given more to do


class Recorded:
    def __init__(self, path: str | Path, engine: Engine | None = None) -> None:
        """Several processes give one file each. The file is locked while an engine may add to it, until `close`."""
        self.path, self.engine = Path(path), engine
        self.file = Appender(self.path)
        if engine is None and not self.path.exists():
            raise ValueError(f"{path}: there are no recorded replies, and no engine is given to ask")
        if engine is not None:
            self._lock()
            cut_torn(self.path)
        self.replies: dict[str, Reply] = {}
        self.engines: dict[str, dict[str, Any]] = {}
        self._read()
        self._identity, self.can = self._of(engine)
        self.digest = _digest(self._identity)
        if engine is not None and self.digest not in self.engines:
            self.file.write([{"engine": self.digest, "identity": self._identity, "can": sorted(self.can)}])

    def _lock(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.held = self.path.open("ab")
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.held.close()
            raise ValueError(f"{self.path} is in use by another process that records: give another file") from None
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error.strerror}") from None

    def _read(self) -> None:
        for number, (_, row) in enumerate(read(self.path), 1):
            try:
                if "engine" in row:
                    self.engines[row["engine"]] = row
                else:
                    self.replies.setdefault(
                        row["asked"], Reply(**row["reply"] | {"bounded": tuple(row["reply"].get("bounded", ()))})
                    )
            except (KeyError, TypeError):
                raise ValueError(f"{self.path} line {number} is no recorded reply: remove this line") from None

    def _of(self, engine: Engine | None) -> tuple[dict[str, Any], frozenset[str]]:
        if engine is not None:
            return engine.identity(), engine.can
        if len(self.engines) != 1:
            raise ValueError(
                f"{self.path} holds the replies of {len(self.engines)} engines: without an engine it must be one"
            )
        (row,) = self.engines.values()
        return row["identity"], frozenset(row["can"])

    def identity(self) -> dict[str, Any]:
        """The engine's own: a recorded reply is its reply."""
        return self._identity

    @property
    def usage(self) -> Any:
        """Calls and costs of a server behind it."""
        return getattr(self.engine, "usage", None)

    def close(self) -> None:
        self.file.close()
        if self.engine is not None:
            self.held.close()
        if close := getattr(self.engine, "close", None):
            close()

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        left, found, asked = iter(requests), _Found(), {}

        def missing() -> Iterator[Request]:
            """What is recorded is set aside as it passes; a pause lets it out."""
            for request in left:
                if not self._recorded(request, found):
                    asked[request.key] = request
                    yield request
                if len(found.replies) >= TOGETHER:
                    return
            found.last = True

        while not found.last:
            if self.engine is None:
                for request in missing():
                    found.replies += self._unrecorded(request)
            else:
                for reply in self.engine.answer(missing()):
                    yield self._kept(asked[reply.key], reply)
            yield from found.replies
            found.replies = []
            asked.clear()

    def _name(self, request: Request, sample: int) -> str:
        return _digest(
            {
                "engine": self.digest,
                "messages": list(request.messages),
                "images": [picture.id for picture in request.images],
                "decode": asdict(request.decode),
                "labels": list(request.labels),
                "constraint": None if request.constraint is None else asdict(request.constraint),
                "sample": sample if request.n else None,
            }
            | ({"scored": True} if request.scored else {})
        )

    def _names(self, request: Request) -> list[str]:
        return [self._name(request, sample) for sample in range(max(request.n, 1))]

    def _recorded(self, request: Request, found: _Found) -> bool:
        """Whether all replies are there; they are then `found`."""
        replies = [self.replies.get(name) for name in self._names(request)]
        whole = [replace(reply, key=request.key) for reply in replies if reply is not None]
        if len(whole) < len(replies):
            return False
        found.replies += whole
        return True

    def _kept(self, request: Request, reply: Reply) -> Reply:
        """The reply, recorded; or the one that stands already, where others of the request were missing."""
        name = self._name(request, reply.sample)
        if name in self.replies:
            return replace(self.replies[name], key=request.key)
        if reply.finish != "error":
            self.replies[name] = reply
            self.file.write([{"asked": name, "reply": asdict(reply)}])
        return reply

    def _unrecorded(self, request: Request) -> Iterator[Reply]:
        for sample, name in enumerate(self._names(request)):
            if name in self.replies:
                yield replace(self.replies[name], key=request.key)
                continue
            said = request.messages[-1]["content"]
            told = said if isinstance(said, str) else "".join(part.get("text", "<image>") for part in said)
            error = f"{self.path} has no reply {name[:12]} to {told[:60]!r} (sample {sample}), and there is no engine"
            yield Reply(key=request.key, sample=sample, finish="error", error=error)


class _Found:
    """Replies that wait to be given, and whether no request is left."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.last = False


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
