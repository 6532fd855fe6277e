"""The loop: torchrun -m mmfast.train CONFIG [section.key=value ...].

Read it from `train` down. Between two log steps nothing waits for the device.
"""

from __future__ import annotations

from mmfast.packages import check_training_packages

if __name__ == "__main__":
    check_training_packages()  # before the imports below need them

import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from mmfast.config import Config, dump, load
from mmfast.job.opening import Job
from mmfast.job.passes import Pass
from mmfast.job.runfolder import begin, write_finished, write_stopped
from mmfast.job.runtime import Memory, Stopped, Unable, reseed, start, task_number
from mmfast.models.estimate import flops_per_token
from mmfast.models.scorer import projector_parameters
from mmfast.packing import Pack, StepPlan
from mmfast.reference.live import LiveReference
from mmfast.reference.scoring import filled_cache, reference_model, rescore
from mmfast.training import checkpoint
from mmfast.training.benchmarks import Benchmarks
from mmfast.training.evaluation import Evaluation
from mmfast.training.export import check_export, export_run
from mmfast.training.first_step import check_first_loss
from mmfast.training.following import Following
from mmfast.training.forecast import out_of_memory, write_expected
from mmfast.training.metrics import Metrics, check_trackers
from mmfast.training.objective import Objective, objective_of
from mmfast.training.optim import build_optimizer, check_optimizer, clip_gradients, guarded_step, rate_at, set_rate
from mmfast.training.preflight import check_length, check_segments, check_whole_steps, length
from mmfast.training.report import report
from mmfast.training.resume import Start, check_identity, choose, identity_of
from mmfast.training.window import Window


def train(config: Config, objective: Objective | None = None) -> dict[str, float]:
    """Train as `config` says; returns the last value of each metric. The run's files lie in config.output_dir.

    `objective`: one of your own, in place of the [objective] section's (training/objective.py).
    """
    check_trackers(config.log.trackers)
    check_optimizer(config.optim)
    objective = objective or objective_of(config)
    runtime, run = start(config), None
    try:
        job = Job(config, runtime)
        check_export(job)
        run = Run(job, objective)
        run.loop()
        if run.stopped:
            raise Stopped
        return run.last
    except torch.OutOfMemoryError as error:
        raise runtime.marked(Unable(out_of_memory(job, error))) from error
    except (ValueError, RuntimeError) as error:
        raise runtime.marked(error)  # noqa: B904 (it is the same one)
    finally:
        if run and run.following:
            run.following.close()
        runtime.close()


