"""The stage `generate`: a model's own answers to the prompts of a file, a row an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfast.data.problems import BadRow
from mmfast.engines import stage
from mmfast.engines.asked import Asked, Pictures, read_asked, worded
from mmfast.engines.base import Engine, Reply, Request, canonical, key_of
from mmfast.engines.inputs import count_rows, input_files
from mmfast.engines.manifests import agreed
from mmfast.engines.presets import Draw, Plan
from mmfast.engines.stage import Item, Owned, Stage, Tally
from mmfast.job.runtime import Runtime
from mmfast.progress import Parts

NAME, VERSION = "generate", 1


def generate(
    source: Path,
    out: Path,
    engine: Engine,
    plan: Plan,
    runtime: Runtime,
    *,
    format: str = "auto",
    images: str = "",
    limit: int = 0,
    part: tuple[int, int] = (1, 1),
    debug: int = 0,
    allow: float = 0.0,
) -> Tally:
    """Answer the prompts of `source` into `out`. `images`: the root of relative image paths, beside the file by
    default; `limit`: how many rows of the input are read (0: all); `part`: (K, N), the K-th of N, whole images."""
    # What is read, by what it is answered: the same on every rank
    check_input(source, out, plan, format=format)
    root = Path(images) if images else source if source.is_dir() else source.parent
    asking: dict[str, Any] = {"limit": limit, "only_images": bool(plan.wordings), "root": root}
    identity = agreed(engine, runtime)
    digest = {"identity": hashlib.sha256(canonical(identity).encode()).hexdigest()}
    reader = _Reader(plan, digest, Pictures(root, out, notes=runtime.main), part)

    def items(owned: Owned) -> Iterator[Item | None]:
        for asked in read_asked(source, format, **asking):
            yield from reader.items(asked, owned)

    made_by = {"stage": NAME, "version": VERSION, "engine": identity, **plan.made_by(), "input": source.name}
    made_by |= {"part": list(part)} if part != (1, 1) else {}
    work = Stage(out=out, made_by=made_by, items=items, row=reader.row, whole=not limit)
    # Rank 0 tells how far its share is
    total, each = count_rows(source, limit), len(plan.draws) * max(len(plan.wordings), 1)
    with Parts(Console(stderr=True)) as progress:
        bar = progress.part("generate" + (f" (rank 0 of {runtime.world})" if runtime.world > 1 else ""))

        def follow(waiting: int, note: str) -> None:
            bar(min(max(reader.rows - waiting // each, 0), total), total, note)

        return stage.run(
            work, engine, runtime, debug=debug, allow=allow, follow=follow if runtime.main else lambda *_: None
        )


def check_input(source: Path, out: Path, plan: Plan, *, format: str = "auto") -> None:
    """Raises where nothing can be read or the input lies in the output: it needs no engine."""
    home = out.resolve()
    if any(home in file.resolve().parents for file in input_files(source)):
        raise ValueError(f"--out {out} holds the input {source}: name another folder")
    if next(read_asked(source, format, only_images=bool(plan.wordings)), None) is None:
        raise ValueError(f"{source} holds no row")


def part_of(name: str, parts: int) -> int:
    """Which of so many parts, from 1 on, what is named so belongs to: the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) % parts + 1


def read_part(text: str) -> tuple[int, int]:
    """K/N."""
    part, slash, parts = text.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise ValueError(f"--part {text}: write K/N, the K-th of N parts: --part 1/3")


class _Reader:
    """Rows of the input as requests, and replies as rows."""

    def __init__(self, plan: Plan, engine: dict[str, Any], pictures: Pictures, part: tuple[int, int]) -> None:
        self.plan, self.engine, self.pictures, self.part = plan, engine, pictures, part
        self.rows = 0  # of the input, read so far

    def items(self, asked: Asked, owned: Owned) -> Iterator[Item | None]:
        """One item for each wording and draw; one alone where the row cannot be asked."""
        self.rows = asked.row + 1
        try:
            if asked.problem:
                raise BadRow("format", asked.problem)
            if self.plan.wordings and not asked.images:
                raise BadRow("format", "this preset asks about images, and the row has none")
            looked = [self.pictures.look_up(image) for image in asked.images]
        except BadRow as error:
            mine = owned(f"{asked.source}")
            failed = Item(row=asked.row, source=asked.source, problem=str(error), fields={"prompt_id": asked.id})
            yield failed if mine else None
            return
        found = tuple(picture for picture, _ in looked)
        about = found[0].id if found else canonical(list(asked.messages))
        if not owned(about) or part_of(about, self.part[1]) != self.part[0]:
            yield None
            return
        prompts = [(worded(text, asked), f"{asked.id}_{n}") for n, text in enumerate(self.plan.wordings)]
        for prompt, name in prompts or [(asked, asked.id)]:
            for draw in self.plan.draws:
                request = Request(key="", messages=prompt.messages, images=found, n=draw.samples, decode=draw.decode)
                key = key_of(stage=NAME, version=VERSION, engine=self.engine, request=request)
                fields = self._fields(prompt, name, [name for _, name in looked], [p.id for p in found], draw)
                yield Item(row=asked.row, source=asked.source, request=replace(request, key=key), fields=fields)

    def _fields(self, asked: Asked, name: str, paths: list[str], ids: list[str], draw: Draw) -> dict[str, Any]:
        whole = [ids] if self.plan.group == "image" else [ids, list(asked.messages)]
        return {
            "group": hashlib.sha256(canonical(whole).encode()).hexdigest()[:24],
            "prompt_id": name,
            "images": paths,
            "prompt": list(asked.messages),
            "decode": draw.name,
            "seed": draw.decode.seed,
            "meta": asked.meta,
        }

    @staticmethod
    def row(item: Item, reply: Reply) -> dict[str, Any]:
        given = item.fields
        return {
            **{name: given[name] for name in ("group", "prompt_id", "images", "prompt")},
            "answer": reply.text,
            "decode": given["decode"],
            "sample": reply.sample,
            "seed": given["seed"],
            "finish": reply.finish,
            "tokens": reply.tokens,
            "logp": reply.logp,
            "meta": given["meta"],
        }
