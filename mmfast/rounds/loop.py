"""Runs what is missing, from the first round to the last. Its state is its files: what comes next is the first step
whose note or work is not there."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import Any

from rich.console import Console

from mmfast.engines.asked import read_asked
from mmfast.engines.server_calls import Usage
from mmfast.engines.stage import MANIFEST
from mmfast.engines.stage import rows as rows_of
from mmfast.feedback.folders import whole_rows
from mmfast.files import write_json
from mmfast.rounds import choice
from mmfast.rounds.launch import Failed, Interrupted, Machine, Ranks, said
from mmfast.rounds.settings import MAKERS, Settings
from mmfast.rounds.steps import Step, home_of, judged, round_of

LEAST = 20  # verdicts from which on a critic that always says the same is told
LITTLE = 1 << 20  # bytes of a disk that is full
RESULT = "result.json"


def run(settings: Settings, crew: Machine | Ranks, console: Console, *, report: Callable[[Settings], Path]) -> Path:
    """All rounds; returns the model that is kept. Raises ValueError where it cannot go on, with the reason."""
    rounds, made = settings.rounds, 0
    readable(settings)
    if settings.judged:
        base = judged(settings, 0, settings.base, None)
        if not base.done():
            choice.check(settings)
        take(base, crew, console)
        choice.check_base(settings)
    for number in range(1, rounds.count + 1):
        begun = choice.start_of(settings, number)
        model, parent = choice.model_of(settings, begun)
        for step in round_of(settings, number, model, parent):
            take(step, crew, console)
        made = number
        report(settings)
        if settings.best and settings.judged:
            stood = choice.standings(settings, number)[-1]
            console.print(f"round {number}: {stood.told(settings.best)}", highlight=False, soft_wrap=True)
            if rounds.stop == "no gain" and not stood.better:
                console.print(f"stopped after round {number}: no gain (rounds.stop)", highlight=False)
                break
    kept = choice.best_of(settings, made) if rounds.keep == "best" else made
    model = choice.model_of(settings, kept)[0]
    write_json(settings.folder / RESULT, {"rounds": made, "kept": kept, "model": model})
    return Path(model)


def readable(settings: Settings) -> None:
    """Raises where there are no prompts, before a model is judged."""
    prompts = settings.prompts
    if not prompts.path:  # nothing is asked: the pairs are there
        return
    try:
        if next(read_asked(Path(prompts.path), prompts.format), None) is None:
            raise ValueError(f"{prompts.path} holds no row")
    except ValueError as error:
        raise ValueError(f"[prompts] path: {str(error).removeprefix('data.path: ')}") from None


def take(step: Step, crew: Machine | Ranks, console: Console) -> None:
    """Do a step that is not done, and note what it cost."""
    if step.done():
        return
    try:
        _take(step, crew, console)
    except OSError as error:  # a full disk, mostly
        where = f" ({error.filename})" if error.filename else ""
        raise ValueError(f"{step.told}: {error.strerror or error}{where}; the same command goes on here") from None


def _take(step: Step, crew: Machine | Ranks, console: Console) -> None:
    # The command, unless people have done it all already
    began, used = time.monotonic(), _processor()
    with console.status(step.told) as status:
        before = step.begin()
        if step.command[0] == "correct" and finished(step.makes):
            step.end(before, ["people are done with it"])
            return
        size = step.log.stat().st_size if step.log.exists() else 0
        try:
            crew.run(step.command, step.log, wide=step.wide, follow=lambda line: status.update(f"{step.told}  {line}"))
        except (Failed, Interrupted) as error:
            text = said(step.log, size)
            with suppress(OSError):  # a full disk has ended it, maybe
                step.pause(_spent(before, began, used, text))
            if isinstance(error, Interrupted):
                raise
            raise ValueError(_why(step, str(error), text)) from None
    # What it left
    text = said(step.log, size)
    _usable(step, text)
    step.end(_spent(before, began, used, text), _kept(step, text))
    console.print(f"{step.told}: {time.monotonic() - began:.0f} s", highlight=False)


def _why(step: Step, error: str, text: str) -> str:
    """Why a command failed: its own words; where it makes training data, what it has counted; and a full disk."""
    lines = text.splitlines() if step.command[0] == "data" else []
    counted = [line for line in lines if line.strip() and not line.startswith(("mmfast: ", "error: "))]
    full = f"the disk of {step.home} is full; " if disk_usage(step.home).free < LITTLE else ""
    end = f"({full}all of it is in {step.log}; the same command goes on here)"
    return "\n  ".join([f"{step.told}: {error}", *counted[-12:], end])


def _spent(before: dict[str, float], began: float, used: float, text: str) -> dict[str, float]:
    """By this start, and by earlier ones that could say so."""
    usage = Usage.said_in(text)
    now = {
        "seconds": time.monotonic() - began,
        "processor_seconds": _processor() - used,
        "tokens_in": usage.prompt_tokens,
        "tokens_out": usage.completion_tokens,
        "paid": usage.cost,
    }
    return {name: value + before.get(name, 0) for name, value in now.items()}


def finished(folder: Path) -> bool:
    """People end their page by Ctrl-C, which ends the rounds too: the next start sees that every card was done."""
    try:
        return json.loads((folder / MANIFEST).read_text()).get("complete") is True
    except (OSError, ValueError):
        return False


def _usable(step: Step, text: str) -> None:
    """What the command left can be gone on with; else why not."""
    kind = step.command[1] if step.command[0] == "data" else step.command[0]
    if not step.whole(step.makes):
        told = "\n  ".join(text.strip().splitlines()[-8:])
        if kind in MAKERS:
            raise ValueError(f"{step.told}: not one row to train on:\n  {told}")
        raise ValueError(f"{step.told} was stopped before its end; the same command goes on with it ({step.log})")
    if kind == "critique":
        one_sided(step)


def one_sided(step: Step) -> None:
    """A critic that takes the same place every time has read nothing."""
    places: Counter[bool] = Counter()
    for row in whole_rows(rows_of(step.makes), step.makes, order=str):
        if row.get("verdict") in ("a", "b"):
            places[row["verdict"] == row["order"][0]] += 1
    if sum(places.values()) >= LEAST and len(places) == 1:
        where, number = "first" if True in places else "second", sum(places.values())
        raise ValueError(
            f"{step.told}: the critic chose the answer that stood {where} in all {number} comparisons, so it "
            "tells nothing of them (another critic or prompt; `mmfast critique --debug 5` shows its replies)"
        )


def _kept(step: Step, text: str) -> list[str]:
    """What a step said that the report shows: of data files which were made and why others were not."""
    return text.strip().splitlines()[-40:] if step.command[0] == "data" else text.strip().splitlines()[-1:]


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# what stands


def steps_of(settings: Settings) -> Iterator[Step]:
    """Every step that can be named today: which model a round starts from is known once those before are judged."""
    if settings.judged:
        yield judged(settings, 0, settings.base, None)
    for number in range(1, settings.rounds.count + 1):
        try:
            model, parent = choice.model_of(settings, choice.start_of(settings, number))
        except ValueError:
            return
        yield from round_of(settings, number, model, parent)


def status(settings: Settings) -> list[dict[str, Any]]:
    """A row a step: its state, seconds, and what it said last."""
    found = []
    for step in steps_of(settings):
        note = step.read() or {}
        try:
            state = (
                "done" if step.done() else "to do" if not note else "begun" if not note.get("mark") else "to do again"
            )
        except ValueError:
            state = "made by other settings"
        said_last = (note.get("said") or [""])[-1]
        found.append(
            {
                "round": step.round,
                "step": step.name,
                "state": state,
                "seconds": step.spent().get("seconds"),
                "said": said_last,
            }
        )
    return found


def ended(settings: Settings) -> dict[str, Any] | None:
    try:
        value = json.loads((settings.folder / RESULT).read_text())
        return value if isinstance(value, dict) else None
    except (OSError, ValueError):
        return None


__all__ = ["ended", "home_of", "run", "status", "steps_of", "take"]
