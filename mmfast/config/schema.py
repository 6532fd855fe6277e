"""Every key of a run, with its docstring (docs/config.md is made of them); toml.py reads and writes it.

A key that is not known raises and names the nearest one. A combination that cannot take effect raises before any model
is loaded. The resolved config lies beside the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mmfast.ops.kinds import SORTING


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_assignment=True, allow_inf_nan=False
    )


def _names(value: Any) -> Any:
    """One name, or several joined by commas, where a list is asked for."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = BeforeValidator(_names)


class Lora(Section):
    r: int = Field(64, gt=0)
    """Rank."""
    alpha: float = Field(128, gt=0)
    """Scale: alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input. The reference is always computed without it."""
    targets: str = Field("language-linear", min_length=1)
    """"language-linear": all of the language model but the head; or ends of names between commas: attn.c_proj,w1."""


class Model(Section):
    path: str = ""
    """Directory or hub id of the starting policy."""
    adapter: str = ""
    """An initial LoRA adapter (peft layout); the reference includes it."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the forward pass; masters are fp32 with either. "float32" trains in fp32 throughout."""
    attention: Literal["auto", "flash2", "flash3", "flash4", "varlen", "xformers", "cpu", "loop"] = "auto"
    """Backend of the tree attention: "auto", flash2, flash3, flash4, varlen, xformers, cpu, loop."""
    quantize: Literal["", "nf4"] = ""
    """"nf4": the frozen base in 4 bits (QLoRA); needs lora."""
    freeze: Annotated[list[Literal["vision", "projector", "language"]], Names] = ["vision"]
    """Parts that do not train. "projector" stands for mergers and newline embeddings too."""
    cache_vision: bool = False
    """Read the frozen tower's features from disk, made once."""
    min_pixels: int = Field(0, ge=0)
    """Smallest image area of a processor that resizes freely; 0: the processor's own."""
    max_pixels: int = Field(0, ge=0)
    """Largest image area; 0: the processor's own."""
    lora: Lora | None = None
    """Train a LoRA adapter: language base, embeddings and head are frozen; the projector trains unless in freeze."""

    @property
    def adapts(self) -> bool:
        """Whether LoRA is trained: a fresh adapter's or an initial one's."""
        return self.lora is not None or bool(self.adapter)


class Source(Section):
    path: str
    """A file or directory of examples."""
    weight: float = Field(1.0, gt=0)
    """How often its rows are drawn, relative to the other sources."""


class Data(Section):
    path: str | list[Source] = ""
    """A file, a directory, a pattern ("train-*.parquet"), a hub id ("owner/name"), or a list of { path, weight }."""
    split: str = ""
    """Which one of a directory or hub id that holds several: train, test, ..."""
    subset: str = ""
    """Which one of a hub id that holds several: its name in the data set's card, or a folder."""
    revision: str = ""
    """Of a hub id: a branch, a tag or a commit; default: the commit that data.cache saw first."""
    format: Literal[
        "auto", "trl", "llava", "mllm_dpo", "sima", "rlhfv", "rlaifv", "dgpref", "swift", "alpaca", "hh"
    ] = "auto"
    """"auto" or trl, llava, mllm_dpo, sima, rlhfv, rlaifv, dgpref, swift, alpaca, hh."""
    images: str = ""
    """Root of relative image paths; default: beside the file."""
    aspect: Literal["auto", "pad", "square", "crop", "anyres", "native"] = "auto"
    """"auto" (the processor's own), "pad", "square", "crop", "anyres", "native" (any size)."""
    template: Literal[
        "auto",
        "vicuna_v1",
        "rlaifv",
        "llava_v0",
        "muffin",
        "muffin_compat",
        "muffin_ask",
        "dgpref_llava",
        "dgpref_qwen",
        "chatml",
    ] = "auto"
    """"auto": the model's chat template; or a named one of a published system."""
    turns: Literal["last", "all"] = "last"
    """Which answers of a conversation are scored."""
    max_length: int = Field(4096, gt=0)
    """Longest example in tokens, image tokens included."""
    max_words: int = Field(0, ge=0)
    """Cut answers to so many words (0: never), as DGPref does."""
    truncate: Literal["never", "response"] = "never"
    """What to do with an example over max_length: an error, or cut the response. Image tokens are never cut."""
    on_error: Literal["raise", "drop"] = "raise"
    """What to do with a bad row; dropped rows are counted and reported."""
    limit: int = Field(0, ge=0)
    """Use only the first rows; 0: all."""
    eval_path: str = ""
    """Held-out examples, same format."""
    eval_split: str = ""
    """Of data.eval_path, as data.split."""
    workers: int = Field(2, ge=0)
    """Processes that build packs; 0: in the training process."""
    cache: str = ""
    """Where built examples lie; default: .cache beside output_dir."""
    options: dict[str, str | int | float | bool] = {}
    """Options of the reader (docs/formats.md)."""


