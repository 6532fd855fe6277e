"""The stage `logprobs`: how probable a model finds answers that are there already. A row has the sum of an answer's
log-probs and the number of its tokens, the end's among them: the sum that training's reference pass has of it.

Two such folders, of a policy and of its reference, give the implicit reward (`mmfast grade --beta`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfast.data.problems import BadRow
from mmfast.engines import stage
from mmfast.engines.asked import Pictures
from mmfast.engines.base import Engine, Reply, Request, canonical, key_of
from mmfast.engines.manifests import agreed, compare
from mmfast.engines.stage import Item, Owned, Stage, Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.folders import whole_rows
from mmfast.feedback.reading import manifest_of
from mmfast.job.runtime import Runtime
from mmfast.progress import Parts

NAME, VERSION = "logprobs", 1
NEEDS = {"score"}  # of an engine


def logprobs(
    source: Path,
    out: Path,
    engine: Engine,
    runtime: Runtime,
    *,
    images: str = "",
    limit: int = 0,
    debug: int = 0,
    allow: float = 0.0,
) -> Tally:
    """Score the answers of `source`. `limit`: how many are read (0: all)."""
    identity = agreed(engine, runtime)
    digest = {"identity": hashlib.sha256(canonical(identity).encode()).hexdigest()}
    pictures = Pictures(Path("/"), out)
    read = 0
    empty: set[str] = set()

    def items(owned: Owned) -> Iterator[Item | None]:
        nonlocal read
        for answer in islice(read_answers(source, images=images), limit or None):
            read += 1
            if answer.text.strip():
                yield _item(answer, owned, digest, pictures)
            else:
                empty.add(answer.key)

    def counts(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
        tokens = sum(row["tokens"] for row in rows)
        return {"tokens": tokens} | ({"empty answers are not scored": len(empty)} if empty else {})

    made_by = {"stage": NAME, "version": VERSION, "engine": identity, "input": source.name}
    work = Stage(out=out, made_by=made_by, items=items, row=_row, whole=not limit, counts=counts)
    # Rank 0 tells how far its share is
    total = sum(1 for _ in islice(read_answers(source, images=images), limit or None)) if runtime.main else 0
    with Parts(Console(stderr=True)) as progress:
        bar = progress.part(NAME + (f" (rank 0 of {runtime.world})" if runtime.world > 1 else ""))

        def follow(waiting: int, note: str) -> None:
            bar(max(read - waiting, 0), total, note)

        return stage.run(
            work, engine, runtime, debug=debug, allow=allow, follow=follow if runtime.main else lambda *_: None
        )


def check_input(source: Path, images: str = "") -> None:
    if next((True for answer in read_answers(source, images=images) if answer.text.strip()), None) is None:
        raise ValueError(f"{source} holds no answer: nothing can be scored")


def _item(answer: Answer, owned: Owned, digest: dict[str, Any], pictures: Pictures) -> Item | None:
    """None where another rank scores it: all answers about an image are one rank's."""
    told: dict[str, Any] = {"row": answer.row, "source": answer.source, "fields": {"answer_key": answer.key}}
    try:
        shown = tuple(pictures.look_up(image)[0] for image in answer.images)
    except BadRow as error:
        return Item(**told, problem=str(error)) if owned(answer.key) else None
    if not owned(shown[0].id if shown else canonical(list(answer.prompt))):
        return None
    messages = (*answer.prompt, {"role": "assistant", "content": answer.text})
    request = Request(key="", messages=messages, images=shown, n=0, scored=True)
    key = key_of(stage=NAME, version=VERSION, engine=digest, request=request, template=answer.key)
    return Item(**told, request=replace(request, key=key))


def _row(item: Item, reply: Reply) -> dict[str, Any]:
    # Rounded, so that what runs beside a row, which shows in the last bits, does not show in its record
    assert reply.logp is not None
    return {**item.fields, "logp": round(reply.logp, 4), "tokens": reply.tokens}


class Scored:
    """The log-probs that a folder of `mmfast logprobs` has, by the keys of answers."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        self.folder, self.manifest = folder, manifest_of(folder) or {}
        if self.manifest.get("stage") != NAME:
            raise ValueError(f"{folder} is a folder of {self.manifest.get('stage')}: one of mmfast {NAME} is needed")
        if self.manifest.get("complete") is not True:
            notes.append(f"{folder} is not complete: what it holds is read")
        found = whole_rows(stage.rows(folder), folder, answer_key=str, logp=float, tokens=int)
        self.rows = {row["answer_key"]: (row["logp"], row["tokens"]) for row in found}

    def same_model(self, other: Scored) -> bool:
        return not compare(*({"engine": one.manifest.get("engine")} for one in (self, other)))
