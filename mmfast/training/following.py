"""What a user sees of a run: the bar, warnings, report.html kept up to date, and what is said at its end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmfast.job.checkpoint_files import complete
from mmfast.progress import Steps, lasting
from mmfast.training.collapse import Sign, Watch
from mmfast.training.report import report

EVERY, SHARE = 60.0, 0.01  # seconds between two pages; the share of a run's time that they may take


class Following:
    """Of rank 0 (`main`); the others' says nothing. `show`: progress too. `began`: when the start began, on `clock`."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        total: int,
        done: int,
        *,
        main: bool,
        show: bool,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.main, self.clock = folder, main, clock
        self.total, self.done, self.began, self.due = total, done, began, clock() + EVERY
        self.watch = Watch(settings, folder if main else None)
        self.steps = Steps(total, done, show=main and show)
        self.broken = ""

    def say(self, line: str) -> None:
        if self.main and line:
            self.steps.say(line)

    def part(self, name: str) -> Callable[..., None]:
        """Work between two steps, shown while it goes on."""
        return self.steps.part(name, fleeting=True)

    def row(self, step: int, values: dict[str, float]) -> None:
        """After a row of metrics was written: the bar, what was measured, new signs, the page where it is due."""
        if not self.main:
            return
        if "loss" in values:
            self.steps.update(step, values)
        measured = {"held out": numbers(values, "eval/"), **benchmarks(values)}
        for name, text in measured.items():
            self.say(f"step {step}, {name}: {text}" if text else "")
        self._warn(self.watch.look({"step": step, **values}))
        self._keep_page()

    def sampled(self, step: int, samples: list[dict[str, Any]]) -> None:
        if self.main:
            self._warn(self.watch.look_at_samples(step, samples))

    def _warn(self, signs: list[Sign]) -> None:
        for sign in signs:
            self.say(f"warning: step {sign.step}: {sign.text}")

    def _keep_page(self) -> None:
        """At most once a minute, and less often where a page takes long; that it fails is told once."""
        before = self.clock()
        if before < self.due:
            return
        try:
            report([self.folder], live=True)
        except Exception as error:  # a full disk, a package: a page must not end a run
            problem = f"warning: report.html is not written: {type(error).__name__}: {error}".split("\n")[0]
            if problem != self.broken:
                self.say(problem)
            self.broken = problem
        after = self.clock()
        self.due = after + max(EVERY, (after - before) / SHARE)

    def close(self) -> None:
        self.steps.close()

    def end(self, values: dict[str, float]) -> None:
        """The last words of a run that is finished: how it went, where everything is, what to do next."""
        steps = self.total - self.done
        self.say(f"finished: step {self.total}, {steps} of them in this start, {lasting(self.clock() - self.began)}")
        exported = sorted((self.folder / "export").glob("[!.]*"))
        checkpoints = complete(self.folder / "checkpoints")
        told = {
            "training": numbers(values, ""),
            "held out": numbers(values, "eval/"),
            **benchmarks(values),
            "warnings": ", ".join(f"{sign.name} (step {sign.step})" for sign in self.watch.signs),
            "exported": ", ".join(map(str, exported)),
            "checkpoint": str(checkpoints[-1]) if checkpoints else "",
            "report": str(self.folder / "report.html"),
            "next": following_command(self.folder, exported),
        }
        for name, text in told.items():
            self.say(f"  {name:<11}{text}" if text else "")


def numbers(values: dict[str, float], prefix: str) -> str:
    """The metrics that one looks at first, of the training ("") or of an evaluation ("eval/")."""
    shown = {
        "loss": "loss",
        "nll": "nll",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
    }
    there = {name: values[prefix + key] for key, name in shown.items() if prefix + key in values}
    return ", ".join(f"{name} {value:.4g}" for name, value in there.items())


def benchmarks(values: dict[str, float]) -> dict[str, str]:
    """The first three metrics of each benchmark (eval/NAME.METRIC), as they were measured last."""
    found: dict[str, list[str]] = {}
    for key, value in values.items():
        bench, dot, metric = key.removeprefix("eval/").partition(".")
        if key.startswith("eval/") and dot:
            found.setdefault(bench, []).append(f"{metric} {value:.4g}")
    return {bench: ", ".join(metrics[:3]) for bench, metrics in found.items()}


def following_command(folder: Path, exported: list[Path]) -> str:
    """What one would do next with what was exported."""
    names, run = {path.name: path for path in exported}, shlex.quote(str(folder))
    if "hf" in names:
        return f"mmfast eval {shlex.quote(str(names['hf']))} --bench NAME --data DIR --out {run}/benchmarks"
    if "peft" in names:
        return f"mmfast merge {shlex.quote(str(names['peft']))} {run}/merged"
    return "" if exported else f"mmfast export {run}"