class Reference(Section):
    kind: Literal["cached", "adapter-off", "none"] = "cached"
    """"cached": log-probs computed once and kept on disk; "adapter-off": the LoRA base each step; "none"."""
    model: str = ""
    """The reference model; default: the starting policy."""
    path: str = ""
    """The cache; default: .cache/reference/<manifest hash> beside output_dir."""
    check: int = Field(8, ge=0)
    """How many cached examples of each data set a fresh run scores again before it trusts the cache."""
    tolerance: float = Field(0.0, ge=0)
    """Largest distance of a re-scored response in nat; 0: 1e-4 in float32, 0.3 in bfloat16, x tokens / 64 above 64."""


class Term(Section):
    loss: str
    """Name of a pair loss."""
    weight: float = Field(gt=0)
    """Its factor in the sum; the main loss has 1."""


class Objective(Section):
    kind: Literal["dpo", "sft"] = "dpo"
    """"dpo": pairs, any pair loss; "sft": cross entropy of the responses (also rejection sampling and SteerLM)."""
    loss: str = "sigmoid"
    """The pair loss."""
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the implicit reward."""
    gamma: float = Field(1.0, gt=0)
    """Weight of changed segments; above 1 is DDPO."""
    segments: Literal["clean", "compat", "record"] = "clean"
    """Which tokens are changed: our matcher, RLHF-V's to the bit ("compat"), or spans given in the data ("record")."""
    average: bool = False
    """Mean log-prob per (weighted) token instead of the sum."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Chance that a pair is labelled the wrong way round."""
    sft_weight: float = Field(0.0, ge=0)
    """Adds -w S(chosen) a pair: DPO and SFT in one."""
    sft_average: bool = False
    """The SFT term per token instead of summed."""
    terms: list[Term] = []
    """More pair losses with weights (MPO)."""
    divergence: Literal["", "forward_kl", "js_divergence", "alpha_divergence"] = ""
    """f-divergence in place of the reverse KL."""
    alpha: float | None = None
    """Parameter of alpha_divergence, which needs it."""
    ld_alpha: float = Field(1.0, ge=0, le=1)
    """LD-DPO: weight of what a response has beyond the shorter one's length; 1: off."""
    tau: float | None = Field(None, gt=0)
    """Temperature of discopop."""
    simpo_margin: float | None = Field(None, ge=0)
    """Target margin of simpo, in units of beta."""
    compat: Literal["", "dgpref", "sima"] = ""
    """"dgpref": its swapped reference (average for summed, sum for averaged). "sima": its released runner-up loss."""

    def losses(self) -> list[tuple[str, float]]:
        """The main loss, then those of the terms, with their factors."""
        return [(self.loss, 1.0), *((term.loss, term.weight) for term in self.terms)]

    @property
    def whole_step(self) -> bool:
        """Whether a loss sorts over the step, which one pack must then hold."""
        return self.kind == "dpo" and any(name in SORTING for name, _ in self.losses())


class Optim(Section):
    name: Literal["adamw", "adamw8bit"] = "adamw"
    """Optimiser; "adamw8bit" is torchao's."""
    lr: float = Field(5e-7, gt=0)
    """Peak learning rate."""
    projector_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the projector; absent: lr."""
    vision_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the vision tower; absent: lr."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    master: Literal["fp32", "bf16-stochastic"] = "fp32"
    """"bf16-stochastic": bf16 parameters rounded stochastically, half the state (torchao)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after the warm-up. "wsd": constant, then linear decay over the last decay_share of the steps."""
    decay_share: float = Field(0.1, gt=0, le=1)
    """Share of the steps in which wsd decays."""
    min_lr: float = Field(0.0, ge=0, le=1)
    """Where the schedule ends, as a share of the peak."""
    warmup: float = Field(0.03, ge=0)
    """Linear warm-up: below 1 a share of the steps, else steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled; norms, biases and embeddings have none."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient; 0: not clipped (still measured)."""


