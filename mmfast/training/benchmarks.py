"""Benchmarks inside a run: the model that trains answers their questions in its own process, and what it answered and
scored lies in output_dir/eval/step-N/NAME (mmfast/evals). DGPref's gen_start and gen_step are `start` and `every`.

What a judge has to score is answered and not scored: a run must not wait for somebody else's service, nor end with it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmfast.data.settings import DataSettings
from mmfast.engines.base import Picture, canonical
from mmfast.engines.local import Local
from mmfast.evals.answering import ANSWERS, Asking, answer, asking
from mmfast.evals.base import JudgeNeeded
from mmfast.evals.best import RESULT, Best, lowest_is_best
from mmfast.evals.scoring import metric_names, score
from mmfast.evals.tables import write_result
from mmfast.job.checkpoint_files import complete, number
from mmfast.job.opening import Model
from mmfast.job.runfolder import EVALUATED
from mmfast.job.runtime import Runtime


class Benchmarks:
    """[evaluate] of a run. Everything that can be refused is refused when it is made: before a model is opened."""

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        *,
        bench: Sequence[str],
        data: str,
        images: str = "",
        every: int = 0,
        start: int = 0,
        limit: float = 0,
        best: str = "",
        margin: bool = True,
    ) -> None:
        self.runtime, self.folder, self.every, self.start, self.home = runtime, folder, every, start, data
        self.images, self.asked, problem = images, list[Asking](), ""
        self.judged: set[str] = set()  # answered alone
        try:
            for name in bench:
                self.asked.append(asking(name, data, images=images, limit=limit))
                self._check(self.asked[-1], best, margin)
        except (ValueError, OSError) as error:
            problem = f"[evaluate] {error}"
        runtime.agree(problem)
        self.named = best
        self.best = Best(folder / EVALUATED, best) if best and margin else None
        whole = [one.made_by() | {"limit": one.limit} for one in self.asked]
        self.digest = hashlib.sha256(canonical(whole).encode()).hexdigest()[:24]

    def _check(self, asked: Asking, best: str, margin: bool) -> None:
        """Raises where it cannot be scored in a run, or not chosen by: a file, an image or a metric is missing."""
        bench, (chosen, _, metric) = asked.bench, best.partition(".")
        pictures = [p for q in asked.questions for p in q.images if p.content is None]
        if missing := {p.source for p in pictures if not Path(p.source).is_file()}:
            raise ValueError(
                f"images: {len(missing)} of {bench.name}'s images are not there (the first: {min(missing)})"
            )
        try:
            names, plain = metric_names(bench, list(asked.questions), asked.data)
        except JudgeNeeded as error:
            if chosen == bench.name:
                raise ValueError(f"best = {best!r} is not measured in the run: {error}") from None
            self.judged.add(bench.name)
            return
        if chosen != bench.name:
            return
        if metric not in (*names, *plain):
            raise ValueError(f"best = {best!r} is not measured; {bench.name} has {', '.join([*names, *plain])}")
        if margin and metric in plain:
            raise ValueError(f"best = {best!r} has no interval: set margin = false, or take one of {', '.join(names)}")
        if margin and len({q.unit for q in asked.questions}) == 1:
            raise ValueError(f"best = {best!r}: questions about one image have no interval: raise limit")

    def images_asked(self) -> dict[str, tuple[str, Callable[[], bytes]]]:
        """Each image that is asked about, by the id that a store would give it: its file, and what gives its bytes."""
        shown = {p.source: p for one in self.asked for q in one.questions for p in q.images}
        return {Picture(p.source, p.content).id: (p.source, partial(_bytes, p)) for p in shown.values()}

    def choice(self) -> dict[str, Any]:
        """By what the Checkpointer keeps the best; nothing where no benchmark decides."""
        if not self.named:
            return {}
        lowest = lowest_is_best(self.named)
        return {"best_metric": f"eval/{self.named}", "lowest": lowest, "best_step": self.best_step}

    def begin(self, last: int) -> None:
        """Finds the best up to the step `last`, on rank 0, once what lies beyond it is set aside."""
        if self.best:
            self.best.look(last, {number(path) for path in complete(self.folder / "checkpoints")})

    def best_step(self) -> int | None:
        """The best's step, 0 before the first; None where no margin decides. Rank 0 alone knows it."""
        return self.best.step if self.best else None

    def due(self, step: int, total: int) -> bool:
        """After the last step, and every so many from `start` on."""
        return step == total or bool(self.every and step >= self.start and step % self.every == 0)

    def run(
        self, step: int, path: str, policy: Model, data: DataSettings, say: Callable[[str], None]
    ) -> dict[str, float]:
        """The metrics of every benchmark, named eval/NAME.METRIC: on every rank, which all call it."""
        features = None if policy.scorer.tower_loaded else policy.load_images
        pixels = {"min_pixels": data.min_pixels, "max_pixels": data.max_pixels}
        reads: dict[str, Any] = {"template": data.template, "aspect": data.aspect, **pixels, "features": features}
        engine = Local(path, scorer=policy.scorer, runtime=self.runtime, **reads)
        measured: dict[str, float] = {}
        for one in self.asked:
            # An earlier start may have been killed here: what it answered is answered again, by these weights
            out = self.folder / EVALUATED / f"step-{step}" / one.bench.name
            self.runtime.from_main(lambda out=out: shutil.rmtree(out, ignore_errors=True))  # type: ignore[misc]
            tally = answer(one, out, engine, self.runtime, show=False)
            if tally.failed:
                say(f"warning: {one.bench.name} at step {step} is not scored: {tally.lines()[1]} ({out})")
                continue
            if one.bench.name in self.judged:
                say(f"{one.bench.name} at step {step} is answered; to be scored by a judge: mmfast eval score {out}")
                continue
            scored = self.runtime.from_main(lambda one=one, out=out: self._scored(one, out, step))  # type: ignore[misc]
            measured |= scored[0]
            say(scored[1])
        return measured

    def _scored(self, one: Asking, out: Path, step: int) -> tuple[dict[str, float], str]:
        """The metrics, and what is to be said of them."""
        result = score(one.bench, out / ANSWERS, data=self.home, images=self.images)
        write_result(out / RESULT, result)
        measured = {f"eval/{one.bench.name}.{name}": value for name, value in result.metrics.items()}
        if self.best is None or self.best.bench != one.bench.name:
            return measured, ""
        lead = self.best.take(step, result)
        measured |= {"best/step": float(self.best.step)} | (lead.told() if lead else {})
        return measured, f"{self.best.told(step, result.metrics[self.best.metric], lead)} ({result.notes[0]})"


def _bytes(picture: Picture) -> bytes:
    """They are not held."""
    return Picture(picture.source, picture.content).data
