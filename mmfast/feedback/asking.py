"""What the stages share that ask an engine about answers: critique, judge, decompose, check.

    Asking(name="critique", version=1, prompts=(prompt,), asks=..., read=...).run(out, engine, runtime, source=...)

A stage says what is asked (`asks`) and how a reply is read (`read`). A text that cannot be read is asked for again with
other seeds, `retries` times, and then kept with its problem: nothing is invented, and nothing is dropped unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfast.data.problems import BadRow
from mmfast.data.text.templates import text_of
from mmfast.engines import stage
from mmfast.engines.asked import Pictures
from mmfast.engines.base import About, Constraint, Decode, Engine, Reply, Request, canonical, key_of
from mmfast.engines.manifests import agreed
from mmfast.engines.stage import MANIFEST, Item, Owned, Stage, Tally
from mmfast.feedback.answers import Answer, grouped
from mmfast.feedback.prompts import Prompt
from mmfast.job.runtime import Runtime
from mmfast.progress import Parts


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, and what its row has beside the reply. With a `problem` it cannot be asked; an `identical` one is
    not, since an equal one is, and is counted."""

    row: int  # of the input; rows come back in this order
    source: str  # for messages
    prompt: Prompt
    names: tuple[str, ...] = ()  # what it is about: the keys of answers. They are part of its key
    images: tuple[str, ...] = ()  # whole paths
    messages: tuple[dict[str, Any], ...] = ()
    labels: tuple[str, ...] = ()  # where the reply is read as labels: nothing is generated
    constraint: Constraint | None = None
    about: About | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # of the row
    more: Any = None  # what `read` needs beside
    problem: str = ""
    identical: bool = False


@dataclass(frozen=True)
class Read:
    """What a reply says. With a `problem` it is asked for again; what could be read all the same is kept."""

    fields: dict[str, Any]  # of the row
    problem: str = ""


@dataclass(kw_only=True)
class Asking:
    name: str
    version: int  # of the stage: raised where a reply is read otherwise
    prompts: tuple[Prompt, ...]
    asks: Callable[[], Iterable[Ask]]  # all, in the input's order, at each call
    read: Callable[[Ask, Reply], Read]
    decode: Decode = field(default_factory=Decode)
    retries: int = 0
    made_by: dict[str, Any] = field(default_factory=dict)  # what else must be the same for a folder to be gone on with
    counts: Callable[[Iterator[dict[str, Any]]], dict[str, int]] = lambda rows: {}  # of the rows, printed at the end

    def run(
        self,
        out: Path,
        engine: Engine,
        runtime: Runtime,
        *,
        source: str,
        whole: bool = True,
        debug: int = 0,
        allow: float = 0.0,
    ) -> Tally:
        """Every rank calls it. `source`: what the manifest calls the input; `whole`: it was not limited."""
        # What is asked by whom
        identity = agreed(engine, runtime)
        digest = {"identity": hashlib.sha256(canonical(identity).encode()).hexdigest()}
        pictures = Pictures(Path("/"), out)
        read_so_far = 0

        def items(owned: Owned) -> Iterator[Item | None]:
            nonlocal read_so_far
            for ask in self.asks():
                read_so_far += 1
                yield self._item(ask, owned, digest, pictures)

        work = Stage(
            out=out, made_by=self._manifest(identity, source), items=items, row=self._row, whole=whole,
            retries=self.retries, unread=lambda item, reply: self.read(item.asked, reply).problem, counts=self._counted,
        )  # fmt: skip
        # Rank 0 tells how far its share is
        total = sum(1 for _ in self.asks()) if runtime.main else 0
        with Parts(Console(stderr=True)) as progress:
            bar = progress.part(self.name + (f" (rank 0 of {runtime.world})" if runtime.world > 1 else ""))

            def follow(waiting: int, note: str) -> None:
                bar(max(read_so_far - waiting, 0), total, note)

            return stage.run(
                work, engine, runtime, debug=debug, allow=allow, follow=follow if runtime.main else lambda *_: None
            )

    def _manifest(self, identity: dict[str, Any], source: str) -> dict[str, Any]:
        return {
            "stage": self.name,
            "version": self.version,
            "engine": identity,
            "decode": vars(self.decode) | {"stop": list(self.decode.stop)},
            "retries": self.retries,
            **self.made_by,
            "input": source,
            "template": {prompt.name: prompt.key for prompt in self.prompts},
        }

    def _item(self, ask: Ask, owned: Owned, digest: dict[str, Any], pictures: Pictures) -> Item | None:
        """None where another rank asks it: all requests about an image are asked by one."""
        problem = ask.problem
        if not problem and not ask.identical:
            try:
                images = tuple(pictures.look_up(image)[0] for image in ask.images)
            except BadRow as error:
                problem = str(error)
        told: dict[str, Any] = {"row": ask.row, "source": ask.source, "fields": ask.fields}
        if problem or ask.identical:
            mine = owned(canonical([ask.source, *ask.names]))
            return Item(**told, problem=problem, identical=ask.identical) if mine else None
        if not owned(images[0].id if images else canonical(list(ask.messages))):
            return None
        request = Request(
            key="", messages=ask.messages, images=images, n=0 if ask.labels else 1, labels=ask.labels,
            decode=Decode() if ask.labels else self.decode, constraint=ask.constraint, about=ask.about,
        )  # fmt: skip
        wording = canonical([ask.prompt.digest, *ask.names])
        key = key_of(stage=self.name, version=self.version, engine=digest, request=request, template=wording)
        return Item(**told, request=replace(request, key=key), asked=ask)

    def _row(self, item: Item, reply: Reply) -> dict[str, Any]:
        ask: Ask = item.asked
        read = self.read(ask, reply)
        return {
            **ask.fields,
            **read.fields,
            "problem": read.problem,
            "raw": None if ask.labels else reply.text,
            "finish": reply.finish,
            "tokens": reply.tokens,
            "attempts": item.attempt,
            "template": _template(ask.prompt.name, ask.prompt.digest),
        }

    def _counted(self, rows: Iterator[dict[str, Any]]) -> dict[str, int]:
        """Of the rows of today's wordings."""
        found = {"not readable": 0, "asked again": 0}
        wordings = {_template(prompt.name, prompt.digest) for prompt in self.prompts}

        def seen() -> Iterator[dict[str, Any]]:
            for row in rows:
                if row["template"] not in wordings:
                    continue
                found["not readable"] += bool(row["problem"])
                found["asked again"] += row["attempts"] - 1
                yield row

        own = self.counts(passed := seen())
        for _ in passed:  # what the stage did not look at
            pass
        return found | own


