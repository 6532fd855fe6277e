"""Following work of several parts: bars with the time left on a terminal, plain lines anywhere else (nohup, CI)."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Follow = Callable[[int, int], None]  # (done, of)
EVERY = 15.0  # seconds between two lines of one part


class Parts:
    """`part` gives a function to be told (done, of). Used as a context, so that bars end with the work."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        columns = (
            TextColumn("{task.description:<34}"), BarColumn(10), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bars = Progress(*columns, console=console) if console.is_terminal else None

    def __enter__(self) -> Parts:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def part(self, description: str) -> Follow:
        if self.bars:
            bars, task = self.bars, self.bars.add_task(description, total=None)
            return lambda done, of: bars.update(task, completed=done, total=of)
        began = told = self.clock()
        finished = False

        def line(done: int, of: int) -> None:
            nonlocal told, finished
            now = self.clock()
            if finished or (done < of and now - told < EVERY):
                return
            told, finished, took = now, done >= of, now - began
            left = f", about {took / done * (of - done):.0f} s left" if 0 < done < of else ""
            self.say(f"{description}: {done}/{of}, {took:.0f} s{left}")

        return line
