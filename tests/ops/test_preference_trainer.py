"""The example of docs/ops/preference_loss.md, run as printed: TRL's DPOTrainer with our loss gives the same losses."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmfast.ops.preference import preference_loss
from mmfast.world.models import build

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
PAGE = Path(__file__).parents[2] / "docs" / "ops" / "preference_loss.md"


def example() -> type:
    code = re.search(r"```python\n(class Trainer.*?)```", PAGE.read_text(), re.S).group(1)
    names = {"DPOTrainer": trl.DPOTrainer, "torch": torch, "F": F, "preference_loss": preference_loss}
    exec(code, names)
    return names["Trainer"]


def losses(trainer: type, folder: Path, kind: str) -> list[float]:
    model, tokenizer, *_ = build("llama", seed=0)
    reference, *_ = build("llama", seed=1)  # another model, so that margins are not zero
    rows = [{"prompt": f"Say {w}.", "chosen": f" {w} it is, {w}.", "rejected": f" no {w}"} for w in ("red", "blue") * 4]
    arguments = trl.DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=2, logging_steps=1, learning_rate=1e-3,
        report_to=[], use_cpu=True, bf16=False, loss_type=[kind], save_strategy="no", seed=3, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    run = trainer(model=model, ref_model=reference, args=arguments, processing_class=tokenizer,
                  train_dataset=datasets.Dataset.from_list(rows))  # fmt: skip
    run.train()
    return [x["loss"] for x in run.state.log_history if "loss" in x]


@pytest.mark.parametrize("kind", ["sigmoid", pytest.param("apo_down", marks=pytest.mark.slow)])
def test_trl_with_our_loss_gives_the_same_losses(tmp_path, kind):
    theirs = losses(trl.DPOTrainer, tmp_path / "trl", kind)
    ours = losses(example(), tmp_path / "ours", kind)
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-4) and ours[0] != pytest.approx(0.6931, abs=1e-3)
