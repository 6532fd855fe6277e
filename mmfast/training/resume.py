"""Whether and from where a run may go on: each key of the config has a rule, and everything that a rule cannot see in a
key (weights, examples, reference values) is compared by its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mmfast.config import Config, Section
from mmfast.directory import adapter_directory, directory
from mmfast.files import weight_digests
from mmfast.job.checkpoint_files import damage, evaluation, find, number, pending, present, read_info
from mmfast.job.opening import Job
from mmfast.job.rows import last_whole_step
from mmfast.job.runfolder import FINISHED, finished, meant
from mmfast.training.checkpoint import Checkpointer

Rule = Literal["same", "free", "digest", "length"]
# same:   it changes what is learned: another value is refused
# free:   it may change in the middle of a run; a change is told
# digest: what counts is what it leads to, whose digest is compared; another path to the same is told
# length: may grow, and shrink as far as the step that was reached
RULES: dict[str, Rule] = {
    **dict.fromkeys(("output_dir", "about"), "free"),
    "seed": "same",
    **dict.fromkeys(("model.path", "model.adapter"), "digest"),
    **dict.fromkeys(("model.dtype", "model.quantize", "model.freeze"), "same"),
    **dict.fromkeys(("model.attention", "model.cache_vision"), "free"),
    **dict.fromkeys(("model.min_pixels", "model.max_pixels"), "digest"),
    **dict.fromkeys(("model.lora.r", "model.lora.alpha", "model.lora.dropout", "model.lora.targets"), "same"),
    **dict.fromkeys(
        (
            "data.path",
            "data.split",
            "data.subset",
            "data.revision",
            "data.format",
            "data.images",
            "data.aspect",
            "data.template",
            "data.turns",
        ),
        "digest",
    ),
    **dict.fromkeys(("data.max_length", "data.max_words", "data.truncate", "data.on_error", "data.limit"), "digest"),
    "data.options": "digest",
    **dict.fromkeys(("data.eval_path", "data.eval_split", "data.workers", "data.cache"), "free"),
    "reference.kind": "same",
    "reference.model": "digest",
    **dict.fromkeys(("reference.path", "reference.check", "reference.tolerance"), "free"),
    **dict.fromkeys(("objective.kind", "objective.loss", "objective.beta", "objective.gamma"), "same"),
    **dict.fromkeys(("objective.segments", "objective.average", "objective.label_smoothing"), "same"),
    **dict.fromkeys(("objective.sft_weight", "objective.sft_average", "objective.terms"), "same"),
    **dict.fromkeys(("objective.divergence", "objective.alpha", "objective.ld_alpha", "objective.tau"), "same"),
    **dict.fromkeys(("objective.simpo_margin", "objective.compat"), "same"),
    **dict.fromkeys(("optim.name", "optim.master"), "same"),
    **dict.fromkeys(("optim.lr", "optim.projector_lr", "optim.vision_lr", "optim.betas", "optim.eps"), "free"),
    **dict.fromkeys(("optim.schedule", "optim.decay_share", "optim.min_lr", "optim.warmup"), "free"),
    **dict.fromkeys(("optim.weight_decay", "optim.clip"), "free"),
    **dict.fromkeys(("train.epochs", "train.steps"), "length"),
    **dict.fromkeys(("train.pairs_per_step", "train.shuffle", "train.drop_last"), "same"),
    **dict.fromkeys(("train.tokens_per_pack", "train.resume", "train.checkpoint_every", "train.keep_last"), "free"),
    **dict.fromkeys(("train.best_metric", "train.eval_every", "train.eval_samples", "train.eval_tokens"), "free"),
    "train.nonfinite_limit": "free",
    **dict.fromkeys(("evaluate.bench", "evaluate.data", "evaluate.images", "evaluate.every"), "free"),
    **dict.fromkeys(("evaluate.start", "evaluate.limit", "evaluate.best", "evaluate.margin"), "free"),
    **dict.fromkeys(("parallel.shard", "parallel.shard_size", "parallel.activation_checkpointing"), "free"),
    **dict.fromkeys(("parallel.compile", "parallel.offload", "parallel.threads"), "free"),
    **dict.fromkeys(("log.every", "log.trackers", "log.project", "log.name", "log.progress"), "free"),
    **dict.fromkeys(("export.formats", "export.merge"), "free"),
}
UNTOLD = ("output_dir", "about", "train.resume", "log.progress")  # of no consequence for the numbers
DATA = ("data.", "model.min_pixels", "model.max_pixels")  # what the digest of the examples stands on


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, dotted."""
    for name, field in section.model_fields.items():
        inner = next((k for k in (field.annotation, *get_args(field.annotation)) if _is_section(k)), None)
        if inner is None or name in ("path", "terms"):  # lists of sections are compared whole
            yield prefix + name
        else:
            yield from keys(inner, f"{prefix}{name}.")


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value there, value here) of each key that differs; a key that `there` did not know had its default."""
    defaults = Config().model_dump(mode="json")
    pairs = ((key, _value(there, key, _value(defaults, key)), _value(here, key)) for key in keys())
    return [(key, a, b) for key, a, b in pairs if a != b]


def check_settings(path: Path, there: dict[str, Any], config: Config) -> list[str]:
    """The changes that are allowed, in words; raises, naming each, where one is not."""
    differences = changes(there, config.model_dump(mode="json"))
    refuse(path, [_told(*change) for change in differences if RULES.get(change[0], "same") == "same"])
    return [_told(*change) for change in differences if change[0] not in UNTOLD]


def check_identity(path: Path, there: dict[str, Any], here: dict[str, Any], changed: list[str]) -> None:
    """Raises where what the "digest" keys lead to differs. `changed`: what check_settings told."""
    named = {
        "data": ("data.path", "its examples", DATA),
        "mixture": ("data.path", "the weights of its files", ("data.path",)),
        "weights": ("model.path", "its weights", ("model.path",)),
        "adapter": ("model.adapter", "its weights", ("model.adapter",)),
        "reference": ("reference.model", "the reference log-probs", ("reference.model",)),
        "objective": ("objective", "its class", ("objective.",)),
    }
    wrong = []
    for name, (key, what, settings) in named.items():
        if name in there and name in here and there[name] != here[name]:
            keys = [text.split(" ")[0] for text in changed]
            why = [t for k, t in zip(keys, changed, strict=True) if RULES[k] == "digest" and k.startswith(settings)]
            digests = f"{key}: {what} were {_short(there[name])} and are {_short(here[name])}"
            wrong.append(digests + (f" ({', '.join(why)})" if why else ""))
    refuse(path, wrong)


def refuse(path: Path, wrong: list[str]) -> None:
    if wrong:
        raise ValueError(
            f"cannot resume from {path}: {'; '.join(wrong)}; put it back, or start anew: in another output_dir, or "
            'here with train.resume = "never", which sets aside what is there'
        )


@dataclass
class Start:
    """Where a run goes on. `changed`: one line for each setting that is another now."""

    path: Path
    info: dict[str, Any]
    changed: list[str]
    evaluated: bool  # the evaluation of its step, where there is to be one, was noted
    finished: bool = False


def choose(
    job: Job, saver: Checkpointer, identity: Callable[[], dict[str, Any]], say: Callable[[str], None]
) -> Start | None:
    """The checkpoint that this start goes on from; None: from the beginning. Everything is refused here that can be
    refused before the model is opened; `identity` is asked only once the settings agree."""
    config, runtime, folder = job.config, job.runtime, job.folder
    given_up: list[Path] = []
    resume = runtime.gather(meant(folder, config.train.resume))[0]
    while True:
        newest = runtime.from_main(lambda: _next(folder, resume, given_up))
        if newest is None:
            return None
        path, info, damaged, evaluated = newest
        for text in damaged:
            say(f"{text}: going back to an older checkpoint")
        # What may not change has not: settings, data, weights, length
        start = Start(path, info, check_settings(path, info["config"], config), evaluated)
        check_identity(path, info["identity"], identity(), start.changed)
        total, step = config.train.total_steps(info["steps_per_epoch"]), info["step"]
        if total < step:
            key = "steps" if config.train.steps is not None else "epochs"
            raise ValueError(
                f"cannot resume from {path}: train.{key} asks for {total} steps in all, and step {step} is reached: "
                f"raise it, or name an older checkpoint in train.resume (later ones are then set aside)"
            )
        start.finished = total == step and bool(
            runtime.gather(runtime.main and finished(folder, step, config.export.model_dump(mode="json")))[0]
        )
        if start.finished:
            return start
        # Every byte of it is as it was written; else the one before
        problem = saver.problem(path)
        if not problem:
            return start
        if resume != "auto":
            raise ValueError(f"{problem}; name an older one in train.resume")
        given_up.append(path)
        say(f"{problem}: going back to an older checkpoint")


def _next(folder: Path, resume: str, given_up: list[Path]) -> tuple[Path, dict[str, Any], list[str], bool] | None:
    """(checkpoint, its state, what was found damaged on the way, whether its evaluation was noted), on rank 0: as far
    as small files show."""
    checkpoints = folder / "checkpoints"
    if resume == "never":
        return None
    if resume != "auto":
        path = find(checkpoints, resume)
        assert path is not None
        if problem := damage(path):
            raise ValueError(f"{problem}; name an older one in train.resume")
        return path, read_info(path), [], evaluation(path) is not None
    # The newest whole one, not beyond what metrics.jsonl tells
    last, told = last_whole_step(folder)
    damaged = [] if not told or given_up else [told]
    there = present(checkpoints)
    for path in reversed(there):
        if path in given_up or (told and number(path) >= last):
            continue
        if not (problem := damage(path)):
            return path, read_info(path), damaged, evaluation(path) is not None
        damaged.append(problem)
        given_up.append(path)
    if there:
        raise ValueError(
            f"no checkpoint in {checkpoints} can be gone on from: {'; '.join(damaged) or 'all are damaged'}; "
            'train.resume = "never" sets them aside and starts anew'
        )
    if (folder / FINISHED).exists() and pending(checkpoints) is None:  # else it is yet to be set aside itself
        raise ValueError(
            f'the run in {folder} is finished, and its checkpoints are gone: train.resume = "never" sets aside what is '
            "there and starts anew"
        )
    return None


def identity_of(job: Job) -> dict[str, Any]:
    """What a checkpoint is compared by beside its settings: digests of the examples, and of the starting policy and its
    initial adapter, read by rank 0 (and remembered)."""

    def digest(model: str, folder_of: Callable[..., Path] = directory) -> str:
        parts = weight_digests(folder_of(model, weights=True), job.cache / "digests") if model else {}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24] if model else ""

    weights = job.runtime.from_main(
        lambda: {"weights": digest(job.model.path), "adapter": digest(job.model.adapter, adapter_directory)}
    )
    return {"data": job.store.digest, "mixture": [weight for _, weight in job.data.files()], **weights}


def _value(tree: dict[str, Any], key: str, default: Any = None) -> Any:
    value: Any = tree
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return default if value is not None else None
        value = value[name]
    return sorted(value) if key == "model.freeze" else value


def _told(key: str, there: Any, here: Any) -> str:
    return f"{key} was {_short(there)} and is {_short(here)}"


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
