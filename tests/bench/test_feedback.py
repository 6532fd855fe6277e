"""bench.feedback on a tiny model: every case runs on all its sides; both sides are asked the same questions."""

from __future__ import annotations

import pytest

from bench.feedback import BATCH, CASES, Models, measured


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_case_gives_rows(monkeypatch, name):
    monkeypatch.setattr("bench.timing.gc.collect", lambda: 0)
    models = Models("tiny", 3, 2, None, numbers=(2, 3))
    for case in CASES[name](models):
        rows = list(measured(case, 1))
        assert {row["peer"] for row in rows} == set(case.peers) and all(row["rows_a_second"] > 0 for row in rows)
        by_peer = {row["peer"]: row for row in rows}
        assert by_peer[case.row]["times_row"] == by_peer[case.batch]["times_batch"] == 1
        assert BATCH in case.batch and any(peer.startswith("mmfast") for peer in case.peers)


def test_both_sides_score_the_same_answers():
    models = Models("tiny", 3, 1, None, numbers=(3,))
    asked = [models.finished(answer, 0) for answer in models.answers(0, 3)]
    found = {reply.key: reply.logp for reply in models.ours(asked)}
    assert models.scored(asked) == pytest.approx([found[one.key] for one in asked], abs=1e-3)
