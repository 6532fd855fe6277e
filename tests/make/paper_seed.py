"""A seed's folder of `mmfast demo --papers` without its training: real captions of the grammar with more flaws or
fewer, judged, in the form that the driver writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.evals.world import score
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world
from mmfast.world.grammar import Flaws, caption
from mmfast.world.scenes import Scene

RUNNER_UP = "SIMA's released runner-up loss, one round of the model's own answers"
DPO, SFT = {"lr": 1e-4}, {"kind": "sft", "lr": 5e-4}
SUMMED, AVERAGED = {"lr": 1e-4}, {"lr": 1e-4, "objective": {"average": True, "beta": 0.5}}
METHODS: dict[str, tuple[str, str, dict[str, Any], float, float]] = {
    # name: label, system, settings, flaws (their probability), silence (share of captions cut short)
    "base": ("base", "base", {}, 0.85, 0.0),
    "mllm-dpo-sft": ("SFT on the judge's answers", "mllm-dpo", SFT, 0.5, 0.0),
    "mllm-dpo-rejection": ("rejection sampling", "mllm-dpo", SFT, 0.55, 0.0),
    "mllm-dpo-steerlm": ("SteerLM", "mllm-dpo", SFT, 0.56, 0.0),
    "mllm-dpo-hindsight": ("hindsight", "mllm-dpo", SFT, 0.8, 0.0),
    "mllm-dpo-dpo": ("DPO", "mllm-dpo", DPO, 0.7, 0.1),
    "sima-self-1": ("self critic, round 1", "sima", DPO, 0.83, 0.1),
    "sima-self-2": ("self critic, round 2", "sima", DPO, 0.8, 0.2),
    "sima-oracle-1": ("oracle critic, round 1", "sima", DPO, 0.7, 0.1),
    "sima-oracle-2": ("oracle critic, round 2", "sima", DPO, 0.6, 0.25),
    "sima-oracle-sft": ("oracle critic + SFT term, round 1", "sima", DPO | {"sft_weight": 0.5}, 0.6, 0.0),
    "sima-runner-up": (RUNNER_UP, "sima", {"loss": "runner_up"}, 0.8, 0.0),
    "dgpref-average": ("DPO, share of wrong parts", "dgpref", DPO, 0.6, 0.2),
    "dgpref-sum": ("DPO, number of wrong parts", "dgpref", DPO, 0.5, 0.35),
    "dgpref-object": ("DPO, objects alone", "dgpref", DPO, 0.75, 0.2),
    "dgpref-recall": ("number + what is missed", "dgpref", DPO, 0.6, 0.02),
    **{
        f"rlhfv-{how}-{gamma}": (
            f"{f'DDPO, gamma {gamma}' if gamma > 1 else 'DPO'}, {'averaged' if how == 'average' else 'summed'}",
            "rlhf-v",
            {"gamma": float(gamma)} | (AVERAGED if how == "average" else SUMMED),
            0.7 - 0.06 * gamma - 0.1 * (how == "average"),
            0.02 * gamma,
        )
        for how in ("sum", "average")
        for gamma in range(1, 6)
    },
    **{
        f"rlhfv-sft-{gamma}": (
            f"{f'DDPO, gamma {gamma}' if gamma > 1 else 'DPO'}, summed, SFT term",
            "rlhf-v",
            {"gamma": float(gamma), "lr": 5e-4, "sft_weight": 0.5},
            0.2,
            0.0,
        )
        for gamma in range(1, 4)
    },
    "rlaifv-1": ("DPO, round 1", "rlaif-v", DPO, 0.6, 0.2),
    "rlaifv-2": ("DPO, round 2", "rlaif-v", DPO, 0.5, 0.35),
    "rlaifv-sft": ("round 1 + SFT term", "rlaif-v", DPO | {"sft_weight": 0.5}, 0.55, 0.0),
}


def write_seed(
    out: Path, seed: int = 21, pictures: int = 40, *, leave_out: tuple[str, ...] = (), files: bool = False, **told: Any
) -> Path:
    """`leave_out`: methods that are not made yet. `files`: counts go to .npy files. `told` overrides papers.json."""
    folder = out / f"seed-{seed}"
    world = write_world(folder / "world", WorldSpec(seed=seed, base=4, pairs=4, groups=1, test=pictures))
    scenes = read_scenes(world)
    # Every method, and its control, which says nearly what the base says
    made = {}
    for name, (label, system, settings, flaws, silence) in METHODS.items():
        control = "" if name == "base" else f"{name}-blind"
        made[name] = (label, system, settings, flaws, silence, control)
        if control:
            made[control] = (f"{label}, blind", system, settings, 0.82, 0.02, "")
    methods, texts = {}, {}
    for name, (label, system, settings, flaws, silence, control) in made.items():
        if name in leave_out:
            continue
        lost = name.endswith("-blind") and (settings.get("kind") == "sft" or "sft_weight" in settings)
        seen = scenes[1:] + scenes[:1] if lost else scenes  # a control with likelihood in it describes other pictures
        texts[name] = [said(scene, f"{seed}:{name}", flaws, silence) for scene in seen]
        judged = score(texts[name], scenes)
        counted: Any = judged.counted.tolist()
        if files:
            np.save(folder / f"{name}.npy", judged.counted)
            counted = f"{name}.npy"
        methods[name] = {
            "label": label,
            "system": system,
            "blind": name.endswith("-blind"),
            "control": control,
            "pairs": 0 if name == "base" else 900,
            "made": {"prompts": 1600, "answers": 6400, "kept": 900, "why not": {"identical": 300, "tie": 400}},
            "seconds": 61.2,
            "processor_seconds": 118.9,
            "settings": settings,
            "words_chosen": 20.25,
            "words_rejected": 22.5,
            "score": judged.as_dict(),
            "counted": counted,
        }
    # What the driver leaves
    truths = [line["chosen"][0]["content"][0]["text"] for line in read_lines(world / "test.jsonl")]
    rows = [
        {"name": scene.name, "truth": truths[n]} | {name: said[n] for name, said in texts.items()}
        for n, scene in enumerate(scenes)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "seed": seed,
        "world_commit": "be6b821",
        "machine": {"device": "a CPU, 2 threads", "threads": 2, "torch": "2.13.0+cpu"},
        "seconds": 2000.0,
        "processor_seconds": 3900.0,
        "complete": not leave_out,
        "steps": {"answers": {"seconds": 100.0, "processor_seconds": 180.0}},
        "methods": methods,
    }
    (folder / "papers.json").write_text(json.dumps(whole | told))
    return folder


def said(scene: Scene, seed: str, flaws: float, silence: float) -> str:
    """A caption; a silent one names the first thing alone."""
    rng = random.Random(f"{seed}:{scene.name}")
    text = caption(scene, rng, Flaws(flaws, flaws, flaws, flaws, flaws), both=True).text
    return text.split(",")[0].split(" and ")[0] + "." if rng.random() < silence else text
