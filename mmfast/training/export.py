"""What a run leaves for others to load: which formats, of which step, with a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from mmfast.config import Config, build, dump, load
from mmfast.directory import directory
from mmfast.directory.native import origin_of
from mmfast.files import sha256_of
from mmfast.job.opening import Job
from mmfast.job.rows import read
from mmfast.job.runtime import start
from mmfast.models.export import (
    copy_side_files,
    live_weights,
    native_config_of,
    save_original,
    save_peft,
    unplaced,
    write_whole,
)
from mmfast.models.lora import settings_of
from mmfast.models.names import disk_names
from mmfast.models.scorer import Scorer
from mmfast.training.checkpoint import Checkpointer, complete, training_state

WEIGHTS = (".safetensors", ".bin")


def formats_of(config: Config) -> list[str]:
    """What `export.formats` comes to: unmerged, what from_pretrained loads of an adapter run is the adapter."""
    adapts = config.model.adapts
    return list(
        dict.fromkeys("peft" if n == "hf" and adapts and not config.export.merge else n for n in config.export.formats)
    )


def check_export(job: Job) -> None:
    """Raises for what could not be exported after the training, from the model's description and its files' headers."""
    job.fetch_models(weights=True)
    config, family = job.config, job.adapter
    formats, folder = formats_of(config), directory(config.model.path, weights=True)
    if "hf" in formats or ("llava" in formats and not config.model.adapts):
        disk_names(folder)
    if "peft" in formats and "projector" not in config.model.freeze and (name := unplaced(family, folder)):
        raise ValueError(
            f"export: peft's layout has no place for the trained {name} of a {family.config.model_type}: "
            'set export.formats = ["hf"] and export.merge = true, or put "projector" into model.freeze'
        )
    if "llava" in formats:
        native_config_of(folder, config.data.aspect)
        settings = settings_of(config.model.adapter) if config.model.adapter else None
        for name in ("rank_pattern", "alpha_pattern"):
            if getattr(settings, name, None):
                no = 'export.formats: "llava" is a layout for one rank and scale'
                raise ValueError(f'{no}, and model.adapter has a {name}: use "peft"')


def export_run(job: Job, scorer: Scorer, step: int, data: str, *, out: Path | None = None) -> None:
    """Write every format of `export.formats` under run/export (or `out`), as the model is after `step`. All ranks take
    part; rank 0 writes."""
    config, runtime, run = job.config, job.runtime, job.folder
    out = out or run / "export"
    for name in formats_of(config):
        final = out / ("llava-lora" if name == "llava" and config.model.adapts else name)
        temporary, old = final.with_name(f".{final.name}.tmp"), final.with_name(f".{final.name}.old")
        if runtime.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        runtime.barrier()
        base = directory(config.model.path, weights=True)
        aspect: dict[str, Any] = {"aspect": config.data.aspect, "write": runtime.main}
        if name == "hf" or not config.model.adapts:
            trained = "vision" not in config.model.freeze
            write_whole(base, temporary, live_weights(scorer), layout=name, tower=trained, **aspect)
        elif name == "peft":
            save_peft(scorer, config.model.path, temporary, write=runtime.main)
        else:
            save_original(scorer, config.model.path, base, temporary, **aspect)
        if runtime.main:
            if config.model.adapts and name != "hf":
                copy_side_files(origin_of(base) if name == "llava" else base, temporary, config_too=False)
            (temporary / "README.md").write_text(model_card(config, temporary, step, metrics_at(run, step), data))
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old, ignore_errors=True)
        runtime.barrier()


def metrics_at(run: Path, step: int) -> dict[str, tuple[Any, int]]:
    """Each metric as it last was at `step`, and when that was."""
    path = run / "metrics.jsonl"
    rows = [row for row in (read(path) if path.exists() else ()) if row["step"] <= step]
    return {name: (value, row["step"]) for row in rows for name, value in row.items() if name != "step"}


def model_card(config: Config, folder: Path, step: int, metrics: dict[str, tuple[Any, int]], data: str) -> str:
    """README.md of an export: what it was made from, with which settings, and what was measured of it."""
    o = config.objective
    method = {"sft": "SFT"}.get(o.kind, f"{'DDPO' if o.gamma != 1 else 'preference optimisation'} ({o.loss})")
    weights = "\n".join(f"| {p.name} | `{sha256_of(p)}` |" for p in sorted(folder.iterdir()) if p.suffix in WEIGHTS)
    rows = "\n".join(
        f"| {name} | {value if isinstance(value, str) else f'{value:.5g}'} | {when} |"
        for name, (value, when) in sorted(metrics.items())
    )
    return f"""---
