"""The example of docs/ops/linear_preference_loss.md, run as printed: TRL's losses, head and loss replaced by ours."""

import re

import pytest
import torch
from torch.nn import functional as F

from mmfast.ops import linear_logprob, linear_preference_loss
from tests.ops.test_preference_trainer import PAGE, losses

trl = pytest.importorskip("trl")


def test_trl_with_our_head_and_loss_gives_the_same_losses(tmp_path):
    text = PAGE.with_name("linear_preference_loss.md").read_text()
    names = {
        "DPOTrainer": trl.DPOTrainer,
        "torch": torch,
        "F": F,
        "linear_logprob": linear_logprob,
        "linear_preference_loss": linear_preference_loss,
    }
    exec(re.search(r"```python\n(class Trainer.*?)```", text, re.S).group(1), names)
    theirs = losses(trl.DPOTrainer, tmp_path / "trl", "sigmoid")
    ours = losses(names["Trainer"], tmp_path / "ours", "sigmoid")
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-4)


def test_the_head_example_picks_the_right_rows():
    """docs/ops/linear_logprob.md: its rows and targets against full logits."""
    text = PAGE.with_name("linear_logprob.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    torch.manual_seed(0)
    hidden, table = torch.randn(3, 7, 5), torch.nn.Linear(5, 11, bias=False)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :4] = labels[1, :2] = labels[2, 5:] = -100

    class Model:
        lm_head = table

        @staticmethod
        def model(ids, attention_mask):
            return type("Out", (), {"last_hidden_state": hidden})

    names = {"torch": torch, "model": Model, "labels": labels, "input_ids": None, "mask": None}
    exec(code, names)
    full = torch.log_softmax(table(hidden)[:, :-1], -1)
    keep = labels[:, 1:] != -100
    want = full.gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0][keep]
    assert torch.allclose(names["logp"], want, atol=1e-5)
