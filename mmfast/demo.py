"""`make demo`, or `mmfast demo`: a VLM that hallucinates is made, aligned with DDPO, and judged, without a download.

    world      pictures with exact annotation, flawed captions, preference pairs
    base       a small LLaVA learns to see, then learns flawed captions by mmfast.train's SFT objective
    align      mmfast.train: reference pass and DDPO with an SFT term; beside it DPO, SFT alone, each without the other,
               and two runs on the same pairs with their pictures shuffled, from which nothing can be learnt
    report     greedy captions of held-out pictures before and after, scored exactly

Everything lies under `out`, the configs too: `torchrun -m mmfast.train OUT/ddpo.toml` runs that part again. The world
and the base model are kept, so a second run only aligns and judges. Reward accuracy on held-out pairs is not shown: it
says little of hallucination (docs/world.md).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmfast.config import build as checked
from mmfast.config import dump
from mmfast.evals.world import greedy_captions, score
from mmfast.evals.world_report import print_tables, write_report
from mmfast.job.rows import read
from mmfast.progress import Follow, Parts
from mmfast.rounds.launch import standalone
from mmfast.world import probe
from mmfast.world.base import WarmUp, align_settings, base_settings, seeing_model
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world


@dataclass(frozen=True)
class Alignment:
    """One run on the base model. `blind`: on the pairs with their pictures shuffled."""

    label: str
    settings: Mapping[str, Any]  # of align_settings
    blind: bool = False


# At the rate of the runs with an SFT term, those without it lose the language; theirs is the best of those tried.
DDPO = {"gamma": 2.0, "sft_weight": 0.5, "lr": 5e-4}
ALONE = {"lr": 1e-4}
RUNS = {  # the headline, and what it is made of
    "ddpo": Alignment("DDPO + SFT term", DDPO),
    "sft": Alignment("SFT alone", {"kind": "sft", "lr": DDPO["lr"]}),
    "dpo_sft": Alignment("DPO + SFT term", {**DDPO, "gamma": 1.0}),
    "ddpo_alone": Alignment("DDPO alone", {**ALONE, "gamma": 2.0}),
    "dpo": Alignment("DPO alone", ALONE),
    "blind": Alignment("DDPO alone, blind", {**ALONE, "gamma": 2.0}, blind=True),
    "blind_dpo": Alignment("DPO alone, blind", ALONE, blind=True),
}


def layout(processes: int = 0) -> tuple[int, int]:
    """(processes, threads of each) for this machine. Each process computes on its own cores: two processes of two
    threads on two cores ran eight times slower than one."""
    cores = len(os.sched_getaffinity(0))
    processes = processes or (torch.cuda.device_count() if torch.cuda.is_available() else min(2, cores))
    return processes, max(1, min(4, cores // processes))


def launch(settings: dict[str, Any], path: Path, follow: Follow, *, processes: int, threads: int) -> Path:
    """Writes the config to `path` and trains by it in processes of its own; returns the exported model."""
    out = Path(settings["output_dir"])
    shutil.rmtree(out, ignore_errors=True)
    path.write_text(dump(checked(settings)))
    command = [sys.executable, "-m", "torch.distributed.run", *standalone(processes), "mmfast.train", str(path)]
    steps = settings["train"]["steps"]
    log = path.with_suffix(".log")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                metrics = out / "metrics.jsonl"
                follow(max((row["step"] for row in read(metrics)), default=0) if metrics.exists() else 0, steps)
                time.sleep(0.3)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        why = reason(log.read_text(errors="replace"))
        raise RuntimeError(f"training by {path} ended with {process.returncode} (all of it is in {log}):\n{why}")
    follow(steps, steps)
    return out / "export" / "hf"


def reason(log: str) -> str:
    """What went wrong, from a run's output: its own error lines, without the traceback that torchrun adds."""
    lines = log.split("torch/distributed/elastic/multiprocessing/api.py")[0].splitlines()
    own = [line for line in lines if line.startswith("error: ")]
    return "\n".join(own or lines[-15:])


