"""`make demo`, or `mmfast demo`: a VLM that hallucinates is made, aligned with DDPO, and judged, without a download.

    world      pictures with exact annotation, flawed captions, preference pairs
    base       a small LLaVA learns to see, then learns flawed captions by mmfast.train's SFT objective
    align      mmfast.train: reference pass and DDPO; plain DPO beside it
    report     greedy captions of held-out pictures before and after, scored exactly

Everything lies under `out`, the configs too: `torchrun -m mmfast.train OUT/ddpo.toml` runs that part again. The world
and the base model are kept, so a second run only aligns and judges.
"""

from __future__ import annotations

from mmfast.extras import check_training_packages

if __name__ == "__main__":
    check_training_packages()  # before the imports below need them

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mmfast.config import build as checked
from mmfast.config import dump
from mmfast.world.base import WarmUp, align_settings, base_settings, seeing_model
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.evaluate import Score, greedy_captions, load, score
from mmfast.world.report import write_report

Follow = Callable[[int, int], None]  # (done, of)
DDPO = {"gamma": 2.0, "sft_weight": 0.5, "lr": 5e-4}
DPO = {"lr": 1e-4}  # without the SFT term DDPO's rate ruins the language; this is the better of the two tried
NAMES = {"base": "before", "dpo": "after DPO", "ddpo": "after DDPO"}


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
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "mmfast.train", str(path),
    ]  # fmt: skip
    steps = settings["train"]["steps"]
    log = path.with_suffix(".log")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                follow(_step(out / "metrics.jsonl"), steps)
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


def _step(metrics: Path) -> int:
    """The last step that a run has logged."""
    if not metrics.exists():
        return 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if line.endswith("}")]
    return max(steps, default=0)


def make_base(
    out: Path, world: Path, seed: int, steps: int, follow: Callable[[str], Follow], run: dict[str, int]
) -> tuple[Path, bool]:
    """(The base model's directory, whether it was there already.)"""
    model, stamp = out / "base" / "export" / "hf", out / "base.json"
    warm = WarmUp(seed=seed)
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
    out: str | Path = "runs/demo",
    *,
    seed: int = 0,
    base_steps: int = 800,
    align_steps: int = 50,
    processes: int = 0,
    console: Console | None = None,
) -> dict[str, Score]:
    """The whole job; returns the scores by name ("base", "dpo", "ddpo")."""
    console, began = console or Console(), time.monotonic()
    out = Path(out).resolve() / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    processes, threads = layout(processes)
    run = {"processes": processes, "threads": threads}
    torch.set_num_threads(threads)  # this process computes while none of those do, but may share its cores with others
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console.print(f"[bold]mmfast demo[/bold]  {out}  {device}, {processes} processes of {threads} threads")
    bar = Progress(
        TextColumn("{task.description:<36}"), BarColumn(30), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), console=console,
    )  # fmt: skip
    with bar:

        def follow(description: str) -> Follow:
            task = bar.add_task(description, total=None)
            return lambda done, of: bar.update(task, completed=done, total=of)

        world = write_world(out / "world", WorldSpec(seed=seed), follow("world: pictures and captions"))
        base, kept = make_base(out, world, seed, base_steps, follow, run)
        if kept:
            bar.console.print("the base model is there already")
        models = {"base": base}
        common = {"reference": out / "reference", "seed": seed, "steps": align_steps}
        ddpo = align_settings(world, base, out / "ddpo", **DDPO, **common)
        models["ddpo"] = launch(ddpo, out / "ddpo.toml", follow("align: reference pass, then DDPO"), **run)
        dpo = align_settings(world, base, out / "dpo", **DPO, **common)
        models["dpo"] = launch(dpo, out / "dpo.toml", follow("align: plain DPO, for comparison"), **run)

        scenes = read_scenes(world)
        captions: dict[str, list[str]] = {}
        for name in NAMES:
            model, processor = load(models[name], device)
            progress = follow(f"held-out captions: {NAMES[name]}")
            captions[name] = greedy_captions(model, processor, scenes, progress=progress)
    scores = {name: score(texts, scenes) for name, texts in captions.items()}
    seconds = time.monotonic() - began
    (out / "results.json").write_text(
        json.dumps({"seconds": seconds, "base_reused": kept, **{n: s.as_dict() for n, s in scores.items()}}, indent=1)
    )
    page = write_report(out, scenes, captions, scores, NAMES)
    console.print(table(scores))
    console.print(f"{seconds:.0f} s; pictures and captions: {page} (and {page.with_suffix('.png').name} beside it)")
    return scores


def table(scores: dict[str, Score]) -> Table:
    shown = Table(title="greedy captions of held-out pictures")
    shown.add_column("")
    for heading in ("CHAIR_i", "CHAIR_s", "object recall", "words", "wrong counts", "wrong relations"):
        shown.add_column(heading, justify="right")
    for name, label in NAMES.items():
        s = scores[name]
        shares = (f"{100 * value:.1f}%" for value in (s.chair_i, s.chair_s, s.recall))
        shown.add_row(label, *shares, f"{s.words:.1f}", f"{s.wrong_counts:.2f}", f"{s.wrong_relations:.2f}")
    return shown


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("mmfast demo", description="Make a VLM that hallucinates, align it, judge it.")
    parser.add_argument("--out", default="runs/demo", help="where everything is kept (default: runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and the training (default: 0)")
    parser.add_argument("--processes", type=int, default=0, help="training processes (default: GPUs, else 2)")
    given = parser.parse_args(arguments)
    if given.processes < 0:
        parser.error("--processes must be positive")
    demo(given.out, seed=given.seed, processes=given.processes)


if __name__ == "__main__":
    main()
