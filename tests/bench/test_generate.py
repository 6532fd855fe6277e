"""bench.generate on a tiny model: all sides run and give rows; it does not leave the engine's attention timed."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

from bench.generate import Bench, answers, lengths, prefills, steps
from mmfast.engines import decode_attention


@pytest.mark.slow
def test_every_part_gives_rows(monkeypatch):
    monkeypatch.setattr("bench.timing.gc.collect", lambda: 0)
    bench = Bench("tiny", 4, 2)
    rows = [*answers(bench, 1), *prefills(bench, 1), *steps(bench, 1)]
    rows += lengths(Bench("tiny", 4, 1), 1)
    assert rows[-1]["waste"] < 0.05 and len(rows) == 12 + 1 + 3 + 3 and all(row["best_s"] > 0 for row in rows)
    assert AttentionInterface()[decode_attention.NAME] is decode_attention.attend
    asked = [bench.request(0, "what is it")]
    (reply,) = bench.ours(asked)
    tokens = bench.theirs(asked, do_sample=False)[0, -4:]
    assert reply.text == bench.engine._text(tokens.tolist()).strip() and torch.is_tensor(tokens)
