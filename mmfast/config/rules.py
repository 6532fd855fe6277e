"""Settings that contradict each other, each with the message that names the fix. Checked before any model is loaded;
effects.py has the keys that would merely do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from mmfast.config.schema import Config
from mmfast.ops.kinds import KINDS, REFERENCE_FREE

PAIR_METRICS = (
    *("eval/loss", "eval/rewards/chosen", "eval/rewards/rejected", "eval/rewards/accuracies", "eval/rewards/margins"),
    *("eval/logps/chosen", "eval/logps/rejected"),
)  # what an evaluation measures; a test holds them equal to the objective's names
SFT_METRICS = ("eval/loss", "eval/nll")


def losses_of(c: Config) -> list[str]:
    """The main loss and those of the terms."""
    return [name for name, _ in c.objective.losses()]


def contradictions(c: Config) -> Iterator[str]:
    m, o, r, t, e = c.model, c.objective, c.reference, c.train, c.export
    losses = losses_of(c)
    unknown = [name for name in losses if name not in KINDS]
    lora = m.lora is not None
    sft = o.kind == "sft"
    only_free = all(name in REFERENCE_FREE for name in losses)
    metrics = SFT_METRICS if sft else PAIR_METRICS
    warmup = c.optim.warmup
    # Names, lengths, the parts that train
    if unknown:
        yield f"objective.loss: {unknown} is not known; the pair losses are {', '.join(KINDS)}"
    if t.epochs is not None and t.steps is not None:
        yield "train.epochs and train.steps exclude each other: give one"
    if lora and m.adapter:
        yield "model.adapter is trained further with its own LoRA settings: take [model.lora] out (model.lora=none)"
    if m.quantize != "" and not m.adapts:
        yield 'model.quantize = "nf4" freezes the base: it needs [model.lora]'
    if m.quantize != "" and e.merge:
        yield 'export.merge cannot merge into a quantised base: set model.quantize = ""'
    if m.cache_vision and "vision" not in m.freeze:
        yield 'model.cache_vision needs "vision" in model.freeze'
    if m.adapts and "language" in m.freeze:
        yield 'LoRA trains the language model: take "language" out of model.freeze'
    if m.adapts and "vision" not in m.freeze:
        yield 'model.freeze: beside LoRA the vision tower does not train: put "vision" into model.freeze'
    if not m.adapts and len(set(m.freeze)) == 3:
        yield "model.freeze leaves nothing to train"
    if 0 < m.max_pixels < m.min_pixels:
        yield f"model.min_pixels = {m.min_pixels} is above model.max_pixels = {m.max_pixels}"
    # Reference and objective
    if r.kind == "adapter-off" and not m.adapts:
        yield 'reference.kind = "adapter-off" needs [model.lora]: use "cached"'
    if r.kind == "adapter-off" and m.adapter:
        yield 'reference.kind = "adapter-off" would drop the initial adapter from the reference: use "cached"'
    if not sft and r.kind == "none" and not only_free:
        yield f'reference.kind = "none": the loss {o.loss!r} needs a reference (use "cached")'
    if not sft and r.kind != "none" and only_free:
        yield f'the loss {o.loss!r} reads no reference: set reference.kind = "none"'
    if o.compat == "dgpref" and o.gamma != 1.0:
        yield 'objective.compat = "dgpref" needs objective.gamma = 1'
    if o.compat == "sima" and (other := o.model_dump(exclude_defaults=True).keys() - {"beta", "compat"}):
        yield f'objective.compat = "sima" is the released loss, of which beta alone can be set: leave {min(other)} out'
    if "robust" in losses and not 0 < o.label_smoothing < 0.5:
        yield 'objective.loss = "robust" needs objective.label_smoothing above 0 (at 0 it is sigmoid) and below 0.5'
    if "exo_pair" in losses and o.label_smoothing == 0:
        yield 'objective.loss = "exo_pair" takes the logarithm of objective.label_smoothing: give one above 0, say 1e-3'
    if o.divergence == "alpha_divergence" and o.alpha is None:
        yield 'objective.divergence = "alpha_divergence" needs objective.alpha'
    if t.best_metric and t.best_metric not in metrics:
        yield f"train.best_metric = {t.best_metric!r} is not measured; these are: {', '.join(metrics)}"
    if c.evaluate.bench and not c.evaluate.data:
        yield "evaluate.bench needs evaluate.data: the folder of the benchmarks' files"
    if c.evaluate.best and c.evaluate.best.partition(".")[0] not in c.evaluate.bench:
        yield f"evaluate.best = {c.evaluate.best!r} is no metric of evaluate.bench: it is BENCHMARK.METRIC"
    if c.evaluate.best and t.best_metric:
        yield "evaluate.best and train.best_metric exclude each other: give one"
    if len(set(c.evaluate.bench)) < len(c.evaluate.bench):
        yield "evaluate.bench names a benchmark twice"
    if warmup > 1 and warmup != int(warmup):
        yield f"optim.warmup = {warmup}: below 1 it is a share of the steps, above it a whole number of steps"
    if t.steps is not None and warmup >= 1 and warmup > t.steps:
        yield f"optim.warmup = {warmup:g} steps is more than the run's {t.steps}: lower it, or give a share below 1"
    if "peft" in e.formats and not m.adapts:
        yield 'export.formats: "peft" needs [model.lora] or model.adapter'
    if c.optim.master == "bf16-stochastic" and m.dtype != "bfloat16":
        yield 'optim.master = "bf16-stochastic" needs model.dtype = "bfloat16"'
