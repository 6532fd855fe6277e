"""`mmfast init DATA --model M`: a config to start from, filled in from data, model and memory."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mmfast.config import Config, build
from mmfast.config.toml import literal
from mmfast.data.build import build as examples_of
from mmfast.data.containers.read import located
from mmfast.data.formats.known import detect
from mmfast.data.settings import DataSettings
from mmfast.data.store import ExampleStore
from mmfast.training.forecast import GPUS_PER_NODE, alone, plan_of

UNTOLD = 1 << 30  # longest example while lengths are not known yet
SHARE = 0.9  # of the memory, that a plan may fill
LARGEST_PACK = Config().train.tokens_per_pack
LORA = {"r": 64, "alpha": 128}
RATES = {"whole": 5e-7, "lora": 1e-5}  # RLAIF-V's, recipes/rlaifv_full.toml and rlaifv_lora.toml


def starting_config(
    data: str, model: str, *, images: str = "", split: str = "", gpus: int = 1, memory_gib: float = 0
) -> str:
    """The text of a config. `memory_gib`: of each GPU; 0: of this machine's, or, where it has none, its own memory."""
    cuda = torch.cuda.is_available() or memory_gib > 0
    (source,) = located([data], split, tell=lambda text: None)
    given = {"path": data, "split": split, "images": images, "format": detect(source).name}
    with TemporaryDirectory() as cache:
        # What the rows hold
        settings = DataSettings(**given, max_length=UNTOLD, on_error="drop")
        store = examples_of(settings, model, cache, progress=False, report_to=lambda text: None)
        bad, pairs, longest = len(store.report.dropped), store.preference, int(store.symbols.unshared.max())
        # The config without what memory decides, and what it decides
        tree: dict[str, Any] = {
            "output_dir": f"runs/{Path(data).stem}",
            "model": {"path": model} | ({} if cuda else {"dtype": "float32"}),
            "data": given | {"max_length": -(-longest // 64) * 64, "on_error": "drop" if bad else "raise"},
            "objective": {"kind": "dpo" if pairs else "sft"},
            "train": {"epochs": 3, "pairs_per_step": some(len(store))},
        }
        room = (memory_gib or memory_here() / (1 if cuda else gpus)) * 2**30  # processes on CPUs share it
        device = "cuda" if cuda else "cpu"
        whole, pack, needed = _fitting(tree, store, gpus, device, room)
    tree["train"]["tokens_per_pack"] = pack
    if not whole:
        tree["model"]["lora"] = LORA
    tree["optim"] = {"lr": RATES["whole" if whole else "lora"]}
    told = {
        "max_length": f"the longest of {len(store)} examples has {longest} tokens, those of images included",
        "on_error": f"{bad} rows cannot be used: mmfast data check {data} --model {model} names them",
        "kind": "each example is a pair" if pairs else "some have no rejected side: cross entropy of answers",
        "dtype": "there is no GPU here",
        "lora": "trained whole it needs more memory than there is",
        "tokens_per_pack": f"the plan: {needed / 2**30:.2f} of {room / 2**30:.2f} GiB"
        + (f" on each of {gpus} ranks" if gpus > 1 else "")
        + ("" if needed <= SHARE * room else ": TOO MUCH, take more GPUs or a smaller model"),
        "pairs_per_step": "of an update, over all GPUs",
        "lr": "a usual rate for " + ("all weights" if whole else "LoRA"),
    }
    build(tree)  # it loads as it stands
    return written(tree, told)


def _fitting(tree: dict[str, Any], store: ExampleStore, gpus: int, device: str, room: float) -> tuple[bool, int, float]:
    """(Whether all weights train, else LoRA; the largest pack whose plan fits the memory; what the plan needs). Where
    nothing fits it is LoRA with the smallest pack."""
    least = 1 << (2 * int(store.symbols.unshared.max()) - 1).bit_length()  # any pair, whatever it shares
    sizes = [size for size in 1 << np.arange(30) if least <= size <= max(least, LARGEST_PACK)]

    def needs(lora: bool, size: int) -> float:
        model = tree["model"] | ({"lora": LORA} if lora else {})
        job = alone(build(tree | {"model": model, "train": tree["train"] | {"tokens_per_pack": int(size)}}))
        job.store = store if job.pairs else store.without_rejected()
        return float(plan_of(job, ranks=gpus, device=device, gpus_per_node=GPUS_PER_NODE).memory.total)

    for lora in (False, True):
        smallest = needs(lora, sizes[0])
        if smallest > SHARE * room:
            continue
        for size in reversed(sizes[1:]):
            if (needed := needs(lora, size)) <= SHARE * room:
                return not lora, int(size), needed
        return not lora, int(sizes[0]), smallest
    return False, int(sizes[0]), smallest


def some(examples: int) -> int:
    """Examples of a step: a power of two between 8 and 128 (or all there are) that gives an epoch 16 steps or more."""
    return min(examples, 128, max(8, 1 << max(0, (examples // 16).bit_length() - 1)))


def memory_here() -> float:
    """GiB of a GPU of this machine, or of the machine where it has none."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def written(tree: dict[str, Any], told: dict[str, str]) -> str:
    """The tree as TOML, a remark beside what was filled in; defaults that say nothing are left out."""
    lines = ["# Made by mmfast init. `mmfast plan` shows what it will take; docs/config.md has every key."]
    for name, value in tree.items():
        if not isinstance(value, dict):
            lines.append(f"{name} = {literal(value)}")
            continue
        lines += ["", f"[{name}]"]
        for key, one in value.items():
            if one not in ("", "raise"):
                lines.append(f"{key} = {literal(one)}" + (f"  # {told[key]}" if key in told else ""))
    return "\n".join(lines) + "\n"
