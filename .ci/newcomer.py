"""What `make wheel-check` runs inside a bare venv that has nothing but the wheel, and its packages."""

from __future__ import annotations

import array
import json
import random
import sys


def alone() -> None:
    """Without torch: the native module is found, loads, computes, and tells of a mistake."""
    import mmfast._C as native

    # 5 6 on one side stand where 9 stands on the other
    a, b = array.array("i", [1, 2, 3, 5, 6, 3, 2, 1]), array.array("i", [1, 2, 3, 9, 3, 2, 1])
    out_a, out_b = array.array("b", [7] * 8), array.array("b", [7] * 7)
    places = [x.buffer_info()[0] for x in (a, b, out_a, out_b)]
    native.changed_segments(places[0], 8, places[1], 7, 3, False, 0, places[2], places[3])
    assert list(out_a) == [0, 0, 0, 1, 1, 0, 0, 0] and list(out_b) == [0, 0, 0, 1, 0, 0, 0], (out_a, out_b)
    for _ in range(1000):
        try:
            native.cpu_isa(1)
        except TypeError as error:
            assert "takes 0 numbers" in str(error)
    print(f"loads and computes ({native.cpu_isa()}), {'with' if native.have_cuda else 'without'} a CUDA half")


def material() -> None:
    """A model of the embedded world and pairs in TRL's format."""
    from mmfast.world.grammar import Flaws, caption
    from mmfast.world.models import tiny_model
    from mmfast.world.scenes import render, scenes

    tiny_model("llava", "model")
    asked = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
    with open("pairs.jsonl", "w") as file:
        for i, scene in enumerate(scenes(0, "train", 16)):
            render(scene).save(f"{i}.png")
            pair = caption(scene, random.Random(i), Flaws(1.0, 1.0, 1.0, 0.3, 0.3))
            row: dict = {"images": [f"{i}.png"], "prompt": [{"role": "user", "content": asked}]}
            for side, text in (("chosen", pair.truth), ("rejected", pair.text + " and more")):
                row[side] = [{"role": "assistant", "content": text}]
            file.write(json.dumps(row) + "\n")


def result() -> None:
    """An op beside torch, and what the training exported, read by transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    from mmfast.ops import linear_logprob

    x, w, y = torch.randn(4, 8), torch.randn(50, 8), torch.arange(4)
    plain = torch.log_softmax(x @ w.T, -1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(linear_logprob(x, w, y, backend="cpu"), plain, atol=1e-5)
    models = [AutoModelForImageTextToText.from_pretrained(path) for path in ("model", "run/export/hf")]
    before, after = (model.state_dict() for model in models)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    print("computes, trained and exported, torch", torch.__version__)


if __name__ == "__main__":
    {"alone": alone, "material": material, "result": result}[sys.argv[1]]()
