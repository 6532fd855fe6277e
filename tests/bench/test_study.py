"""bench.study: its pairs hold what they are named for, and wrong claims are told apart by what taught them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from bench import study
from mmfast.evals.world import score
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.grammar import Flaws, caption, errors, judged
from mmfast.world.scenes import scenes

SPEC = WorldSpec(seed=3, base=30, pairs=90, groups=1, group_size=2, test=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("w") / "world", SPEC)


def test_pairs_of_relations_and_words_hold_nothing_else(world):
    shown = {scene.name: scene for scene in read_scenes(world, "train")}
    kept, whole = study.room(world, SPEC, world), study.room_all(world, SPEC, world)
    assert 10 < len(kept) < 70 and [a["id"] for a in kept] == [b["id"] for b in whole]
    for some, all_of in zip(kept, whole, strict=True):
        scene = shown[Path(some["images"][0]).stem]
        wrong = errors(study.said(some, "rejected"), scene)
        assert sum(wrong.values()) == wrong["relation"] + wrong["word"] > 0
        assert not any(errors(study.said(some, "chosen"), scene).values())
        assert study.said(some, "chosen") == study.said(all_of, "chosen")
    others = study.some(world, SPEC, world)
    assert len(others) == len(kept) and {r["id"] for r in others} != {r["id"] for r in kept}


def test_own_answers_are_corrected(world, monkeypatch):
    def speaks(model, shown, *, prompt):
        rng = random.Random(prompt)
        return [caption(s, rng, Flaws(), both=True).text if n % 5 else "What?" for n, s in enumerate(shown)]

    monkeypatch.setattr(study, "greedy_captions", speaks)
    shown = {scene.name: scene for scene in read_scenes(world, "train")}
    kept = study.own(world, SPEC, world)
    assert 20 < len(kept) < 90
    for one in kept:
        scene = shown[Path(one["images"][0]).stem]
        assert any(errors(study.said(one, "rejected"), scene).values())
        assert not any(errors(study.said(one, "chosen"), scene).values())


def test_every_wrong_claim_of_the_worlds_own_captions_is_by_the_flaw():
    shown = list(scenes(9, "test", 300))
    texts = [caption(scene, random.Random(n), Flaws(), both=n % 2 == 0).text for n, scene in enumerate(shown)]
    told = score(texts, shown)
    # Where a thing and its partner's twin are both exchanged, the judge reads another kind of fault
    for kind, number in study.by_the_flaw(texts, shown).items():
        assert 0.95 * told.claims[kind][0] <= number <= told.claims[kind][0], kind
    by = study.by_shape(texts, shown)
    for kind, of in by.items():
        assert [sum(column) for column in zip(*of.values(), strict=True)] == list(told.claims[kind])
    assert all(by["count"][shape][0] == 0 for shape in ("star", "circle")) and by["count"]["cross"][0] > 20
    assert by["relation"].keys() == by["word"].keys() == {"circle", "square", "triangle"}
    wrong = "The image shows one red star."
    seen = [scene for scene in shown if judged(wrong, scene)["object"][0]]
    assert not any(study.by_the_flaw([wrong] * len(seen), seen).values())


def test_changes_are_of_the_share_of_wrong_claims():
    shown = list(scenes(9, "test", 120))
    flawed = [caption(scene, random.Random(n), Flaws()).text for n, scene in enumerate(shown)]
    before = score(flawed, shown)
    after = score([caption(scene, random.Random(n), Flaws.none()).text for n, scene in enumerate(shown)], shown)
    assert all(values == [0, 0, 0] for values in study.change(before, before).values())
    for kind, (by, low, high) in study.change(before, after).items():
        wrong, claimed = before.claims[kind]
        assert by == pytest.approx(-wrong / claimed) and low <= by <= high <= 0 and low < by
    assert np.isfinite(list(study.change(after, before).values())).all()


def test_a_finished_run_is_kept_and_one_of_other_settings_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "greedy_captions", lambda model, shown: [f"{model} {len(shown)}"])
    made: list[str] = []

    def model(name):
        return lambda: made.append(name) or name

    for run, name in (({"lr": 1}, "a"), ({"lr": 1}, "b"), ({"lr": 2}, "c")):
        found, cost = study.captions(tmp_path / "run", run, model(name), [])
    assert made == ["a", "c"] and found == ["c 0"] and cost >= 0


def test_every_control_is_a_run_on_the_same_pairs_or_their_pictures():
    for run in study.RUNS.values():
        if run.control:
            other = study.RUNS[run.control]
            same = other.pairs == run.pairs or {run.pairs, other.pairs} == {"room", "room_all"}  # one set of truths
            assert same and not other.control and (other.blind or other.settings["kind"] == "sft")