base_model: {config.model.path}
library_name: transformers
tags: [mmfast, {"sft" if o.kind == "sft" else "dpo"}]
---

# {config.log.name or Path(config.output_dir).name}, step {step}

{method} of `{config.model.path}` with mmfast{f": {config.about}" if config.about else "."}

Data: `{data}` (digest of the examples: file contents, template, tokenizer, image processing).

| weights after step {step} | sha256 |
|---|---|
{weights}

| metric | value | measured at step |
|---|---|---|
{rows}

{best_of(config, step, metrics)}<details><summary>config</summary>

```toml
{dump(config)}```

</details>
"""


def best_of(config: Config, step: int, metrics: dict[str, tuple[Any, int]]) -> str:
    """What the run's choice among its checkpoints was, where it made one by a margin."""
    if "best/step" not in metrics or not config.evaluate.best:
        return ""
    best = int(metrics["best/step"][0])
    this = "this one" if best == step else f"step {best}, not this one"
    return (
        f"The best checkpoint until step {step} by `{config.evaluate.best}` is {this}: a later one took an earlier "
        "one's place only where the 95% interval of their difference, over the same images, lay beyond zero.\n\n"
    )


def export(run: str | Path, formats: tuple[str, ...] = (), step: int = 0, merge: bool = False) -> Path:
    """Export a checkpoint of a run, the newest (`step` 0) or a named one, to run/export/step-N: the folder is returned.
    What the run itself exported at its end is left alone."""
    run = Path(run)
    if not (run / "config.toml").is_file():
        raise ValueError(f"{run} is not a run: it has no config.toml")
    config = load(run / "config.toml")
    adapts = config.model.adapts
    if merge and not adapts:
        raise ValueError(f"--merge merges an adapter, and {run} trained the whole model")
    if "hf" in formats and adapts and not (merge or config.export.merge):
        raise ValueError(f'{run} trained an adapter: "hf" needs --merge, or take --format peft')
    tree = config.model_dump(exclude_none=True)
    if formats or merge:
        tree["export"] = {"formats": list(formats or ["hf"]), "merge": "hf" in (formats or ["hf"]) and adapts}
        config = build(tree)
    steps = {int(path.name.split("-")[1]): path for path in complete(run / "checkpoints")}
    if not steps or (step and step not in steps):
        which = f"of step {step}; there are those of {', '.join(map(str, steps))}" if steps else ""
        raise ValueError(f"{run} has no complete checkpoint {which}".strip())
    path = steps[step or max(steps)]
    tree["model"]["cache_vision"] = False  # no features are read
    runtime = start(config)
    try:
        job = Job(build(tree), runtime)
        job.config, job.folder = config, run  # for the card; wherever the run lies now
        job.eval_data = None  # held-out examples need not be there any more
        check_export(job)
        scorer = job.policy.scorer
        state = {"weights": training_state(scorer, torch.optim.SGD(scorer.parameters()))["weights"]}
        out = run / "export" / path.name
        # not over run/checkpoints, which it would sweep of what a run that is still going is writing there
        info = Checkpointer(out).load(path, state)
        export_run(job, scorer, info["step"], info["identity"]["data"], out=out)
    finally:
        runtime.close()
    return out