class Run:
    """One run in one process: everything is made here, in order, and nothing in output_dir changes; `loop` uses it."""

    def __init__(self, job: Job, objective: Objective) -> None:
        # Who may be here, and from where the run goes on
        config, runtime = job.config, job.runtime
        self.config, self.job, self.runtime, self.objective = config, job, runtime, objective
        self.last: dict[str, float] = {}
        self.identity: dict[str, Any] = {}
        self.stopped, self.digest = False, ""
        self.began, self.following = time.monotonic(), cast(Following, None)  # `_begin` makes it
        self.folder = job.folder
        runtime.hold(self.folder)
        memory = Memory(runtime.device)
        judged, chosen = config.evaluate, dict[str, Any](best_metric=config.train.best_metric)
        self.benchmarks = Benchmarks(runtime, self.folder, **judged.model_dump()) if judged.bench else None
        if self.benchmarks:
            job.more_images = self.benchmarks.images_asked
            chosen |= self.benchmarks.choice()
        job.pin()
        keep, settings = config.train.keep_last, dump(config)
        self.saver = checkpoint.Checkpointer(self.folder / "checkpoints", keep_last=keep, settings=settings, **chosen)
        self.start = choose(job, self.saver, self._identify, self._say)
        self.step = self.start.info["step"] if self.start else 0
        if self.start:
            self.last.update(self.start.info["last"] | self.start.info["metrics"])
        self.finished = self.start is not None and self.start.finished
        if self.finished:
            return
        # Data, policy, plan
        self._identify()
        check_length(job, runtime.world)
        check_segments(job)
        self.scorer = job.policy.scorer
        self.training = Pass(job, job.store, job.policy)
        self.steps_per_epoch = self.training.plan.steps_per_epoch
        self.total = config.train.total_steps(self.steps_per_epoch)
        check_whole_steps(job, self.training.plan)
        # Reference
        self.live = None
        if objective.reads_reference and config.reference.kind == "cached":
            self.training.reference = self._read_reference()
        elif objective.reads_reference:
            self.live = LiveReference(self.scorer)
        # Evaluation, optimiser, metrics
        self.evaluation = None
        if job.held_out:
            self.evaluation = Evaluation(
                job,
                job.held_out,
                job.policy,
                objective,
                config.train,
                values=self.training.reference,
                live=self.live,
            )
        self.named = checkpoint.trainable(self.scorer)
        model, adapter = self.scorer.model, self.scorer.adapter
        vision = {id(p) for tower in adapter.vision(model) for p in tower.parameters()}
        projector = {id(p) for p in projector_parameters(adapter, model)}
        self.optimizer = build_optimizer(config.optim, self.named, projector, vision)
        self.window = Window(
            runtime,
            memory,
            objective,
            steps_per_epoch=self.steps_per_epoch,
            flops_per_token=flops_per_token(self.scorer),
        )
        if self.start:
            self._restore(self.start)

    def _identify(self) -> dict[str, Any]:
        """Opens the data. Returns what a checkpoint is compared by beside its settings; called again, the same."""
        if not self.identity:
            held_out = self.job.held_out
            self.saver.judged_on = held_out.digest if held_out else ""
            if self.benchmarks and self.config.evaluate.best:
                self.saver.judged_on = self.benchmarks.digest
            self.identity = identity_of(self.job) | {"objective": type(self.objective).__qualname__}
        return self.identity

    def loop(self) -> None:
        config, every = self.config, self.config.train
        if self.finished:
            self._say(
                f"finished at step {self.step}; nothing to do: larger train.steps or epochs go on from here, "
                'train.resume = "never" starts anew'
            )
            return
        if self.step == 0 and self.objective.reads_reference and not config.reference.model:
            self._say(check_first_loss(self.job, self.scorer, self.objective, self.training, self.live))
        self._begin()
        self.runtime.watch_signals()
        self.scorer.train()
        if self.step == 0:
            self._look()  # the later ones are compared with these
        if self.start and not self.start.evaluated and any(self._due()):
            self._evaluate(saved=True)  # what a kill came before
        for planned, micro_batch, pack in self.window.timed(self.training.run(self.step, self.total)):
            self._backward(pack, micro_batch)
            if micro_batch < planned.micro_batches - 1:
                continue
            # That was the step's last pack: update, log, save, evaluate
            self.step += 1
            self._update(planned)
            last = self.step == self.total
            if self.step % config.log.every == 0 or last:
                self._log()
            self.stopped = not last and self.runtime.should_stop()
            due = every.checkpoint_every and self.step % every.checkpoint_every == 0
            saved = bool(last or self.stopped or due)
            if saved:
                self._save({}, wait=last or self.stopped)
            if self.stopped:
                break  # an evaluation that is due is made by the next start
            if any(self._due()):
                self._evaluate(saved=saved)
        self.saver.finish()
        self._end()

    def _backward(self, pack: Pack, micro_batch: int) -> None:
        """Adds a pack's share to the step's loss and gradient."""
        if micro_batch == 0:
            self.loss = torch.zeros((), dtype=torch.float32, device=self.runtime.device)
        reseed(self.config.seed, self.step + 1, micro_batch, self.runtime.rank)
        if self.live is not None:
            self.live.fill(pack)
        loss, sums = self.objective(self.scorer(pack), pack)
        loss.backward()
        self.loss += loss.detach()
        self.window.sums += sums

    def _update(self, planned: StepPlan) -> None:
        """One optimiser step, skipped where loss or gradient is not finite."""
        if self.runtime.world > 1:
            dist.all_reduce(self.loss)
        share = rate_at(self.config.optim, self.step, self.total)
        set_rate(self.optimizer, share)
        norm = clip_gradients(self.named.values(), self.config.optim.clip)
        bad = guarded_step(self.optimizer, norm, self.loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.window.took(self.step, planned, norm, bad, share * self.config.optim.lr)

    def _begin(self) -> None:
        """From here on output_dir changes."""
        config, runtime, start = self.config, self.runtime, self.start

        def begin_here() -> Path | None:
            try:
                aside = begin(
                    self.folder,
                    self.step,
                    dump(config),
                    resume=config.train.resume,
                    source=start.path if start else None,
                    evaluated=start.evaluated if start else False,
                )
                self.saver.begin()
            except OSError as error:
                raise ValueError(f"output_dir: cannot write to {self.folder}: {error.strerror}") from None
            return aside

        if aside := runtime.from_main(begin_here):
            self._say(f"what lay beyond step {self.step} is set aside in {aside}")
        self.metrics = self._open_metrics() if runtime.main else None
        if self.benchmarks and runtime.main:
            self.benchmarks.begin(self.step if start and start.evaluated else self.step - 1)
        how: dict[str, Any] = {"main": runtime.main, "show": config.log.progress, "began": self.began}
        self.following = Following(self.folder, config.model_dump(), self.total, self.step, **how)
        self._say(length(self.job, self.steps_per_epoch, self.total))

    def _end(self) -> None:
        config, runtime = self.config, self.runtime
        self.following.close()
        if self.stopped:
            by = runtime.asked_by()
            if runtime.main:
                write_stopped(self.folder, self.step, by)
            self._say(f"asked to stop ({by}): the checkpoint of step {self.step} is written; start again to go on")
        else:
            export_run(self.job, self.scorer, self.step, self.job.store.digest)
        if self.metrics:
            self.metrics.close()
            report([self.folder])
            if not self.stopped:
                write_finished(self.folder, self.step, config.export.model_dump(mode="json"))
                self.following.end(self.last)
        runtime.barrier()

    def _log(self) -> None:
        values = self.window.close(self.step)
        self.last.update(values)
        self._write(values)
        for step, numbers, streak in self.window.skipped:
            ids = [self.job.store.symbols.name(i)[0] for i in numbers]
            some = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
            self._say(f"step {step} turned non-finite and was skipped; its samples: {some}")
            if streak >= self.config.train.nonfinite_limit:
                raise Unable(
                    f"{streak} steps in a row turned non-finite (train.nonfinite_limit), the last with samples {some}: "
                    "lower optim.lr or objective.beta, or look at these samples"
                )
        self.window.skipped.clear()
        self.saver.poll()

    def _due(self) -> tuple[bool, bool]:
        """Whether the held-out set, and whether the benchmarks are to be evaluated after this step."""
        every, last = self.config.train.eval_every, self.step == self.total
        held_out = self.evaluation is not None and (last or bool(every and self.step % every == 0))
        return held_out, self.benchmarks is not None and self.benchmarks.due(self.step, self.total)

    def _evaluate(self, *, saved: bool) -> None:
        """Measure, and note it in the checkpoint of this step: one that stands, or a new one where this is the best."""
        measured = dict[str, float]()
        held_out, benchmarks = self._due()
        with self.window.paused_for():
            if held_out and self.evaluation is not None:
                measured = self.evaluation.run(self.following.part("held out"))
                self._look()
            if benchmarks and self.benchmarks is not None:
                path, job = self.config.model.path, self.job
                measured |= self.benchmarks.run(self.step, path, job.policy, job.data, self._say)
        self.last.update(measured)
        self._write(measured)
        best = self._is_best(measured)
        if saved:
            self.saver.note(self.step, measured)
        elif best:
            self._save(measured, wait=False)
            self.saver.note(self.step, measured)

    def _look(self) -> None:
        """Answers to look at, where any are asked for."""
        if self.evaluation is not None and self.config.train.eval_samples:
            samples = self.evaluation.tried_samples(self.step, self._say)
            if self.metrics:
                self.metrics.log_samples(self.step, samples)
            self.following.sampled(self.step, samples)

    def _is_best(self, measured: dict[str, float]) -> bool:
        name = self.saver.best_metric
        if not name or (name not in measured and not (self.config.train.best_metric and self._due()[0])):
            return False  # nothing is chosen by, or it is of an evaluation that was not due
        if "best/step" in measured:  # by a margin
            return measured["best/step"] == self.step
        if name not in measured:
            raise ValueError(f"train.best_metric: {name!r} is not measured; these are: {', '.join(sorted(measured))}")
        return bool(self.runtime.gather(self.saver.beats(measured[name]))[0])

    # checkpoints

    def _save(self, measured: dict[str, float], *, wait: bool) -> None:
        with self.window.paused_for():
            info = {
                "config": self.config.model_dump(mode="json"),
                "identity": self.identity | ({"reference": self.digest} if self.digest else {}),
                "total": self.total,
                "steps_per_epoch": self.steps_per_epoch,
                "metrics": measured,
                "last": self.last,
                "window": self.window.state(),
                "world": self.runtime.world,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            state = checkpoint.training_state(self.scorer, self.optimizer)
            self.saver.save(self.step, state, info, wait=wait)

    def _restore(self, start: Start) -> None:
        info = start.info
        checkpoint.materialise(self.optimizer)
        self.saver.load(start.path, checkpoint.training_state(self.scorer, self.optimizer), checked=True)
        self.window.restore(info["window"])
        self._say(f"resumed from {start.path}")
        for text in start.changed:
            self._say(f"  {text}")
        for name, now in (("world", self.runtime.world), ("threads", torch.get_num_threads())):
            if now != info[name]:
                self._say(f"{name} was {info[name]} and is {now}: numbers agree to rounding, not to the bit")

    # before the first step

    def _read_reference(self) -> dict[str, Any]:
        job, model = self.job, reference_model(self.job)
        cache, scored = filled_cache(job, model)
        self.digest = cache.digest([key for pair in job.store.symbols.named() for key in pair])
        if self.start:
            check_identity(self.start.path, self.start.info["identity"], {"reference": self.digest}, self.start.changed)
        else:
            self._say(rescore(job, model, cache, scored))
        return cache.values

    def _open_metrics(self) -> Metrics:
        write_expected(self.job, self.total)
        log, settings = self.config.log, self.config.model_dump()
        return Metrics(self.folder, log.trackers, log.project, log.name, settings=settings, step=self.step)

    def _write(self, values: dict[str, float]) -> None:
        if self.metrics:
            self.metrics.log(self.step, values)
        with self.window.paused_for():
            self.following.row(self.step, values)

    def _say(self, text: str) -> None:
        if self.following:
            self.following.say(text)
        elif self.runtime.main and text:
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
        if not getattr(error, "told", task_number() > 0):  # once a launch, not once a rank
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        print("interrupted before a checkpoint could be written", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
