"""An objective of your own, in the trainer: a hinge on the mean log-prob of a response's tokens, without a reference.

A pair whose chosen side is ahead by the margin adds nothing any more, so the policy drifts no further on what it ranks
already; long answers are not favoured; and as it reads no reference log-probs, none are computed. The trainer does all
the rest: trees, ranks, resume, evaluation, metrics.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mmfast.config import build
from mmfast.packing import Pack
from mmfast.train import train
from mmfast.training.objective import Objective
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.models import tiny_model


class Ranking(Objective):
    """max(0, margin - (mean log-prob of the chosen response - mean log-prob of the rejected one))."""

    names = ("loss", "rewards/accuracies", "rewards/margins", "pairs")

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, logps: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        values = logps[pack.index] * pack.weights  # of every response's tokens, one response after another
        means = torch.segment_reduce(values, "mean", lengths=pack.responses.diff().long(), unsafe=True)
        ahead = means[pack.pairs[:, 0]] - means[pack.pairs[:, 1]]
        losses = (self.margin - ahead).clamp_min(0)
        if pack.pair_weights is not None:
            losses = losses * pack.pair_weights
        loss = losses.sum() / pack.normaliser  # the pairs of the whole step, so that packing changes nothing
        with torch.no_grad():
            columns = torch.stack([(ahead > 0).to(ahead.dtype), ahead, torch.ones_like(ahead)])
            sums = torch.cat([loss.reshape(1), columns.sum(1)]).double()
        return loss, sums

    def averages(self, sums: list[float], steps: int) -> dict[str, float]:
        loss, right, ahead, pairs = sums
        return {"loss": loss / steps, "rewards/accuracies": right / pairs, "rewards/margins": ahead / pairs}


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    write_world(folder, WorldSpec(base=0, pairs=12, groups=0, test=0))
    model = {"path": str(tiny_model("llava", folder / "model")), "dtype": "float32"}
    data = {"path": str(folder / "pairs.jsonl"), "workers": 0}
    steps = {"pairs_per_step": 4, "tokens_per_pack": 512, "steps": 4}
    tree = {"output_dir": str(folder / "run"), "model": model, "data": data, "train": steps, "optim": {"lr": 1e-3}}
    train(build(tree | {"export": {"formats": []}}), objective=Ranking(margin=0.5))
    print((folder / "run" / "metrics.jsonl").read_text())
