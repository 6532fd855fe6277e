"""TRL's own collator for pairs with images, on the same rows: the same ids, the same scored tokens."""

import json

import numpy as np
import pytest
from PIL import Image

from mmfast.data.build import build
from mmfast.data.settings import DataSettings
from mmfast.world.models import SIZES, tiny_image_processor, tiny_processor, tiny_tokenizer

ROWS = [
    {"prompt": "What is this?", "chosen": "A red circle.", "rejected": "A blue square, I think."},
    {"prompt": "How many circles are there?", "chosen": "Two.", "rejected": "Three of them."},
]


@pytest.mark.filterwarnings("ignore")
def test_ids_and_masks_are_trls(tmp_path, picture):
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    tokenizer, images = tiny_tokenizer("llava"), tiny_image_processor("llava", SIZES["tiny"])
    processor = tiny_processor("llava", tokenizer, images, SIZES["tiny"])
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids("<image>")
    vision = {"model_type": "clip_vision_model", "image_size": 84, "patch_size": 14}
    config = {"model_type": "llava", "image_token_index": token, "vision_config": vision, "image_seq_length": 36,
              "vision_feature_select_strategy": "default", "text_config": {"model_type": "llama"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    picture("a.png")
    rows, theirs = [], []
    for row in ROWS:
        sides = {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in row.items()}
        rows.append(sides | {"images": ["a.png"]})
        theirs.append(sides | {"images": [Image.open(tmp_path / "a.png")]})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    store = build(DataSettings(path=str(tmp_path / "p.jsonl"), workers=1), folder, tmp_path / "c", progress=False,
                  report_to=lambda text: None)  # fmt: skip
    batch = trl.DataCollatorForVisionPreference(processor, max_length=None)(theirs)
    n = len(ROWS)
    for i, example in enumerate(store):
        for row, branch in ((i, example.chosen), (n + i, example.rejected)):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].numpy()
            scored = batch["completion_mask"][row][batch["attention_mask"][row].bool()].numpy().astype(bool)
            counts = np.where(branch.ids == token, store.images[branch.images[0]].tokens, 1)
            ours = np.zeros(len(branch.ids), bool)
            for a, b in branch.spans:
                ours[a:b] = True
            assert np.repeat(branch.ids, counts).tolist() == ids.tolist()
            assert np.repeat(ours, counts).tolist() == scored.tolist()
