"""PackLoader: the packs of one rank, built in worker processes and brought to the device one pack ahead."""

from __future__ import annotations

import atexit
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmfast.data.records import Example, ImageInfo
from mmfast.data.symbols import Symbols
from mmfast.families.layout import Layout
from mmfast.packing.build import LoadImages, Logps, build_pack
from mmfast.packing.pack import Pack
from mmfast.packing.plan import HasSymbols, Plan, StepPlan


class Loaded(NamedTuple):
    step: StepPlan
    micro_batch: int  # 0 .. step.micro_batches - 1
    pack: Pack

    @property
    def ends_step(self) -> bool:
        return self.micro_batch == self.step.micro_batches - 1


class _Builder(Dataset):
    """Lives in the workers; a key is (example numbers, the step's normaliser)."""

    def __init__(
        self,
        examples: Sequence[Example] | HasSymbols,
        images: Mapping[str, ImageInfo],
        layout: Layout,
        gamma: float,
        reference: Logps | None,
        load_images: LoadImages | None,
    ) -> None:
        self.examples, self.images, self.layout = examples, images, layout
        self.gamma, self.reference, self.load_images = gamma, reference, load_images

    def __getitem__(self, key: tuple[list[int], float]) -> Pack:
        numbers, normaliser = key
        try:
            return build_pack(
                self._examples(numbers),
                self.images,
                self.layout,
                normaliser=normaliser,
                gamma=self.gamma,
                reference=self.reference,
                load_images=self.load_images,
            )
        except Exception as error:
            names = ", ".join(f"{e.id} ({e.source})" for e in (self.examples[n] for n in numbers[:8]))
            more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
            raise ValueError(f"cannot build the pack of {names}{more}: {type(error).__name__}: {error}") from error

    def _examples(self, numbers: list[int]) -> Sequence[Example] | Symbols:
        if isinstance(self.examples, HasSymbols):
            return self.examples.symbols.cut(np.asarray(numbers))
        return [self.examples[n] for n in numbers]


class PackLoader:
    """for step, micro_batch, pack in PackLoader(plan, examples, images, layout).run(): ...

    The order is the plan's, whatever `workers` is; 0 builds packs in this process. With a CUDA device packs are pinned
    and copied on a stream of their own while the pack before them is used.
    """

    def __init__(
        self,
        plan: Plan,
        examples: Sequence[Example] | HasSymbols,
        images: Mapping[str, ImageInfo],
        layout: Layout,
        *,
        rank: int = 0,
        world: int = 1,
        gamma: float = 1.0,
        reference: Logps | None = None,
        load_images: LoadImages | None = None,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        self.plan, self.rank, self.world, self.workers = plan, rank, world, workers
        self.device = torch.device(device)
        self.builder = _Builder(examples, images, layout, gamma, reference, load_images)

    def run(self, first: int = 0, last: int | None = None) -> Iterator[Loaded]:
        """Packs of the optimiser steps [first, last), counted through all epochs; last = None: to the epoch's end."""
        per_epoch = self.plan.steps_per_epoch
        last = (first // per_epoch + 1) * per_epoch if last is None else last
        planned: deque[tuple[StepPlan, int]] = deque()

        def keys() -> Iterator[tuple[list[int], float]]:
            for number in range(first, last):
                step = self.plan.step(number // per_epoch, number % per_epoch, self.world)
                for m, pack in enumerate(step.packs[self.rank]):
                    planned.append((step, m))
                    yield pack.tolist(), step.normaliser

        # Workers build what `keys` asks for, in that order
        loader = DataLoader(
            self.builder,
            batch_size=None,
            sampler=_Once(keys()),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global generator, and dropout would change
            worker_init_fn=_leave_signals,
        )
        packs: Any = iter(loader)
        if self.workers:  # they do not hear Python's SIGTERM when it exits, and it would wait for them for ever
            atexit.register(packs._shutdown_workers)
        # Each pack goes out with the step it belongs to
        try:
            for pack in _ahead(packs, self.device):
                step, m = planned.popleft()
                yield Loaded(step, m, pack)
        finally:
            if self.workers:
                atexit.unregister(packs._shutdown_workers)
                packs._shutdown_workers()


def _leave_signals(_: int) -> None:
    """Ctrl-C and torchrun's signals reach the whole group of processes: the training process answers them, and needs
    its workers up to the checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _Once:
    """A sampler over a generator. Its length is unknown, so DataLoader must not ask."""

    def __init__(self, keys: Iterator[tuple[list[int], float]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[tuple[list[int], float]]:
        return self.keys


def _ahead(packs: Iterator[Pack], device: torch.device) -> Iterator[Pack]:
    """Copies the next pack to a CUDA device while the present one is used."""
    if device.type != "cuda":
        yield from packs
        return
    stream = torch.cuda.Stream(device)

    def move() -> Pack | None:
        pack = next(packs, None)
        if pack is None:
            return None
        with torch.cuda.stream(stream):
            return pack.to(device, non_blocking=True)

    coming = move()
    while coming is not None:
        present = torch.cuda.current_stream(device)
        present.wait_stream(stream)
        pack = coming
        for tensor in pack.tensors():
            tensor.record_stream(present)
        coming = move()
        yield pack
