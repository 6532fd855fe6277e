"""Beam search is transformers', beside other rows and within a budget."""

from __future__ import annotations

import random

import pytest

from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from tests.engines.test_local_labels import plain_logp
from tests.make.local_cases import SHAPES, answered, easy_ends, model_folder, picture, question, request, twin


@pytest.mark.parametrize("family", SHAPES)
def test_beams_are_generates(tmp_path, family):
    """Three beams and others, length penalties of either sign, answers that cross pages and end at different steps,
    beside rows that are drawn."""
    engine, generator = Local(str(model_folder(tmp_path, family))), random.Random(0)
    shown = (lambda n: ()) if family == "llama" else (lambda n: (picture(n // 2),))
    settings = [
        Decode(beams=3, max_tokens=45),
        Decode(beams=3, max_tokens=70, length_penalty=2.0),
        Decode(beams=2, max_tokens=12, length_penalty=-1.0),
        Decode(beams=5, max_tokens=20, length_penalty=0.0),
        Decode(beams=3, max_tokens=30, repetition_penalty=1.2),
    ]
    rows = [request(f"{n}", question(generator), *shown(n), decode=settings[n % 5]) for n in range(10)]
    greedy = [request(f"greedy {n}", question(generator), *shown(n), decode=Decode(max_tokens=30)) for n in range(4)]
    easy_ends(engine, rows)
    found = answered(engine, [rows[0], *greedy, *rows[1:]])
    lengths = set()
    for one in rows:
        d = one.decode
        penalty = {"repetition_penalty": d.repetition_penalty} if d.repetition_penalty != 1 else {}
        want = twin(engine, one, num_beams=d.beams, length_penalty=d.length_penalty, **penalty)
        tokens, logp, _ = found[one.key, 0]
        assert tokens == want, (one.key, d)
        lengths.add(len(want))
        if engine.prompts.image_id not in tokens:
            assert abs(logp - plain_logp(engine, one, tokens)) < 1e-5 * len(tokens)
    assert len(lengths) > 3
    assert all(found[one.key, 0][0] == twin(engine, one) for one in greedy)


def test_pages_are_given_back(tmp_path):
    """Beams share whole pages, and what they held is free again after each answer."""
    engine = Local(str(model_folder(tmp_path, "llava")), tokens=800)
    rows = [
        request(f"{n}", "what is the red star", picture(n), decode=Decode(beams=3, max_tokens=70)) for n in range(6)
    ]
    runs = []
    from mmfast.engines import decoding

    class Watched(decoding.Decoding):
        def step(self):
            done = super().step()
            used = [page for row in self.rows for page in row.pages]
            assert len(set(used)) * decoding.PAGE <= self.reserved * decoding.PAGE <= 800
            assert len(set(used)) + len(self.free) + 1 == len(self.pages.lengths) and not set(used) & set(self.free)
            runs.append(self)
            return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.engines.local.Decoding", Watched)
        found = answered(engine, rows)
    assert len(found) == 6 and runs[-1].reserved == 0
    for one in rows[:2]:
        assert found[one.key, 0][0] == twin(engine, one, num_beams=3)
