"""The last layer for the rows alone that are read: these are as they were, and so are all keys and values."""

import pytest
import torch

from mmfast.engines import prefill
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.models.parallelize import evaluating
from tests.make.local_cases import SHAPES, model_folder, picture, request


@pytest.mark.parametrize("family", SHAPES)
def test_the_rows_that_are_read_are_as_they_were(tmp_path, family, monkeypatch):
    engine = Local(str(model_folder(tmp_path, family, layers=4)))  # the first of Qwen3-VL's have deepstack's addends
    engine.scorer.last_layer.trusted = True  # an unlisted model is, once it has been proved
    shown = () if family == "llama" else (picture(0),)
    asks = [
        request(f"{n}", f"what is it {n}", *shown, n=n % 2, labels=("yes", "two red"), decode=Decode(max_tokens=2))
        for n in range(5)
    ]
    plan = prefill.plan([engine.prompts.read(one) for one in asks], engine.prompts, engine.scorer, engine.ends[0])
    images = engine.scorer.adapter.prepare(engine.prompts.load_images(plan.pictures))
    pack = prefill.replace(plan.pack, images=images).to(engine.scorer.device)
    rows = prefill.read_of(pack.rows, len(pack.tokens))
    assert 4 <= len(rows) < len(pack.tokens) / 2 and set(pack.rows.tolist()) <= set(rows.tolist())
    whole, few = {}, {}
    seen = []
    last = engine.scorer.adapter.layers(engine.scorer.model)[-1]
    forward = last.mlp.forward
    monkeypatch.setattr(last.mlp, "forward", lambda given: seen.append(given.shape[-2]) or forward(given))
    with evaluating(engine.scorer):
        want = engine.scorer.hidden_states(pack, whole)
        found = engine.scorer.hidden_states(pack, few, rows)
        again = engine.scorer.hidden_states(pack)
    assert torch.equal(found[rows], want[rows]) or torch.allclose(found[rows], want[rows], atol=1e-6)
    assert all(torch.equal(a, b) for n in whole for a, b in zip(whole[n], few[n], strict=True))
    assert torch.equal(again, want), "a hook was left behind"
    narrowed = family != "qwen"  # whose queries, keys and values are one projection: its last layer runs whole
    assert seen == [len(pack.tokens), len(rows) if narrowed else len(pack.tokens), len(pack.tokens)]


def test_a_few_rows_are_filled_up_so_that_bits_depend_on_no_mates():
    assert prefill.read_of(torch.tensor([5, 5]), 20).tolist() == [5, 0, 1, 2]
    assert prefill.read_of(torch.tensor([7, 1, 3, 9, 1]), 20).tolist() == [1, 3, 7, 9]
    assert prefill.read_of(torch.tensor([1]), 2).tolist() == [1, 0]
