"""Long work is followed: one kind of bar, with the time left, on a terminal; plain lines anywhere else (nohup, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Follow = Callable[[int, int], None]  # (done, of)
EVERY = 15.0  # seconds between two lines of one part


class _Note(ProgressColumn):
    """What the work says of itself, where it says something: the field `note` of a task."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")))


def bars(console: Console | None = None, *, show: bool = True, width: int = 0) -> Progress:
    """The one kind of bar: what is done (in so many columns), how far, for how long, how long still, and a note."""
    return Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _Note(),
        console=console,
        disable=not show,
    )


class Parts:
    """Work of several parts: `part` gives a function to be told (done, of). A context: the bars end with the work."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.bars = bars(console, width=34) if console.is_terminal else None

    def __enter__(self) -> Parts:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def part(self, description: str) -> Callable[..., None]:
        """What it gives takes a note too, which is shown beside the time."""
        if self.bars:
            bars, task = self.bars, self.bars.add_task(description, total=None)
            return lambda done, of, note="": bars.update(task, completed=done, total=of, note=note)
        began = told = self.clock()
        finished = False

        def line(done: int, of: int, note: str = "") -> None:
            nonlocal told, finished
            now = self.clock()
            if finished or (done < of and now - told < EVERY):
                return
            told, finished, took = now, done >= of, now - began
            left = f", about {took / done * (of - done):.0f} s left" if 0 < done < of else ""
            self.say(f"{description}: {done}/{of}, {took:.0f} s{left}{', ' * bool(note)}{note}")

        return line


class Steps:
    """The steps of a run: a bar on a terminal, one line a log step elsewhere, on stderr."""

    def __init__(self, total: int, done: int, *, show: bool, title: str = "train") -> None:
        self.show, self.total, self.bar = show, total, None
        if show and sys.stderr.isatty():
            self.bar = bars(Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(title, total=total, completed=done)

    def update(self, step: int, values: dict[str, float]) -> None:
        shown = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin", "tokens_per_s": "tok/s"}
        given = {short: values[key] for key, short in shown.items() if key in values}
        note = "  ".join(
            f"{name} {one:,.0f}" if abs(one) >= 1000 else f"{name} {one:.4g}" for name, one in given.items()
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, note=note)
        elif self.show:
            print(f"step {step}/{self.total}  {note}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