def _template(name: str, digest: str) -> str:
    return f"{name}:{digest[:16]}"


def manifest(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of a stage: it has no {MANIFEST}")
    found: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(found.get("template"), dict):
        raise ValueError(f"{folder} was made by {found.get('stage')}, which asks nothing about answers")
    return found


def apart(source: Path, out: Path) -> None:
    """A stage does not write into what it reads."""
    home, read = out.resolve(), source.resolve()
    if home == read or home in read.parents:
        raise ValueError(f"--out {out} holds the input {source}: name another folder")


# answers of one question


def one_question(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """The answers of a group to one question about the same images: a group may hold several questions."""
    for group in grouped(answers):
        found: dict[str, list[Answer]] = {}
        for answer in group:
            found.setdefault(canonical([answer.images, list(answer.prompt)]), []).append(answer)
        yield from found.values()


def unlike(answers: Iterable[Answer]) -> tuple[list[Answer], list[Answer]]:
    """(The answers with each text once, those that repeat one.) A greedy answer stands for samples that equal it."""
    kept: dict[str, Answer] = {}
    same: list[Answer] = []
    for answer in sorted(answers, key=lambda answer: answer.decode != "greedy"):
        first = kept.setdefault(answer.text.strip(), answer)
        if first is not answer:
            same.append(answer)
    chosen = {id(answer) for answer in kept.values()}
    return [answer for answer in answers if id(answer) in chosen], same


def drawn_order(answers: Sequence[Answer], seed: int) -> list[Answer]:
    """In an order that follows from the seed and these answers' keys alone."""
    together = canonical([seed, sorted(answer.key for answer in answers)])
    return sorted(answers, key=lambda answer: hashlib.sha256(f"{together}{answer.key}".encode()).digest())


def lacking(prompt: Prompt, said: dict[str, str], *names: str) -> str:
    """Why a prompt cannot be filled; empty if it can. `names`: slots that the answers may have nothing for."""
    empty = [name for name in names if name in prompt.wording.slots and not said[name].strip()]
    return f"the prompt {prompt.name} needs {{{empty[0]}}}, and these answers came without one" if empty else ""


def dialogue(answer: Answer) -> str:
    """What was asked: the question; of several turns, all of them."""
    turns = [message for message in answer.prompt if message["role"] != "system"]
    if len(turns) == 1:
        return answer.question
    return "\n".join(f"{turn['role'].capitalize()}: {text_of(turn).strip()}" for turn in turns)
