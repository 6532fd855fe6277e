"""Combinations of settings that could not take effect, each with the message that names the fix. Checked before any
model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmfast.config import Config

PAIR_LOSSES = (
    *("sigmoid", "hinge", "ipo", "sigmoid_norm", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "orpo", "simpo", "sft", "aot", "aot_unpaired"),
)  # those of ops.preference_loss, which this file must not import; a test holds them equal
REFERENCE_FREE = ("orpo", "simpo", "sft")
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "simpo", "aot", "aot_unpaired")


def combinations(c: Config) -> list[tuple[bool, str]]:
    m, o, r, t, p, e = c.model, c.objective, c.reference, c.train, c.parallel, c.export
    losses = [o.loss, *(term.loss for term in o.terms)]
    unknown = [name for name in losses if name not in PAIR_LOSSES]
    lora = m.lora is not None
    adapts = lora or bool(m.adapter)
    sft = o.kind == "sft"
    only_free = all(name in REFERENCE_FREE for name in losses)
    eval_set = bool(c.data.eval_path)
    return [
        (bool(unknown), f"objective.loss: {unknown} is not known; the pair losses are {', '.join(PAIR_LOSSES)}"),
        (t.epochs is not None and t.steps is not None, "train.epochs and train.steps exclude each other: give one"),
        (m.quantize != "" and not lora, 'model.quantize = "nf4" freezes the base: it needs [model.lora]'),
        (m.quantize != "" and e.merge, 'export.merge cannot merge into a quantised base: set model.quantize = ""'),
        (m.cache_vision and "vision" not in m.freeze, 'model.cache_vision needs "vision" in model.freeze'),
        (lora and "language" in m.freeze, 'model.lora trains the language model: take "language" out of model.freeze'),
        (not lora and len(set(m.freeze)) == 3, "model.freeze leaves nothing to train"),
        (r.kind == "adapter-off" and not lora, 'reference.kind = "adapter-off" needs [model.lora]: use "cached"'),
        (
            r.kind == "adapter-off" and bool(m.adapter),
            'reference.kind = "adapter-off" would drop the initial adapter from the reference: use "cached"',
        ),
        (r.kind == "adapter-off" and "vision" not in m.freeze, 'reference.kind = "adapter-off" needs a frozen tower'),
        (r.kind != "cached" and bool(r.model or r.path), 'reference.model and reference.path need kind = "cached"'),
        (
            not sft and r.kind == "none" and not only_free,
            f'reference.kind = "none": the loss {o.loss!r} needs a reference (use "cached")',
        ),
        (
            not sft and r.kind != "none" and only_free,
            f'the loss {o.loss!r} reads no reference: set reference.kind = "none"',
        ),
        (sft and o.gamma != 1.0, 'objective.gamma weighs the changed segments of a pair: kind = "sft" has none'),
        (sft and bool(o.terms), 'objective.terms are pair losses: kind = "sft" has none'),
        (sft and o.sft_weight > 0, 'objective.sft_weight adds to a pair loss: kind = "sft" is that loss alone'),
        (sft and (o.compat != "" or o.divergence != ""), 'objective.compat and divergence need kind = "dpo"'),
        (sft and o.loss != "sigmoid", 'objective.loss is a pair loss: kind = "sft" minimises cross entropy alone'),
        (
            o.compat == "dgpref" and (o.gamma != 1.0 or r.kind != "cached"),
            'objective.compat = "dgpref" needs gamma = 1 and reference.kind = "cached"',
        ),
        (
            o.label_smoothing > 0 and not any(name in SMOOTHED for name in losses),
            f"objective.label_smoothing acts on {', '.join(SMOOTHED)} only",
        ),
        (
            "robust" in losses and o.label_smoothing == 0.0,
            'objective.loss = "robust" is sigmoid at label_smoothing = 0: give one above 0',
        ),
        (o.sft_average and o.sft_weight == 0, "objective.sft_average needs sft_weight above 0"),
        (bool(t.best_metric) and not eval_set, "train.best_metric needs data.eval_path"),
        (bool(t.best_metric) and not t.best_metric.startswith("eval/"), 'train.best_metric starts with "eval/"'),
        (t.eval_every > 0 and not eval_set, "train.eval_every needs data.eval_path"),
        (t.eval_samples > 0 and not eval_set, "train.eval_samples needs data.eval_path"),
        (p.shard != "hybrid" and p.shard_size > 0, 'parallel.shard_size needs shard = "hybrid"'),
        (e.merge and not adapts, "export.merge merges an adapter: there is no [model.lora]"),
        (e.merge and "hf" not in e.formats, 'export.merge acts on the "hf" format'),
        ("peft" in e.formats and not adapts, 'export.formats: "peft" needs [model.lora] or model.adapter'),
        ("llava" in e.formats and not adapts, 'export.formats: "llava" is an adapter layout: it needs [model.lora]'),
        (
            c.optim.master == "bf16-stochastic" and m.dtype != "bfloat16",
            'optim.master = "bf16-stochastic" needs model.dtype = "bfloat16"',
        ),
    ]
