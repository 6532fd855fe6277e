"""The loop: torchrun -m mmfast.train CONFIG [section.key=value ...].

Read it from `train` down. Between two log steps nothing waits for the device.
"""

from __future__ import annotations

from mmfast.extras import check_training_packages

if __name__ == "__main__":
    check_training_packages()  # before the imports below need them

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmfast import checkpoint
from mmfast.checkpoint import Checkpointer
from mmfast.config import Config, load
from mmfast.evaluation import Evaluation
from mmfast.export import export_run
from mmfast.job import (
    LoadImages,
    examples_of,
    flops_per_token,
    make_loader,
    make_plan,
    open_examples,
    open_model,
    run_folder,
    total_steps,
)
from mmfast.metrics import Metrics, Progress, check_trackers, cut_back
from mmfast.models.scorer import projector_parameters
from mmfast.objectives import objective_of
from mmfast.optim import build_optimizer, check_optimizer, clip_gradients, guarded_step, rate_at, set_rate
from mmfast.packing import Pack, StepPlan
from mmfast.reference import check_first_loss, filled_cache, keys_of, rescore
from mmfast.reference_model import LiveReference
from mmfast.report import report
from mmfast.runtime import Memory, Runtime, reseed, start
from mmfast.window import Window


def train(config: Config) -> dict[str, float]:
    """Train as `config` says; returns the last value of each metric. The run's files lie in config.output_dir."""
    check_trackers(list(config.log.trackers))
    check_optimizer(config.optim)
    objective_of(config).check()
    runtime = start(config)
    try:
        run = Run(config, runtime)
        run.loop()
        return run.last
    except torch.OutOfMemoryError as error:
        raise RuntimeError(out_of_memory(config, runtime, error)) from error
    finally:
        runtime.close()


def out_of_memory(config: Config, runtime: Runtime, error: BaseException) -> str:
    """What the plan expected of a rank, by part, and the settings that would help."""
    from mmfast.planning import plan

    memory = asdict(plan(config, ranks=runtime.world, device=runtime.device.type).memory)
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in memory.items() if size)
    return (
        f"out of memory: {error}\nThe plan expects of a rank, in GiB: {parts}\nWhat would help, in this order: "
        f"train.tokens_per_pack = {config.train.tokens_per_pack // 2} (it changes no result); "
        'parallel.activation_checkpointing = true; parallel.shard = "full" over more GPUs, [model.lora] or '
        "parallel.offload = true"
    )


