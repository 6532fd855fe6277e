"""bench.evals on a tiny model: every peer answers and every score is made."""

from __future__ import annotations

import pytest

from bench.evals import answers_to, asked, scores
from bench.generate import Bench
from tests.make.eval_cases import write_pope


@pytest.mark.slow
def test_every_part_gives_rows(monkeypatch):
    monkeypatch.setattr("bench.timing.gc.collect", lambda: 0)
    rows = [*asked(Bench("tiny", 2, 2), 1), *scores("", 1)]
    assert len(rows) == 8 + 1 and all(row["best_s"] > 0 for row in rows)
    assert rows[-1]["shape"] == "pope: 9000 answers"


def test_made_up_answers_fit_the_questions(tmp_path):
    folder, _ = write_pope(tmp_path)
    answers = answers_to("pope", folder)
    assert len(answers) == 24 and {one.text for one in answers.values()} == {"Yes", "No"}
