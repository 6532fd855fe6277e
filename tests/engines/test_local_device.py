"""A decode step as a device runs it: nothing is read before the step's forward is queued, and the answers are the same.

On a meta device any read of a value raises; on a GPU torch itself counts what waits for it."""

from __future__ import annotations

import random

import pytest
import torch

from mmfast.engines import decoding, prefill
from mmfast.engines.base import Constraint, Decode
from mmfast.engines.local import Local
from mmfast.models import load
from tests.make.local_cases import answered, easy_ends, model_folder, picture, question, request, requests


def mixed(family: str) -> list:
    """Answers of every kind that a step can draw; one of the searches comes in between."""
    generator = random.Random(1)
    rows = requests(family, 14)
    for number, decode in enumerate(
        (
            Decode(temperature=1.0, max_tokens=40),
            Decode(temperature=0.7, top_p=0.8, top_k=9, min_p=0.01, max_tokens=33),
            Decode(temperature=1.2, repetition_penalty=1.3, max_tokens=20),
            Decode(repetition_penalty=1.3, max_tokens=1),
            Decode(stop=("a", "e"), max_tokens=30),
            Decode(beams=3, max_tokens=9),
        )
    ):
        n = 3 if decode.temperature else 1
        rows.insert(2 * number, request(f"kind {number}", question(generator), picture(number), n=n, decode=decode))
    choice = Constraint(choice=("yes", "no", "two red"))
    return [*rows, request("choice", "which", picture(0), decode=Decode(temperature=1.0), constraint=choice)]


@pytest.mark.parametrize(("family", "tokens"), [("llava", 0), ("qwen2_5_vl", 0), ("llava", 1100)])
def test_tokens_that_are_read_late_are_the_same(tmp_path, monkeypatch, family, tokens):
    engine, rows = Local(str(model_folder(tmp_path, family)), tokens=tokens), mixed(family)
    easy_ends(engine, [one for one in rows if one.key.startswith("row")])
    want, runs = answered(engine, rows), []

    class Early(decoding.Decoding):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.early = True
            runs.append(self)

    monkeypatch.setattr("mmfast.engines.local.Decoding", Early)
    found = answered(engine, rows)
    assert found.keys() == want.keys()
    for name, (ids, logp, finish) in want.items():
        assert (found[name][0], found[name][2]) == (ids, finish) and abs(found[name][1] - logp) < 1e-5 * len(ids), name
    # Only rows that ended before their longest ran once too often
    run, ended = runs[0], sum(finish == "stop" for _, _, finish in want.values())
    assert run.reserved == 0 and 0 < run.counts["ended"] <= ended
    assert sorted(run.free) == list(range(1, len(run.pages.lengths)))


def begun(engine: Local, family: str, count: int, device: str) -> decoding.Decoding:
    """A decoding whose answers have been prefilled, drawn ones and greedy ones."""
    decode = (Decode(temperature=0.8, top_p=0.9, max_tokens=60), Decode(max_tokens=60))
    shown = [() if family == "llama" else (picture(n // 3),) for n in range(count)]
    asked = [request(f"{n}", "what is it", *shown[n], decode=decode[n % 2]) for n in range(count)]
    plan = prefill.plan([engine.prompts.read(one) for one in asked], engine.prompts, engine.scorer, engine.ends[0])
    with torch.no_grad():
        found = prefill.run(plan, engine.prompts.load_images(plan.pictures), engine.scorer)
    for one in found:
        one.hidden = one.hidden.to(device)
    for stack in {node.stack for one in found for node in one.nodes}:
        for name, value in vars(stack).items():
            if isinstance(value, torch.Tensor):
                setattr(stack, name, value.to(device))
        stack.keys, stack.values = ([t.to(device) for t in tensors] for tensors in (stack.keys, stack.values))
    scorer = engine.scorer if device != "meta" else load(engine.model, dtype="float32", device="meta")
    run = decoding.Decoding(scorer.eval(), 100_000, len(engine.ends))
    run.early = True
    run.waiting.extend(engine._answer(one, 0) for one in found)
    return run


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "llama"])
def test_a_step_reads_nothing_from_the_device(tmp_path, monkeypatch, family):
    """Rows come, cross pages and go; the one read of a step is what `fetch` gives."""
    engine = Local(str(model_folder(tmp_path, family)))
    run, reads = begun(engine, family, 6, "meta"), []

    def fetched(tensors):
        assert all(tensor.device.type == "meta" for tensor in tensors)
        reads.append(len(tensors[0]))
        end = engine.ends[0] if len(reads) % 20 == 0 else 5
        return lambda: ([end] + [5] * (len(tensors[0]) - 1), [-1.0] * len(tensors[0]))

    monkeypatch.setattr(decoding, "fetch", fetched)
    with torch.no_grad():
        while run.busy:
            run.step()
    assert len(reads) == 60 and min(reads) < max(reads) == 6
    with pytest.raises(NotImplementedError):  # what a read would do here
        torch.ones(1, device="meta").tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_step_waits_for_nothing_on_a_gpu(tmp_path, family):
    """Host syncs of a step: 0, but for the event behind which its tokens are read."""
    engine = Local(str(model_folder(tmp_path, family)), device="cuda", dtype="bfloat16")
    run = begun(engine, family, 8, "cuda")
    with torch.no_grad():
        run.step()
        run.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(40):  # across pages
                run.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(row.step == 42 for row in run.rows) or run.counts["ended"]