class Run:
    """One run in one process: everything is made here, in order; `loop` uses it."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.last: dict[str, float] = {}
        memory = Memory(runtime.device)
        self.folder = run_folder(config, runtime)
        self.store = open_examples(config, runtime)
        held_out = open_examples(config, runtime, config.data.eval_path) if config.data.eval_path else None
        self.examples = examples_of(config, self.store)
        stores = [self.store, *([held_out] if held_out else [])]
        self.scorer, load_images = open_model(config, runtime, stores)
        self.plan = make_plan(config, self.examples, self.store.images, self.scorer)
        self.total = total_steps(config, self.plan)
        pairs = config.objective.kind == "dpo"
        self.objective = objective_of(config)
        self._check_whole_steps()
        resume = checkpoint.find(self.folder / "checkpoints", config.train.resume)
        values, self.digest, self.live = None, "", None
        if pairs and config.reference.kind == "cached":
            values = self._read_reference(stores, load_images, fresh=resume is None)
        elif pairs and config.reference.kind == "adapter-off":
            self.live = LiveReference(self.scorer)
        self.loader = make_loader(
            config, runtime, self.plan, self.examples, self.store, self.scorer, load_images, values
        )
        self.evaluation = (
            Evaluation(config, runtime, held_out, self.scorer, load_images, self.objective, values, self.live)
            if held_out
            else None
        )
        self.named = checkpoint.trainable(self.scorer)
        model, adapter = self.scorer.model, self.scorer.adapter
        vision = {id(p) for tower in adapter.vision(model) for p in tower.parameters()}
        projector = {id(p) for p in projector_parameters(adapter, model)}
        self.optimizer = build_optimizer(config.optim, self.named, projector, vision)
        self.saver = Checkpointer(
            self.folder / "checkpoints", keep_last=config.train.keep_last, best_metric=config.train.best_metric
        )
        self.window = Window(
            runtime,
            memory,
            self.objective,
            steps_per_epoch=self.plan.steps_per_epoch,
            flops_per_token=flops_per_token(self.scorer),
        )
        self.step = 0
        if resume is not None:
            self._resume(resume)
        elif runtime.main:
            cut_back(self.folder, 0)
        self.metrics = self._open_metrics() if runtime.main else None
        self.progress = Progress(self.total, self.step, show=runtime.main and config.log.progress)

    def loop(self) -> None:
        config, runtime, every = self.config, self.runtime, self.config.train
        if self.step == 0 and self.objective.reference and not config.reference.model:
            self._say(check_first_loss(config, runtime, self.scorer, self.objective, self.loader, self.live))
        runtime.watch_signals()
        self.scorer.train()
        stopped = False
        for step, planned, packs in self._steps():
            self._train_step(step, planned, packs)
            self.step, last = step, step == self.total
            if step % config.log.every == 0 or last:
                self._log()
            found: dict[str, float] = {}
            if self.evaluation is not None and (last or (every.eval_every and step % every.eval_every == 0)):
                found = self._evaluate()
            stopped = not last and runtime.should_stop()
            due = every.checkpoint_every and step % every.checkpoint_every == 0
            if last or stopped or due or self._is_best(found):
                self._save(found, wait=last or stopped)
            if stopped:
                break
        self.saver.finish()
        self.progress.close()
        if stopped:
            self._say(f"asked to stop: the checkpoint of step {self.step} is written; start again to go on")
        else:
            export_run(config, runtime, self.scorer, self.folder, self.last, self.store.digest)
        if self.metrics:
            self.metrics.close()
            report([self.folder])

    def _steps(self) -> Iterator[tuple[int, StepPlan, Iterator[Pack]]]:
        """(number from 1, plan, this rank's packs) of each step that is left."""
        loaded = self.loader.run(self.step, self.total)

        def rest(first: Any) -> Iterator[Pack]:
            yield first.pack
            for _ in range(first.step.micro_batches - 1):
                with self.window.waiting():
                    pack = next(loaded).pack
                yield pack

        for step in range(self.step + 1, self.total + 1):
            with self.window.waiting():
                first = next(loaded)
            yield step, first.step, rest(first)

    def _train_step(self, step: int, planned: StepPlan, packs: Iterator[Pack]) -> None:
        total = torch.zeros((), dtype=torch.float32, device=self.runtime.device)
        for number, pack in enumerate(packs):
            reseed(self.config.seed, step, number, self.runtime.rank)
            if self.live is not None:
                self.live.fill(pack)
            loss, sums = self.objective(self.scorer(pack), pack)
            loss.backward()
            total += loss.detach()
            self.window.sums += sums
        if self.runtime.world > 1:
            dist.all_reduce(total)
        share = rate_at(self.config.optim, step, self.total)
        set_rate(self.optimizer, share)
        norm = clip_gradients(self.named.values(), self.config.optim.clip)
        bad = guarded_step(self.optimizer, norm, total)
        self.optimizer.zero_grad(set_to_none=True)
        self.window.took(step, planned, norm, bad, share * self.config.optim.lr)

    def _log(self) -> None:
        values = self.window.close(self.step)
        self.last.update(values)
        if self.metrics:
            self.metrics.log(self.step, values)
        self.progress.update(self.step, values)
        for step, planned, streak in self.window.skipped:
            ids = [self.examples[i].id for i in planned.examples.tolist()]
            some = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
            self._say(f"step {step} turned non-finite and was skipped; its samples: {some}")
            if streak >= self.config.train.nonfinite_limit:
                raise RuntimeError(
                    f"{streak} steps in a row turned non-finite (train.nonfinite_limit), the last with samples {some}: "
                    "lower optim.lr or objective.beta, or look at these samples"
                )
        self.window.skipped.clear()
        self.saver.poll()

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluation is not None
        with self.window.paused_for():
            found = self.evaluation.run()
            samples = self.evaluation.samples()
        self.last.update(found)
        if self.metrics:
            self.metrics.log(self.step, found)
            self.evaluation.write(samples, self.step, self.folder)
        return found

    def _is_best(self, found: dict[str, float]) -> bool:
        name = self.config.train.best_metric
        if not name or not found:
            return False
        if name not in found:
            raise ValueError(f"train.best_metric: {name!r} is not measured; these are: {', '.join(sorted(found))}")
        self.saver.finish()  # so that every rank sees the same checkpoints
        best = checkpoint.best_value(self.folder / "checkpoints", name)
        return bool(self.runtime.gather(best is None or checkpoint.better(name, found[name], best))[0])

    # checkpoints

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        t = self.config.train
        return {
            "data": self.store.digest,
            "examples": len(self.examples),
            "reference": self.digest,
            "seed": self.config.seed,
            "pairs_per_step": t.pairs_per_step,
            "shuffle": t.shuffle,
            "drop_last": t.drop_last,
            "objective": self.config.objective.kind,
            "steps": self.total,
        }

    def _save(self, found: dict[str, float], *, wait: bool) -> None:
        with self.window.paused_for():
            info = {
                "identity": self._identity(),
                "metrics": found,
                "window": self.window.state(),
                "world": self.runtime.world,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            state = checkpoint.training_state(self.scorer, self.optimizer)
            self.saver.save(self.step, state, info, wait=wait)

    def _resume(self, path: Path) -> None:
        info = checkpoint.read_info(path)
        for name, value in self._identity().items():
            if info["identity"].get(name) != value:
                raise ValueError(
                    f"cannot resume from {path}: {name} was {info['identity'].get(name)!r} and is {value!r} now; "
                    "put it back, or start anew in another output_dir"
                )
        checkpoint.materialise(self.optimizer)
        self.saver.load(path, checkpoint.training_state(self.scorer, self.optimizer))
        self.step = info["step"]
        self.window.restore(info["window"])
        self._say(f"resumed from {path}")
        for name, now in (("world", self.runtime.world), ("threads", torch.get_num_threads())):
            if now != info[name]:
                self._say(f"{name} was {info[name]} and is {now}: numbers agree to rounding, not to the bit")
        if self.runtime.main:
            cut_back(self.folder, self.step)

    # before the first step

    def _read_reference(self, stores: list[Any], load_images: LoadImages, *, fresh: bool) -> dict[str, Any]:
        config = self.config
        named, model = config.reference.model, (self.scorer, load_images)
        if named:
            model = open_model(config, self.runtime, stores, path=named, train=False)
        cache, scored = filled_cache(config, self.runtime, stores, model)
        keys = [key for store in stores for pair in keys_of(store) for key in pair]
        self.digest = cache.digest(keys)
        if fresh and not scored and not named:
            worst = rescore(config, self.runtime, self.store, model, cache)
            self._say(f"reference: {config.reference.check} cached rows scored again, off by {worst:.2g} nat at most")
        return cache.values

    def _check_whole_steps(self) -> None:
        if (
            self.objective.whole_step
            and self.plan.step(0, 0, self.runtime.world).micro_batches * self.runtime.world > 1
        ):
            raise ValueError(
                "aot sorts over the whole step, which must be one pack on one rank: raise train.tokens_per_pack, lower "
                "train.pairs_per_step, run one process"
            )

    def _open_metrics(self) -> Metrics:
        log = self.config.log
        settings = self.config.model_dump()
        return Metrics(self.folder, trackers=log.trackers, project=log.project, name=log.name, settings=settings)

    def _say(self, text: str) -> None:
        if self.runtime.main and text:
            print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """torchrun -m mmfast.train CONFIG.toml [section.key=value ...]"""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(main.__doc__)
        raise SystemExit(0 if given else 2)
    path, overrides = ("", given) if "=" in given[0] else (given[0], given[1:])
    try:
        train(load(path, overrides))
    except (ValueError, RuntimeError) as error:
        if not str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
