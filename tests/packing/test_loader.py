"""Packs come in the plan's order from any number of workers, and an error of a worker is told."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfast.packing import Pack, PackLoader, Plan, PlanSettings, build_pack
from tests.make.packing_cases import Case, random_mixture


def case_and_plan() -> tuple[Case, Plan]:
    case = random_mixture(np.random.default_rng(0), ["isolated", "captions", "text", "beginnings"])
    settings = PlanSettings(pairs_per_step=9, tokens_per_pack=60, seed=3)
    return case, Plan(case.examples, case.images, case.layout, settings)


def pixels(ids: list[str]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.tensor([float(i.split("-")[1]) for i in ids])}


def broken(ids: list[str]) -> dict[str, torch.Tensor]:
    raise OSError(f"{ids[0]}.png is truncated")


def same(a: Pack, b: Pack) -> bool:
    for item in fields(Pack):
        x, y = getattr(a, item.name), getattr(b, item.name)
        if isinstance(x, torch.Tensor):
            if x.dtype != y.dtype or not torch.equal(x, y):
                return False
        elif item.name == "images":
            if x.keys() != y.keys() or not all(torch.equal(x[k], y[k]) for k in x):
                return False
        elif x != y:
            return False
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_packs_come_in_the_order_of_the_plan(workers: int) -> None:
    case, plan = case_and_plan()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = PackLoader(
        plan, case.examples, case.images, case.layout, rank=1, world=2, gamma=2.0, load_images=pixels, workers=workers
    )
    first, last = plan.steps_per_epoch - 1, plan.steps_per_epoch + 2  # over the epoch's end
    got = list(loader.run(first, last))
    assert torch.equal(before, torch.get_rng_state())
    want = [
        (step, m, numbers)
        for step in (plan.step(n // plan.steps_per_epoch, n % plan.steps_per_epoch, 2) for n in range(first, last))
        for m, numbers in enumerate(step.packs[1])
    ]
    assert len(got) == len(want)
    for (step, m, pack), (planned, micro_batch, numbers) in zip(got, want, strict=True):
        assert (step.epoch, step.step, m) == (planned.epoch, planned.step, micro_batch)
        examples = [case.examples[e] for e in numbers]
        assert same(
            pack,
            build_pack(
                examples, case.images, case.layout, normaliser=planned.normaliser, gamma=2.0, load_images=pixels
            ),
        )


def test_an_epoch_is_the_default() -> None:
    case, plan = case_and_plan()
    loader = PackLoader(plan, case.examples, case.images, case.layout)
    met = sorted(i for loaded in loader.run(1) for i in loaded.pack.sample_ids)
    skipped = {case.examples[e].id for e in plan.step(0, 0).examples}
    assert met == sorted({e.id for e in case.examples} - skipped)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_names_the_samples(workers: int) -> None:
    case, plan = case_and_plan()
    loader = PackLoader(plan, case.examples, case.images, case.layout, load_images=broken, workers=workers)
    with pytest.raises(
        ValueError, match=r"(?s)cannot build the pack of .*random:.*OSError: image-\d+.png is truncated"
    ):
        list(loader.run())
    with pytest.raises(ValueError, match="reference cache"):
        list(PackLoader(plan, case.examples, case.images, case.layout, reference={}, workers=workers).run())
    with pytest.raises(ValueError, match="rank 2"):
        PackLoader(plan, case.examples, case.images, case.layout, rank=2, world=2)


SCRIPT = """
import sys
from tests.packing.test_loader import PackLoader, broken, case_and_plan, pixels

case, plan = case_and_plan()
load_images = broken if sys.argv[1] == "worker" else pixels
packs = PackLoader(plan, case.examples, case.images, case.layout, load_images=load_images, workers=2).run()
try:
    next(packs)
    raise ValueError("of the training process")
except ValueError as error:
    raise SystemExit(7) from error
"""


@pytest.mark.parametrize("where", ["worker", "main"])
def test_a_process_ends_after_an_error_though_its_workers_hear_no_signal(where: str) -> None:
    """They ignore SIGTERM, and Python joins its children when it exits: it used to wait for ever."""
    command = [sys.executable, "-c", SCRIPT, where]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], timeout=100).returncode == 7


def test_every_tensor_moves() -> None:
    case, plan = case_and_plan()
    pack = next(iter(PackLoader(plan, case.examples, case.images, case.layout, load_images=pixels).run())).pack
    moved = []
    pack._map(lambda t: moved.append(t) or t)
    assert {id(t) for t in moved} == {id(t) for t in pack.tensors()}
    assert id(pack.images["pixel_values"]) in {id(t) for t in moved} and len(moved) > 15
    assert same(pack.to("cpu"), pack)


@pytest.mark.gpu
def test_packs_arrive_on_the_device() -> None:
    case, plan = case_and_plan()
    here = list(PackLoader(plan, case.examples, case.images, case.layout, load_images=pixels).run())
    there = PackLoader(
        plan, case.examples, case.images, case.layout, load_images=pixels, workers=1, device="cuda"
    ).run()
    for a, b in zip(here, there, strict=True):
        assert b.pack.tokens.is_cuda and same(a.pack, b.pack.to("cpu", non_blocking=False))
