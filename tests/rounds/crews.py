"""Crews for tests: one that only leaves what a command would leave, one that runs commands inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from mmfast.rounds.launch import Failed, reason


class Pretend:
    """Leaves the files of a command, and keeps a list of what was run. `before`: called with the number of commands so
    far, to end the world there."""

    main = True

    def __init__(self, before: Callable[[int, Path], None] = lambda number, made: None) -> None:
        self.ran: list[str] = []
        self.before = before
        self.quality: dict[str, float] = {}  # of a model's directory: the share of captions that invent something

    def run(self, command: Sequence[str], log: Path, *, wide: bool, follow: Callable[[str], None]) -> None:
        made = Path(command[1]).parent / "run" if command[0] == "train" else Path(command[command.index("--out") + 1])
        self.before(len(self.ran), made)
        self.say(log, "what it said\n")
        home = made.parent.name
        self.ran.append(f"{home}/{log.stem}")
        if command[0] == "train":
            (made / "export" / "hf").mkdir(parents=True, exist_ok=True)
            (made / "finished.json").write_text("{}")
        elif command[0] == "data":
            made.write_text(json.dumps({"prompt": "What?", "chosen": command[2], "rejected": "no"}) + "\n")
        elif command[0] == "eval":
            self.judge(made, self.quality.get(home, 0.5))
        else:
            made.mkdir(parents=True, exist_ok=True)
            (made / "manifest.json").write_text(json.dumps({"complete": True}))

    @staticmethod
    def say(log: Path, text: str) -> None:
        with log.open("a") as file:  # behind what earlier starts said
            file.write(text)

    @staticmethod
    def judge(folder: Path, share: float, questions: int = 60) -> None:
        """A result of the benchmark world in which this share of the captions invents an object."""
        from mmfast.evals.base import Mark, Result
        from mmfast.evals.benches import bench
        from mmfast.evals.intervals import intervals, totals
        from mmfast.evals.tables import write_result
        from mmfast.evals.world import TALLY

        rng = np.random.default_rng(0)
        invents = rng.permutation(questions) < round(share * questions)
        ones = dict.fromkeys(TALLY, 1.0)
        marks = [
            Mark(id=str(n), unit=str(n), sums=ones | {"inventive": float(bad), "absent": float(bad)})
            for n, bad in enumerate(invents)
        ]
        metrics = lambda sums: bench("world").metrics(sums, "official")  # noqa: E731
        result = Result(
            bench="world", flavour="official", metrics=metrics(totals(marks)), intervals=intervals(marks, metrics),
            marks=marks, counts={}, notes=[], made_by={"data": {}, "weights": folder.parent.name},
        )  # fmt: skip
        write_result(folder / "world" / "result.json", result)
        (folder / "world" / "answers.jsonl").write_text("{}\n" + json.dumps({"id": "0", "text": "a square"}) + "\n")


class Inside:
    """Runs every command in this process."""

    main = True

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, command: Sequence[str], log: Path, *, wide: bool, follow: Callable[[str], None]) -> None:
        from mmfast.cli.app import app

        ended = CliRunner().invoke(app, list(command))
        text = ended.output + (f"mmfast: {ended.exception}\n" if isinstance(ended.exception, ValueError) else "")
        log.write_text(text)
        self.ran.append(f"{log.parents[1].name}/{log.stem}")
        if ended.exit_code:
            raise Failed(reason(text))
