"""Benchmarks inside a run: the model that trains answers their questions in its own process, and what it answered and
scored lies in output_dir/eval/step-N/NAME (mmfast/evals). DGPref's gen_start and gen_step are `start` and `every`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mmfast.data.settings import DataSettings
from mmfast.engines.base import canonical
from mmfast.engines.local import Local
from mmfast.evals.answering import ANSWERS, Asking, answer, asking
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.scoring import metric_names, score
from mmfast.evals.tables import write_result
from mmfast.job.runfolder import EVALUATED
from mmfast.job.runtime import Runtime
from mmfast.models.scorer import Scorer

RESULT = "result.json"


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
        limit: int = 0,
        best: str = "",
    ) -> None:
        self.runtime, self.folder, self.every, self.start, self.home = runtime, folder, every, start, data
        self.images, self.asked, problem = images, list[Asking](), ""
        try:
            for name in bench:
                self.asked.append(asking(name, data, images=images, limit=limit))
                names = _check(self.asked[-1])
                if best.partition(".")[0] == name and best.partition(".")[2] not in names:
                    raise ValueError(f"best = {best!r} is not measured; {name} has {', '.join(names)}")
        except (ValueError, OSError) as error:
            problem = f"[evaluate] {error}"
        runtime.agree(problem)
        whole = [one.made_by() | {"limit": one.limit} for one in self.asked]
        self.digest = hashlib.sha256(canonical(whole).encode()).hexdigest()[:24]

    def due(self, step: int, total: int) -> bool:
        """After the last step, and every so many from `start` on."""
        return step == total or bool(self.every and step >= self.start and step % self.every == 0)

    def run(
        self, step: int, model: str, scorer: Scorer, data: DataSettings, say: Callable[[str], None]
    ) -> dict[str, float]:
        """The metrics of every benchmark, named eval/NAME.METRIC: on every rank, which all call it."""
        pixels = {"min_pixels": data.min_pixels, "max_pixels": data.max_pixels}
        reads = {"template": data.template, "aspect": data.aspect, **pixels}
        engine = Local(model, scorer=scorer, runtime=self.runtime, **reads)  # type: ignore[arg-type]
        measured: dict[str, float] = {}
        for one in self.asked:
            # An earlier start may have been killed here: what it answered is answered again, by these weights
            out = self.folder / EVALUATED / f"step-{step}" / one.bench.name
            self.runtime.from_main(lambda out=out: shutil.rmtree(out, ignore_errors=True))  # type: ignore[misc]
            tally = answer(one, out, engine, self.runtime, show=False)
            if tally.failed:
                say(f"warning: {one.bench.name} at step {step} is not scored: {tally.lines()[1]} ({out})")
                continue
            measured |= self.runtime.from_main(lambda one=one, out=out: self._scored(one, out))  # type: ignore[misc]
        return measured

    def _scored(self, one: Asking, out: Path) -> dict[str, float]:
        result = score(one.bench, out / ANSWERS, data=self.home, images=self.images)
        write_result(out / RESULT, result)
        return {f"eval/{one.bench.name}.{name}": value for name, value in result.metrics.items()}


def _check(asked: Asking) -> list[str]:
    """What it measures; raises where it cannot be scored in a run: a judge, a file or an image is missing."""
    bench = asked.bench
    missing = {
        p.source for q in asked.questions for p in q.images if p.content is None and not Path(p.source).is_file()
    }
    if missing:
        raise ValueError(f"images: {len(missing)} of {bench.name}'s images are not there (the first: {min(missing)})")
    return metric_names(bench, list(asked.questions), asked.data)


def lowest_is_best(best: str) -> bool:
    """Whether the smallest value of a benchmark's metric ("chair.chair_s") is the best."""
    name, _, metric = best.partition(".")
    return metric in bench_of(name).less_is_better
