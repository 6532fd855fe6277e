"""Labels by a real model: both orders of all pairs of an image in one packed forward, and what they mean is the plain
engine's."""

import json

import pytest

from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.engines.stage import rows
from mmfast.feedback.critique import critique, planned, verdicts
from mmfast.world.dataset import WorldSpec, write_world
from tests.make.answer_cases import captions, stage
from tests.make.prompt_models import llava


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    world = write_world(folder / "world", WorldSpec(base=4, pairs=4, groups=1, test=6))
    return llava(folder), captions(world, folder / "answers", samples=10, noise=0.7)


def compare(source, out, engine, **changes):
    return stage(critique, source, out, engine, planned(**changes))


def test_labels_of_both_orders_are_read_in_packs_and_are_the_plain_engines(made, tmp_path):
    model, source = made
    local = Local(model)
    tally = compare(source, tmp_path / "local", local, read="labels", pairs="adjacent")
    assert tally.failed == 0 and tally.rows >= 10 and local.counts["steps"] == 0
    # An image and all before it are read once for its rows, the critic's instructions once for all
    answers = {row["key"]: row for row in rows(source)}
    images = {answers[row["a"]]["images"][0] for row in rows(tmp_path / "local")}
    alone = 1200 * tally.rows  # tokens of the prompts, at the least
    assert local.counts["prefilled"] < alone / 2.5 and len(images) >= 2
    # The same verdicts and probabilities
    compare(source, tmp_path / "plain", Plain(model), read="labels", pairs="adjacent")
    both = [list(verdicts(tmp_path / name)) for name in ("local", "plain")]
    assert [(one.a, one.b) for one in both[0]] == [(one.a, one.b) for one in both[1]]
    for one, other in zip(*both, strict=True):
        assert one.p == pytest.approx(other.p, abs=1e-4) and 0 < one.p < 1
    by_pair = {(row["a"], row["b"], row["order"]): row["p"] for row in rows(tmp_path / "local")}
    assert any(abs(by_pair[a, b, "ab"] - by_pair[a, b, "ba"]) > 1e-4 for a, b, _ in by_pair), "order changes nothing"


def test_a_model_that_knows_nothing_writes_no_verdict_and_all_is_kept(made, tmp_path):
    """Three attempts each, by two seeds of the retries; started again, nothing is asked."""
    model, source = made
    changes = {"pairs": "adjacent", "order": "one", "decode": {"max_tokens": 6}}
    tally = compare(source, tmp_path / "c", Local(model), **changes)
    found = list(rows(tmp_path / "c"))
    assert len(found) == tally.rows >= 5 and tally.failed == 0
    # Chance may write a verdict; what it did not is kept
    unread = [row for row in found if row["verdict"] is None]
    assert len(unread) > len(found) / 2 and all(row["attempts"] == 3 and row["problem"] for row in unread)
    assert all(row["problem"] == "" for row in found if row not in unread)
    kept = [json.loads(line) for line in (tmp_path / "c" / "retried-0.jsonl").read_text().splitlines()]
    said = {(row["key"], row["attempt"]): row["reply"]["text"] for row in kept}
    assert len(said) == sum(row["attempts"] - 1 for row in found)
    last = {row["key"].removesuffix(".0"): row["raw"] for row in unread}
    differ = [len({said[key, 1], said[key, 2], last[key]}) for key in last]
    assert max(differ) == 3, "other seeds say the same"
    engine = Local(model)
    assert compare(source, tmp_path / "c", engine, **changes).new == 0 and engine.counts["prefilled"] == 0
