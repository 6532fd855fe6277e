"""Settings that contradict each other, each with the message that names the fix. Checked before any model is loaded;
effects.py has the keys that would merely do nothing."""

from __future__ import annotations

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


def combinations(c: Config) -> list[tuple[bool, str]]:
    m, o, r, t, e = c.model, c.objective, c.reference, c.train, c.export
    losses = losses_of(c)
    unknown = [name for name in losses if name not in KINDS]
    lora = m.lora is not None
    sft = o.kind == "sft"
    only_free = all(name in REFERENCE_FREE for name in losses)
    metrics = SFT_METRICS if sft else PAIR_METRICS
    warmup = c.optim.warmup
    return [
        (bool(unknown), f"objective.loss: {unknown} is not known; the pair losses are {', '.join(KINDS)}"),
        (t.epochs is not None and t.steps is not None, "train.epochs and train.steps exclude each other: give one"),
        (
            lora and bool(m.adapter),
            "model.adapter is trained further with its own LoRA settings: take [model.lora] out (model.lora=none)",
        ),
        (m.quantize != "" and not m.adapts, 'model.quantize = "nf4" freezes the base: it needs [model.lora]'),
        (m.quantize != "" and e.merge, 'export.merge cannot merge into a quantised base: set model.quantize = ""'),
        (m.cache_vision and "vision" not in m.freeze, 'model.cache_vision needs "vision" in model.freeze'),
        (
            m.adapts and "language" in m.freeze,
            'LoRA trains the language model: take "language" out of model.freeze',
        ),
        (
            m.adapts and "vision" not in m.freeze,
            'model.freeze: beside LoRA the vision tower does not train: put "vision" into model.freeze',
        ),
        (not m.adapts and len(set(m.freeze)) == 3, "model.freeze leaves nothing to train"),
        (
            0 < m.max_pixels < m.min_pixels,
            f"model.min_pixels = {m.min_pixels} is above model.max_pixels = {m.max_pixels}",
        ),
        (r.kind == "adapter-off" and not m.adapts, 'reference.kind = "adapter-off" needs [model.lora]: use "cached"'),
        (
            r.kind == "adapter-off" and bool(m.adapter),
            'reference.kind = "adapter-off" would drop the initial adapter from the reference: use "cached"',
        ),
        (
            not sft and r.kind == "none" and not only_free,
            f'reference.kind = "none": the loss {o.loss!r} needs a reference (use "cached")',
        ),
        (
            not sft and r.kind != "none" and only_free,
            f'the loss {o.loss!r} reads no reference: set reference.kind = "none"',
        ),
        (o.compat == "dgpref" and o.gamma != 1.0, 'objective.compat = "dgpref" needs objective.gamma = 1'),
        (
            "robust" in losses and not 0 < o.label_smoothing < 0.5,
            'objective.loss = "robust" needs objective.label_smoothing above 0 (at 0 it is sigmoid) and below 0.5',
        ),
        (
            "exo_pair" in losses and o.label_smoothing == 0,
            'objective.loss = "exo_pair" takes the logarithm of objective.label_smoothing: give one above 0, say 1e-3',
        ),
        (
            o.divergence == "alpha_divergence" and o.alpha is None,
            'objective.divergence = "alpha_divergence" needs objective.alpha',
        ),
        (
            bool(t.best_metric) and t.best_metric not in metrics,
            f"train.best_metric = {t.best_metric!r} is not measured; these are: {', '.join(metrics)}",
        ),
        (
            warmup > 1 and warmup != int(warmup),
            f"optim.warmup = {warmup}: below 1 it is a share of the steps, above it a whole number of steps",
        ),
        (
            t.steps is not None and warmup >= 1 and warmup > t.steps,
            f"optim.warmup = {warmup:g} steps is more than the run's {t.steps}: lower it, or give a share below 1",
        ),
        ("peft" in e.formats and not m.adapts, 'export.formats: "peft" needs [model.lora] or model.adapter'),
        (
            "llava" in e.formats and not m.adapts,
            'export.formats: "llava" is an adapter layout: it needs [model.lora] or model.adapter',
        ),
        (
            c.optim.master == "bf16-stochastic" and m.dtype != "bfloat16",
            'optim.master = "bf16-stochastic" needs model.dtype = "bfloat16"',
        ),
    ]