class Train(Section):
    epochs: float | None = Field(None, gt=0)
    """Passes over the data (default 3, unless steps is given)."""
    steps: int | None = Field(None, gt=0)
    """Optimiser steps; both is an error."""
    pairs_per_step: int = Field(128, gt=0)
    """Pairs (examples for sft) of an optimiser step over all ranks."""
    tokens_per_pack: int = Field(16384, gt=0)
    """Tokens of a pack: the memory dial. It changes no result."""
    shuffle: Literal["groups", "pairs", "none"] = "groups"
    """"groups" keeps pairs that share an image together, for the tree; "pairs" is the plain shuffle; "none"."""
    drop_last: bool = False
    """Drop the last, smaller step of an epoch instead of taking it."""
    resume: str = "auto"
    """"auto": the newest whole checkpoint; "never" or a checkpoint's directory: what lies beyond is set aside."""
    checkpoint_every: int = Field(200, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = Field(3, ge=1)
    """Checkpoints kept beside the best one."""
    best_metric: str = ""
    """Keep the best checkpoint by this eval metric: "eval/loss" (smallest), "eval/rewards/accuracies" (largest), ..."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations on data.eval_path; 0: only at the end."""
    eval_samples: int = Field(0, ge=0)
    """Answers generated before the first step and at each evaluation, for the report and the trackers."""
    eval_tokens: int = Field(128, gt=0)
    """Longest generated answer."""
    nonfinite_limit: int = Field(3, ge=1)
    """Steps in a row that may turn non-finite before the run stops; each is skipped."""

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else max(1, round((self.epochs or 3.0) * steps_per_epoch))


class Evaluate(Section):
    bench: Annotated[list[str], Names] = []
    """Benchmarks that the model answers in the run (docs/evaluation.md); what needs a judge is scored afterwards."""
    data: str = ""
    """Their files: a folder, or one with a folder of each benchmark's name."""
    images: str = ""
    """Folder of their images; default: the data's own."""
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0: only at the end."""
    start: int = Field(0, ge=0)
    """The first step that is evaluated (DGPref's gen_start; its gen_step is every)."""
    limit: float = Field(0, ge=0)
    """Only the first so many questions of each; below 1: that share of each's images, 8 at least; 0: all."""
    best: str = ""
    """Keep the best checkpoint by this metric of a benchmark: "pope.f1"."""
    margin: bool = True
    """A later one is better only beyond chance: the paired 95% interval, over images. false: by the figure alone."""


class Parallel(Section):
    shard: Literal["full", "hybrid", "none"] = "full"
    """"full": parameters split over all ranks; "hybrid": within groups of shard_size; "none": replicated."""
    shard_size: int = Field(0, ge=0)
    """Ranks of a group in "hybrid"; 0: the ranks of a node."""
    activation_checkpointing: bool = True
    """Recompute each decoder block in backward."""
    compile: bool = False
    """torch.compile each decoder block."""
    offload: bool = False
    """Parameters and optimiser state in host memory."""
    threads: int = Field(0, ge=0)
    """torch's CPU threads a process; 0: torch's own choice. Part of what exact resume needs."""


class Log(Section):
    every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl; between them the host never waits for the device."""
    trackers: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], Names] = []
    """More places for the metrics."""
    project: str = "mmfast"
    """Project name for the trackers."""
    name: str = ""
    """Run name for the trackers; default: output_dir's."""
    progress: bool = True
    """Show the progress bar (rank 0)."""


class Export(Section):
    formats: Annotated[list[Literal["hf", "peft", "llava"]], Names] = ["hf"]
    """"hf": what from_pretrained and vLLM load; "peft": the adapter; "llava": LLaVA's native layout."""
    merge: bool = False
    """Merge the adapter into the "hf" export."""


class Config(Section):
    output_dir: str = "runs/mmfast"
    """metrics.jsonl, config.toml, checkpoints/step-N/, export/ and report.html are written here."""
    seed: int = Field(0, ge=0)
    """Of the order of the data and of dropout."""
    about: str = ""
    """What a recipe reproduces, and where its values come from."""
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    reference: Reference = Field(default_factory=Reference)
    objective: Objective = Field(default_factory=Objective)
    optim: Optim = Field(default_factory=Optim)
    train: Train = Field(default_factory=Train)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    parallel: Parallel = Field(default_factory=Parallel)
    log: Log = Field(default_factory=Log)
    export: Export = Field(default_factory=Export)

    def cache_dir(self) -> Path:
        return Path(self.data.cache) if self.data.cache else Path(self.output_dir).parent / ".cache"

    def sources(self) -> list[Source]:
        return [Source(path=self.data.path)] if isinstance(self.data.path, str) else self.data.path
