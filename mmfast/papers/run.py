"""`mmfast demo --papers`: every method of methods.py on one seed of the world, each beside its blind control.

Pieces of work wait for those that they read; as many as there are workers run side by side, each in a process with one
thread, so that no number depends on how many there are. What is finished is kept by its stamp (work.py): killed and
started again, the command goes on. papers.json is written anew after every method.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmfast.demo import make_base
from mmfast.job.runfolder import Lock
from mmfast.papers import data, report, tables, work
from mmfast.papers.methods import (
    CRITIC,
    FILES,
    MAX_TOKENS,
    METHODS,
    NOISE,
    STEPS,
    WORLD_COMMIT,
    Made,
    Method,
    Scale,
    Step,
)
from mmfast.papers.results import Results
from mmfast.papers.work import Piece
from mmfast.progress import Parts
from mmfast.rounds.launch import die_with_parent
from mmfast.world.base import WarmUp
from mmfast.world.dataset import WorldSpec, write_world

What = Step | Made | Method


def papers(
    out: str | Path = "runs/papers",
    *,
    seed: int = 0,
    workers: int = 0,
    scale: Scale | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """The whole job on one seed; returns what papers.json holds. `workers`: how many pieces run side by side; 0: 2, or
    one on a GPU or a single core."""
    console, scale = console or Console(), scale or Scale()
    folder = Path(out).resolve() / f"seed-{seed}"
    if seed < 0 or workers < 0:
        raise ValueError(f"seed = {seed}, workers = {workers}: neither can be below 0")
    cores = len(os.sched_getaffinity(0))
    workers = workers or (1 if torch.cuda.is_available() else min(2, cores))
    with closing(Lock(folder, "--out")):
        with Parts(console) as parts:
            found = _papers(folder, seed, workers, scale, parts)
        page = report.write(folder)
        for table in tables.table(folder):
            console.print(table)
        console.print(f"{found['seconds']:.0f} s; the report: {page}")
        return found


def _papers(folder: Path, seed: int, workers: int, scale: Scale, parts: Parts) -> dict[str, Any]:
    # The world and the base model, as the short demo makes them
    parts.say(f"mmfast demo --papers  {folder}  {data.device()}, {workers} side by side")
    spec = WorldSpec(seed=seed, base=scale.scenes, pairs=scale.pairs, test=scale.pictures)
    results = Results(folder, seed, workers)
    with results.part("world"):
        write_world(folder / "world", spec, parts.part("world: pictures and captions"))
        data.write_prompts(folder, folder / "world", scale, seed)
    with results.part("base model"):
        warm = WarmUp(seed=seed, steps=scale.seeing)
        run = {"processes": min(2, workers), "threads": 1}
        _, kept = make_base(folder, folder / "world", seed, parts.part, run, warm=warm, steps=scale.base)
    if kept:
        parts.say("the base model is there already")
    # Every piece, once those that it reads are done
    pieces = pieces_of(folder, seed, scale)
    follow = parts.part("papers: steps, files, methods")
    for done, (piece, note, new) in enumerate(_worked(pieces, workers), 1):
        results.take(piece, note)
        follow(done, len(pieces), piece.what.name if new else "")
        if why := note.get("nothing"):
            parts.say(f"{piece.what.name} is left out: {why}")
    return results.write(complete=True)


# the pieces and what each reads


def reads(what: What) -> list[str]:
    """The names of the pieces that must be there before this one, as `named` has them."""
    if isinstance(what, Step):
        needed = [f"step {what.of}"] if what.of else []
        beyond = [f"step {_step(what.of).of}"] if what.do == "grade" else []
        return needed + beyond + ([f"method {what.model}"] if what.model else ["method base"])
    if isinstance(what, Made):
        return [f"step {what.of}"] if what.of else []
    needed = [f"made {what.of}"] if what.of else []
    return needed + ([f"method {what.start or 'base'}"] if what.system != "base" else [])


def named(what: What) -> str:
    return f"{type(what).__name__.lower()} {what.name}"


def _step(name: str) -> Step:
    return next(step for step in STEPS if step.name == name)


def pieces_of(folder: Path, seed: int, scale: Scale) -> dict[str, Piece]:
    """Every piece by its name, in the order of the methods, each behind what it reads. Its stamp is of its settings and
    of the stamps of these."""
    common = json.dumps([asdict(scale), seed, WORLD_COMMIT, NOISE, MAX_TOKENS, CRITIC])
    everything: tuple[What, ...] = (*METHODS.values(), *STEPS, *FILES)
    by_name = {named(what): what for what in everything}
    found: dict[str, Piece] = {}

    def add(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, f"{' <- '.join((*above, name))} wait for each other"
        what = by_name[name]
        for other in reads(what):
            if other not in found:
                add(other, (*above, name))
        told = json.dumps([asdict(what), common, *(found[other].stamp for other in reads(what))])
        stamp = hashlib.sha256(told.encode()).hexdigest()[:24]
        found[name] = Piece(what=what, folder=folder, seed=seed, scale=scale, stamp=stamp)

    for one in METHODS.values():
        if named(one) not in found:
            add(named(one))
    return found


def _worked(pieces: dict[str, Piece], workers: int) -> Iterator[tuple[Piece, dict[str, Any], bool]]:
    """(piece, its note, whether it was done now), each as soon as it is there. What reads nothing is not begun."""
    notes: dict[str, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], str] = {}
    waiting = dict(pieces)
    with _Workers(workers) as pool:
        while waiting or running:
            for name, piece in list(waiting.items()):
                # What stands, what cannot be, what can begin
                needed = reads(piece.what)
                lost = next((notes[other]["nothing"] for other in needed if "nothing" in notes.get(other, {})), "")
                note = {"nothing": lost} if lost else piece.done()
                if note is not None and all(other in notes for other in needed):
                    notes[name] = note
                    del waiting[name]
                    yield piece, note, False
                elif note is None and all(other in notes for other in needed) and len(running) < workers:
                    running[pool.begin(piece)] = name
                    del waiting[name]
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    notes[name] = _ended(future, pieces[name])
                    yield pieces[name], notes[name], True


def _ended(future: Future[dict[str, Any]], piece: Piece) -> dict[str, Any]:
    try:
        return future.result()
    except (ValueError, RuntimeError, OSError, SystemExit) as error:
        why = str(error).strip().splitlines()
        log = piece.folder / "logs" / f"{piece.what.name}.log"
        raise ValueError(
            f"{piece.what.name}: {why[0] if why else type(error).__name__} (what it said: {log}; the same command goes "
            "on here)"
        ) from error


class _Workers:
    """Processes of their own; one worker alone works in this one."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = (
            ProcessPoolExecutor(number, mp_context=context, initializer=_alone, initargs=(os.getpid(),))
            if number > 1
            else None
        )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Where something raised, or Ctrl-C, the others are ended too: their pieces are made anew."""
        if self.pool and kind:
            for process in multiprocessing.active_children():
                process.terminate()
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, piece: Piece) -> Future[dict[str, Any]]:
        if self.pool:
            return self.pool.submit(work.do, piece)
        future: Future[dict[str, Any]] = Future()
        try:
            future.set_result(work.do(piece))
        except Exception as error:
            future.set_exception(error)
        return future


def _alone(parent: int) -> None:
    """In a worker: it computes on one core, ends with its parent however that ends, and leaves Ctrl-C to it."""
    die_with_parent(signal.SIGKILL)  # a run's own handler would take a softer one for a wish to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
