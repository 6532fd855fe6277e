"""TRL's DPOTrainer as oracle: the same tiny LLaVA, pairs, fp32, full-batch steps give the same numbers."""

import json

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmfast.job.rows import read
from mmfast.train import train
from tests.make.tiny_run import make_config, write_pairs

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS, PAIRS = 5, 4
NAMES = (
    "loss",
    "grad_norm",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def trl_curve(folder, model_path, data, loss, beta, smoothing):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["images"] = [Image.open(data.parent / name).convert("RGB") for name in row["images"]]
        for side in ("prompt", "chosen", "rejected"):
            for message in row[side]:
                if isinstance(message["content"], str):
                    message["content"] = [{"type": "text", "text": message["content"]}]
    rows = [{k: row[k] for k in ("images", "prompt", "chosen", "rejected")} for row in rows]
    model = AutoModelForImageTextToText.from_pretrained(model_path)
    model.model.vision_tower.requires_grad_(False)
    arguments = trl.DPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, fp16=False, report_to=[], seed=0,
        per_device_train_batch_size=PAIRS, gradient_accumulation_steps=1, max_steps=STEPS, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1,
        save_strategy="no", beta=beta, loss_type=[loss], label_smoothing=smoothing, max_length=None,
        gradient_checkpointing=False, optim="adamw_torch", dataloader_num_workers=0, remove_unused_columns=False,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(model_path, backend="pil"),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("loss", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("ipo", 0.1, 0.0), ("hinge", 0.1, 0.0), ("robust", 0.1, 0.1)],
)
def test_five_steps_are_trls(tiny, tmp_path, loss, beta, smoothing):
    data = write_pairs(tmp_path, PAIRS)
    theirs = trl_curve(tmp_path, tiny[0], data, loss, beta, smoothing)
    changes = {
        "train.steps": STEPS,
        "train.pairs_per_step": PAIRS,
        "objective.loss": loss,
        "objective.beta": beta,
        "objective.label_smoothing": smoothing,
    }
    train(make_config(tmp_path, tiny[0], data, **changes))
    ours = read(tmp_path / "run" / "metrics.jsonl")
    assert len(ours) == len(theirs) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        for name in NAMES:
            assert a[name] == pytest.approx(float(b[name]), rel=1e-4, abs=1e-4), (a["step"], name)
