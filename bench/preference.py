"""preference_loss beside its peers: whole calls with backward, and the kernel alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch

from bench.device import Row, Run, Setup, graphed, hundred, result, timed
from bench.logprob import working
from bench.preference_peers import BETA, Batch, eager, peers
from bench.timing import compared, gradient, interleave
from mmfast.ops.preference import preference_raw
from mmfast.ops.preference_kernels import PreferenceTensors
from mmfast.ops.preference_math import make_spec
from mmfast.ops.rows import invert

WEIGHTED = {True: "", False: ", no weights"}  # what is added to the mode


def runs_of(batch: Batch) -> dict[str, Run]:
    """Each peer's loss with its backward pass."""
    return {name: partial(gradient, loss, [logps], logps) for name, (loss, logps) in peers(batch).items()}


def tensors_of(batch: Batch) -> PreferenceTensors:
    return PreferenceTensors(batch.logps, None, batch.weights, batch.ref, batch.responses, batch.pairs, None, None)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """A round is 100 calls. All answers are as long: nothing is padded, the best case of a padded row."""
    chosen = f"{options.peers},eager,mmfast kernel" if options.peers else ""
    for count, length in [(4, 120)] if options.quick else [(1, 120), (4, 120), (16, 150), (64, 150)]:
        for weighted, mode in WEIGHTED.items():
            batch = Batch.of([length] * 2 * count, weighted, torch.device("cpu"))
            runs = runs_of(batch)
            spec = make_spec("sigmoid", pairs=count, beta=BETA)
            runs["mmfast kernel"] = partial(preference_raw, tensors_of(batch), spec, backend="cpu")
            runs = working(runs, chosen)
            times = interleave({name: partial(hundred, run) for name, run in runs.items()}, options.repeats)
            each = {name: [t / 100 for t in seconds] for name, seconds in times.items()}
            shape = f"P={count},L={length}"
            yield from compared("preference_loss", shape, each, "eager", mode="forward+backward" + mode)


def captured(runs: dict[str, Run], device: torch.device) -> dict[str, Run]:
    """Those runs that a CUDA graph takes, as 100 replays; the others are named."""
    good = {}
    for name, run in runs.items():
        try:
            good[name] = graphed(run, device)
        except RuntimeError as error:
            print(f"# {name} is not captured: {str(error).splitlines()[0][:100]}")
    return good


def device_rows(setup: Setup) -> Iterator[Row]:
    """Whole calls as they are; and without the host, as a CUDA graph replays them. TRL's method waits for the device
    with every metric, and cannot be captured."""
    backend = "cuda" if setup.device.type == "cuda" else "cpu"
    compiled = torch.compile(dynamic=True)
    for count, length in [(2, 10)] if setup.dry else [(1, 120), (16, 120), (64, 120), (256, 120)]:
        for weighted, mode in WEIGHTED.items():
            if setup.late(f"preference_loss {count} pairs{mode}"):
                return
            batch = Batch.of([length] * 2 * count, weighted, setup.device)
            calls = runs_of(batch)
            if weighted and not setup.dry:  # a compiler's minute is no dry run
                leaf = batch.logps.clone().requires_grad_()
                calls["torch.compile"] = partial(gradient, compiled(eager(batch)), [leaf], leaf)
            calls = working(calls)
            # The kernel alone, with the log-probs in order and behind an index.
            spec = make_spec("sigmoid", pairs=count, beta=BETA)
            plain = tensors_of(batch)
            index = torch.randperm(len(batch.logps), device=setup.device)
            copies, offsets = invert(index, len(index))
            indexed = plain._replace(rows=index, copies=copies, offsets=offsets)
            kernels: dict[str, Run] = {name: run for name, run in calls.items() if name != "trl"}
            for name, tensors in {"mmfast kernel": plain, "mmfast kernel, index": indexed}.items():
                kernels[name] = partial(preference_raw, tensors, spec, True, backend)
            for name, seconds in timed(setup, captured(kernels, setup.device)).items():
                each = [s / 100 for s in seconds]
                yield result(setup, "preference_loss", name, "device time of one call" + mode, [count, length], each)
            for name, seconds in timed(setup, calls).items():
                yield result(setup, "preference_loss", name, "forward+backward" + mode, [count, length], seconds)
