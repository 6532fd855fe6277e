"""What happened since the last log step: sums on the device, times and counts on the host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmfast.job.runtime import Memory, Runtime, peak_flops
from mmfast.packing import Loaded, StepPlan
from mmfast.training.objective import Objective


class Window:
    """Filled by each step without reading the device; `close` reads it once, for all ranks."""

    def __init__(
        self, runtime: Runtime, memory: Memory, objective: Objective, *, steps_per_epoch: int, flops_per_token: float
    ) -> None:
        self.runtime, self.memory, self.objective = runtime, memory, objective
        self.steps_per_epoch, self.flops_per_token = steps_per_epoch, flops_per_token
        self.peak = peak_flops(runtime.device) * runtime.world
        self.streak = 0  # non-finite steps in a row
        self.settled, self.steps = [0.0] * len(objective.names), 0  # sums already on the host, and their steps
        self.ran = self.unshared = 0  # tokens, and what they would be unshared
        self.skipped: list[tuple[int, list[int], int]] = []  # (step, its examples, how many in a row by then)
        self.sums = torch.zeros(len(objective.names), dtype=torch.float64, device=runtime.device)
        self.bad: list[Tensor] = []
        self.taken: list[tuple[int, StepPlan]] = []
        self._restart()

    def _restart(self) -> None:
        self.norm: Tensor | None = None
        self.rate = 0.0
        self.tokens = self.examples = 0  # since `began`, for the speeds
        self.waited, self.paused, self.began = 0.0, 0.0, time.perf_counter()

    def timed(self, packs: Iterator[Loaded]) -> Iterator[Loaded]:
        """The same packs; the time spent waiting for each is counted."""
        while True:
            before = time.perf_counter()
            loaded = next(packs, None)
            self.waited += time.perf_counter() - before
            if loaded is None:
                return
            yield loaded

    @contextmanager
    def paused_for(self) -> Iterator[None]:
        """Time that is not training: evaluation, writing a checkpoint."""
        before = time.perf_counter()
        yield
        self.paused += time.perf_counter() - before

    def took(self, step: int, planned: StepPlan, norm: Tensor, bad: Tensor, rate: float) -> None:
        self.norm, self.rate = norm, rate
        self.bad.append(bad)
        self.taken.append((step, planned))
        tokens = int(planned.tokens.sum())
        self.tokens += tokens
        self.ran += tokens
        self.unshared += planned.unshared_tokens
        self.examples += len(planned.examples)

    def settle(self) -> None:
        """Read the device: the sums of all ranks, and which steps were skipped. Done at a checkpoint too, so that a
        resumed run logs the same numbers."""
        if not self.taken:
            return
        sums = self.runtime.sum(self.sums)
        self.settled = [a + b for a, b in zip(self.settled, sums, strict=True)]
        self.steps += len(self.taken)
        for (step, planned), bad in zip(self.taken, torch.stack(self.bad).tolist(), strict=True):
            self.streak = self.streak + 1 if bad else 0
            if bad:
                self.skipped.append((step, planned.examples.tolist(), self.streak))
        self.sums = torch.zeros_like(self.sums)
        self.bad, self.taken = [], []

    def state(self) -> dict[str, Any]:
        self.settle()
        return {name: vars(self)[name] for name in ("settled", "steps", "streak", "ran", "unshared", "skipped")}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def close(self, step: int) -> dict[str, float]:
        """The metrics of the window; a new one begins."""
        assert self.norm is not None, "a window without steps"
        self.settle()
        values = self.objective.averages(self.settled, self.steps)
        seconds = max(time.perf_counter() - self.began - self.paused, 1e-9)
        values |= {
            "grad_norm": float(self.norm),
            "learning_rate": self.rate,
            "epoch": step / self.steps_per_epoch,
            "tokens_per_s": self.tokens / seconds,
            "pairs_per_s": self.examples / seconds,
            "memory_gib": self.memory.peak_gib(),
            "data_wait": self.waited / seconds,
            "sharing": 1 - self.ran / max(self.unshared, 1),
        }
        if self.peak:
            values["mfu"] = self.tokens * self.flops_per_token / seconds / self.peak
        self.settled, self.steps, self.ran, self.unshared = [0.0] * len(self.settled), 0, 0, 0
        self._restart()
        return values