def make_base(
    out: Path,
    world: Path,
    seed: int,
    follow: Callable[[str], Follow],
    run: dict[str, int],
    *,
    warm: WarmUp | None = None,
    steps: int = 1000,
) -> tuple[Path, bool]:
    """(The base model's directory, whether it was there already.)"""
    model, stamp = out / "base" / "export" / "hf", out / "base.json"
    warm = warm or WarmUp(seed=seed)
    settings = base_settings(world, out / "seeing", out / "base", seed=seed, steps=steps)
    recipe = json.dumps({"world": (world / "world.json").read_text(), "warm": asdict(warm), "settings": settings})
    if stamp.exists() and stamp.read_text() == recipe and model.exists():
        return model, True
    stamp.unlink(missing_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seeing_model(world, out / "seeing", warm, device=device, progress=follow("base model: learns to see"))
    launch(settings, out / "base.toml", follow("base model: learns flawed captions"), **run)
    stamp.write_text(recipe)
    return model, False


def demo(
    out: str | Path = "runs/demo", *, seed: int = 0, processes: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """The whole job; returns results.json, under "scores" each Score by name ("base" and those of RUNS)."""
    console, began, worked = console or Console(), time.monotonic(), processor_seconds()
    out = Path(out).resolve() / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    processes, threads = layout(processes)
    run = {"processes": processes, "threads": threads}
    torch.set_num_threads(threads)  # this process computes while none of those do, but may share its cores with others
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The world, a base model that hallucinates, the runs, and everyone's captions of held-out pictures
    with Parts(console) as parts:
        parts.say(f"mmfast demo  {out}  {device}, {processes} processes of {threads} threads")
        world = write_world(out / "world", WorldSpec(seed=seed), parts.part("world: pictures and captions"))
        base, kept = make_base(out, world, seed, parts.part, run)
        if kept:
            parts.say("the base model is there already")
        models = {"base": base}
        for name, one in RUNS.items():
            reference, pairs = ("reference-blind", "blind.jsonl") if one.blind else ("reference", "pairs.jsonl")
            more = {"reference": out / reference, "pairs": pairs, **one.settings}
            settings = align_settings(world, base, out / name, seed=seed, **more)
            models[name] = launch(settings, out / f"{name}.toml", parts.part(f"align: {one.label}"), **run)
        scenes = read_scenes(world)
        captions: dict[str, list[str]] = {}
        for name, path in models.items():
            follow = parts.part(f"held-out captions: {name}")
            captions[name] = greedy_captions(path, scenes, device=device, progress=follow)
    # Scored against the annotation, and reported
    labels = {"base": "before"} | {name: one.label for name, one in RUNS.items()}
    truths = [record["chosen"][0]["content"][0]["text"] for record in read_lines(world / "test.jsonl")]
    write_captions(out / "captions.jsonl", scenes, captions, truths)
    scores = {name: score(texts, scenes) for name, texts in captions.items()}
    judge = probe.of_world(world)
    results = {
        "seconds": time.monotonic() - began,
        "processor_seconds": processor_seconds() - worked,
        "base_reused": kept,
        "judge_without_pictures": {"accuracy": judge[0], "pairs": judge[1]},
    }
    plain = results | {"scores": {name: one.as_dict() for name, one in scores.items()}}
    (out / "results.json").write_text(json.dumps(plain, indent=1))
    controls = [name for name, one in RUNS.items() if one.blind]
    page = write_report(out, scenes, captions, scores, labels, truths, judge, controls)
    print_tables(console, scores, labels, judge, controls)
    console.print(f"{results['seconds']:.0f} s; pictures, captions and what changed in the words: {page}")
    console.print(f"every caption of every model: {out / 'captions.jsonl'}")
    return results | {"scores": scores}


def write_captions(
    path: Path, scenes: Sequence[Any], captions: Mapping[str, Sequence[str]], truths: Sequence[str]
) -> None:
    """One held-out picture a line: its name, what is true of it, and what each model said."""
    rows = [
        {"name": scene.name, "truth": truth} | {name: texts[n] for name, texts in captions.items()}
        for n, (scene, truth) in enumerate(zip(scenes, truths, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def processor_seconds() -> float:
    """Of this process and the ended ones that it started: what the work costs, however loaded the machine is."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
