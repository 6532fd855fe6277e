"""What a run takes of this machine: hours at least, memory, disk. Said before anything starts."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mmfast.config import build
from mmfast.reproduce.paper import UNKNOWN, Paper
from mmfast.rounds.settings import Settings, training_of
from mmfast.rounds.steps import OF_MODELS
from mmfast.training.recipes import memory_estimate

GIB = 2**30
BESIDE = 1 << 30  # answers, logs, the reference cache, a page


@dataclass(frozen=True, kw_only=True)
class Need:
    hours: dict[str, float | str]  # a part of the work -> at least so many, or why nobody knows
    memory: float | str  # GiB of one GPU
    has_memory: float | None  # of this machine's first GPU
    disk: int  # bytes that are still to be written
    free: int


def need(paper: Paper, settings: Settings, root: Path, scale: float, parameters: float) -> Need:
    own_base = settings.base != str(root / paper.models[0].used)
    gpus = torch.cuda.device_count()
    ranks = int(os.environ.get("WORLD_SIZE", max(gpus, 1)))  # of a launch, on all its machines
    here = root
    while not here.exists():
        here = here.parent
    return Need(
        hours=hours(paper, settings, scale, parameters, tflops() * ranks),
        memory="unknown of another base: mmfast plan tells it" if own_base else memory(paper, settings, ranks),
        has_memory=torch.cuda.get_device_properties(0).total_memory / GIB if gpus else None,
        disk=disk(paper, settings, scale, parameters),
        free=shutil.disk_usage(here).free,
    )


def training(settings: Settings, model: str = "") -> dict[str, object]:
    """The config of a round's training, as far as it is known before there is a pair."""
    files = [f"{one.name}.jsonl" for one in settings.pairs]
    return training_of(settings, model or settings.base, files, Path("run"))


def hours(paper: Paper, settings: Settings, scale: float, parameters: float, speed: float) -> dict[str, float | str]:
    """The arithmetic of the whole run at `speed` TFLOP/s, this machine's for large matrices: no run is faster. What
    servers, experts, people and the benchmarks take is beyond it."""
    work, rounds, t = paper.work, settings.rounds.count, build(training(settings)).train
    pairs = t.steps * t.pairs_per_step if t.steps is not None else _times(work.pairs, (t.epochs or 1.0) * scale)
    # forward and backward; recomputed activations are not counted, as they need not be
    train = _flop(pairs, work.tokens_per_pair, 6 * parameters * rounds)
    # all answers read once; each round its part, or all of them
    asked = rounds if settings.rounds.prompts == "same" else 1
    options = settings.generate.options
    writer = str(options.get("model", ""))
    own = next((one.parameters for one in paper.models if writer.endswith(one.used)), parameters)
    answer = _flop(work.prompts, work.tokens_per_prompt, 2 * own * scale * asked)
    if settings.prompts.path and options.get("engine") not in OF_MODELS:
        answer = 0.0  # a server's, or another's
    parts = {"training": train, "answers": answer}
    return {name: "unknown" if flop is None else flop / (speed * 1e12) / 3600 for name, flop in parts.items()}


def _times(count: int | str, by: float) -> float | str:
    return count if isinstance(count, str) else count * by


def _flop(count: float | str, tokens: int | str, each: float) -> float | None:
    return None if UNKNOWN in (count, tokens) else float(count) * float(tokens) * each


def tflops(size: int = 0) -> float:
    """Of a product of large matrices on this machine's first device."""
    cuda = torch.cuda.is_available()
    device, size = ("cuda", size or 8192) if cuda else ("cpu", size or 1024)
    dtype = torch.bfloat16 if cuda else torch.float32
    a, best = torch.ones(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e12


def memory(paper: Paper, settings: Settings, gpus: int) -> float | str:
    """GiB of one GPU by `mmfast plan`'s estimate, for packs full of made-up pairs."""
    return memory_estimate(build(training(settings, paper.models[0].like)), gpus).total / GIB


def disk(paper: Paper, settings: Settings, scale: float, parameters: float) -> int:
    """Exports of whole weights, a round each, and the checkpoints that are kept: an upper bound for LoRA, whose
    checkpoints hold what is trained alone."""
    config = build(training(settings))
    t, work = config.train, paper.work
    pairs = int((work.pairs if isinstance(work.pairs, int) else 0) * scale)
    steps = max(1, int(pairs * (t.epochs or 1)) // t.pairs_per_step)
    if t.steps is not None:
        steps = min(steps, t.steps)
    made = steps // t.checkpoint_every + 1 if t.checkpoint_every else 1
    kept = min(made, t.keep_last) if t.keep_last else made
    trained = parameters if config.model.lora is None else _adapter(paper, config.model.lora.r)
    # Weights in bfloat16; a master, two moments of four bytes each
    a_round = 2 * parameters + kept * 12 * trained
    there = sum(2 * parameters for n in range(settings.rounds.count) if _exported(settings, n + 1))
    return max(0, int(a_round * settings.rounds.count - there)) + BESIDE


def _adapter(paper: Paper, rank: int) -> float:
    """Parameters of a LoRA on all layers of the decoder, some more than there are: width, three more of the MLP."""
    base = paper.models[0]
    return base.layers * rank * base.hidden * 24.0


def _exported(settings: Settings, number: int) -> bool:
    return (settings.folder / "rounds" / f"{number:02d}" / "run" / "export" / "hf").is_dir()


def told(need: Need) -> str:
    """In a few lines. Hours are a floor."""
    parts = [f"{name} {_hours(value)}" for name, value in need.hours.items()]
    lines = [f"hours of a model of ours at least: {', '.join(parts)} (servers, experts, people, benchmarks: beyond it)"]
    asked = need.memory if isinstance(need.memory, str) else f"{need.memory:.0f} GiB"
    has = "this machine has no GPU" if need.has_memory is None else f"this one has {need.has_memory:.0f} GiB"
    few = isinstance(need.memory, float) and need.has_memory is not None and need.memory > need.has_memory
    lines.append(f"memory of a GPU: {asked}; {has}{' (too little: train.tokens_per_pack, more GPUs)' if few else ''}")
    lines.append(f"disk: up to {need.disk / GIB:.1f} GiB to be written; {need.free / GIB:.1f} GiB are free")
    return "\n".join(lines)


def _hours(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def refuse_small_disk(need: Need, root: Path) -> None:
    if need.disk > need.free:
        raise ValueError(
            f"the disk of {root} has {need.free / GIB:.1f} GiB free, and the run may write {need.disk / GIB:.1f} GiB: "
            "make room, name another --root, or keep fewer checkpoints (train.keep_last=1)"
        )
