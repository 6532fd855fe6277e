"""Packs in a plain loop: DPO on a small vision-language model with mmfast's data, trees and ops, without its trainer.

docs/packing.md explains what a pack is. Here the world's pictures and captions stand in for your own JSONL.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from mmfast.data.build import build
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.settings import DataSettings
from mmfast.models import load
from mmfast.ops.preference import preference_loss
from mmfast.packing import PackLoader, Plan, PlanSettings, StepPlan
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model

folder = Path(tempfile.mkdtemp())
path = tiny_model("llava", folder / "model")
write_world(folder, WorldSpec(base=0, pairs=0, groups=3, group_size=4, test=0))
examples = build(DataSettings(path=str(folder / "groups.jsonl")), path, folder / "cache", progress=False)
images, processor = examples.images, ImageProcessor.from_model_dir(path)


def load_images(ids: list[str]) -> dict[str, torch.Tensor]:
    return processor.collate([processor.load(examples.open_image(i)) for i in ids])


def report(step: StepPlan, micro_batch: int, loss: float) -> None:
    saved = 1 - step.tokens.sum() / step.unshared_tokens
    print(
        f"epoch {step.epoch} step {step.step} micro-batch {micro_batch}: loss {loss:.4f}, {saved:.0%} of tokens shared"
    )


scorer = load(str(path), dtype="float32", freeze=["vision"])
layout = scorer.adapter.layout()
plan = Plan(examples, images, layout, PlanSettings(pairs_per_step=4, tokens_per_pack=256))

# The reference: the log-probs of every response once, under its own key
reference: dict[str, np.ndarray] = {}
for _, _, pack in PackLoader(plan, examples, images, layout, load_images=load_images).run():
    with torch.no_grad():
        logps = scorer(pack)[pack.index].numpy()
    reference |= zip(pack.response_ids, np.split(logps, pack.responses[1:-1]), strict=True)

loader = PackLoader(plan, examples, images, layout, reference=reference, load_images=load_images)
optimizer = torch.optim.AdamW([p for p in scorer.parameters() if p.requires_grad], lr=1e-3)
for step, micro_batch, pack in loader.run(0, 3 * plan.steps_per_epoch):
    entries = dict(index=pack.index, weights=pack.weights, pair_weights=pack.pair_weights, pair_count=pack.normaliser)
    out = preference_loss(scorer(pack), pack.ref_logps, pack.responses, pack.pairs, **entries)
    out.loss.backward()
    report(step, micro_batch, out.loss.item())
    if micro_batch == step.micro_batches - 1:
        optimizer.step(), optimizer.zero_grad()
