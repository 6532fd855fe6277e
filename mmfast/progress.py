"""Long work is followed: one kind of bar, with the time left, on a terminal; plain lines anywhere else (nohup, CI)."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
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
from rich.table import Column
from rich.text import Text

Follow = Callable[[int, int], None]  # (done, of)
EVERY = 15.0  # seconds between two lines of one part


def lasting(seconds: float) -> str:
    """85 s, 12 min, 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


class _Items:
    """As many of the items, which two spaces part, as the rest of the line has room for."""

    def __init__(self, text: str) -> None:
        self.items = text.split("  ")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(1, options.max_width), min(len("  ".join(self.items)), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self.items)
        while shown and len("  ".join(shown)) > options.max_width:
            shown.pop()
        yield Text("  ".join(shown), no_wrap=True)


class _Note(ProgressColumn):
    """What the work says of itself, where it says something: the field `note` of a task."""

    def render(self, task: Task) -> _Items:
        return _Items(str(task.fields.get("note", "")))


def _bars(console: Console, width: int) -> Progress:
    """The one kind of bar: what is done (in so many columns), how far, for how long, how long still, and a note."""
    whole = Column(no_wrap=True)  # a narrow terminal takes from the note alone
    return Progress(
        TextColumn(f"{{task.description:<{width}}}", markup=False),
        BarColumn(10, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
        _Note(),
        console=console,
    )


class Parts:
    """Work of several parts: `part` gives a function to be told (done, of). A context: the bars end with the work.
    `show`: else no part is shown, and only what is said appears. `width`: columns of a part's name."""

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, *, show: bool = True, width: int = 34
    ) -> None:
        self.console, self.clock, self.show = console, clock, show
        live = show and console.is_terminal and not console.is_dumb_terminal
        self.bars = _bars(console, width) if live else None

    def __enter__(self) -> Parts:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def say(self, line: str) -> None:
        """A line above the bars: as it is, however long."""
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def part(self, description: str, *, fleeting: bool = False) -> Callable[..., None]:
        """What it gives takes a note too, which is shown beside the time. `of` = 0: it is not known. `fleeting`:
        done, it is no longer worth a line."""
        if self.bars:
            return self._bar(self.bars, description, fleeting)
        began = told = self.clock()
        finished = not self.show

        def line(done: int, of: int, note: str = "") -> None:
            nonlocal told, finished
            now = self.clock()
            ends = 0 < of <= done and not (fleeting and told == began)
            if finished or (not ends and now - told < EVERY):
                return
            told, finished, took = now, 0 < of <= done, now - began
            left = f", about {lasting(took / done * (of - done))} left" if 0 < done < of else ""
            self.say(f"{description}: {done}{f'/{of}' * (of > 0)}, {lasting(took)}{left}{', ' * bool(note)}{note}")

        return line

    @staticmethod
    def _bar(bars: Progress, description: str, fleeting: bool) -> Callable[..., None]:
        task = bars.add_task(description, total=None)

        def show(done: int, of: int, note: str = "") -> None:
            if fleeting and 0 < of <= done:
                bars.update(task, visible=False)
            else:
                bars.update(task, completed=done, total=of or None, note=note)

        return show


class Steps(Parts):
    """The steps of a run: a bar on a terminal, one line a log step elsewhere, on stderr."""

    def __init__(self, total: int, done: int, *, show: bool, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Console(stderr=True), clock, show=show, width=5)
        self.total, self.before, self.began = total, done, self.clock()
        if self.bars:
            self.bars.start()
            self.task = self.bars.add_task("train", total=total, completed=done)

    def update(self, step: int, values: dict[str, float]) -> None:
        shown = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin", "tokens_per_s": "tok/s"}
        given = {short: values[key] for key, short in shown.items() if key in values}
        note = "  ".join(
            f"{name} {one:,.0f}" if abs(one) >= 1000 else f"{name} {one:.4g}" for name, one in given.items()
        )
        if self.bars is not None:
            self.bars.update(self.task, completed=step, note=note)
        elif self.show:
            took = (self.clock() - self.began) / max(step - self.before, 1)
            left = f", about {lasting(took * (self.total - step))} left" if step < self.total else ""
            self.say(f"step {step}/{self.total}{left}  {note}")

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
