"""In the embedded world decompose finds what the grammar finds, and verdicts are the annotation's."""

import json
import random

import pytest

from mmfast.engines.recorded import Recorded
from mmfast.engines.stage import rows
from mmfast.engines.world import World
from mmfast.feedback.answers import read_answers
from mmfast.feedback.check import Verdicts
from mmfast.feedback.experts.world import kind_of
from mmfast.feedback.items import read_items
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.grammar import Claims, claims, judged
from mmfast.world.scenes import scenes
from tests.make.detectors import fit_owl, write_owl
from tests.make.feedback_cases import checked, decomposed, write_captions

NUMBERS = {"one": 1, "two": 2, "three": 3}
PLACES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=20, pairs=4, groups=1, test=40))


@pytest.fixture(scope="module")
def taken_apart(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback")
    write_captions(folder / "answers", world, read_scenes(world)[:30])
    tally = decomposed(folder / "answers", folder / "items", World(world))
    assert tally.failed == 0 and not any("replies" in name for name in tally.also)
    return folder


def claims_of(items):
    """Items as the grammar's own claims."""
    kinds = tuple(kind_of(i.args[0]) for i in items if i.kind == "object")
    counts = {kind_of(i.args[1]): NUMBERS[i.args[0]] for i in items if i.kind == "count"}
    relations = {kind_of(i.args[0]): PLACES[i.args[1]] for i in items if i.kind == "spatial"}
    words = {kind_of(i.args[1]): i.args[0] for i in items if i.kind == "text"}
    assert len(items) == len(kinds) + len(counts) + len(relations) + len(words)
    return Claims(kinds, counts, relations, words)


def test_decompose_finds_what_the_grammar_finds(taken_apart):
    answers = {answer.key: answer for answer in read_answers(taken_apart / "answers")}
    found = list(read_items(taken_apart / "items"))
    assert [one.answer_key for one in found] == list(answers)
    for one in found:
        text = answers[one.answer_key].text
        assert claims_of(one.items) == claims(text)
        for item in one.items:  # the characters that a claim came from say that claim alone
            first, end = item.span
            assert set(claims(text[first:end]).kinds) == {kind_of(name) for name in item.args if kind_of(name)}
    assert sum(len(one.items) for one in found) > 400


@pytest.mark.parametrize("preset", ["dgpref", "rlaifv"])
def test_a_recorded_world_takes_apart_what_the_world_does_also_without_it(world, taken_apart, tmp_path, preset):
    source = taken_apart / "answers"
    decomposed(source, tmp_path / "alone", World(world), preset)
    want = list(rows(tmp_path / "alone"))
    engine = Recorded(tmp_path / "replies.jsonl", World(world))
    decomposed(source, tmp_path / "both", engine, preset)
    assert checked(tmp_path / "both", tmp_path / "v", "world", engine).failed == 0
    engine.close()
    said = (tmp_path / "replies.jsonl").read_text().count('"asked"')
    texts = len({one.text for one in read_answers(source)})  # equal ones are asked about once
    assert said == 5 * texts if preset == "dgpref" else texts < said <= 2 * texts
    decomposed(source, tmp_path / "replayed", Recorded(tmp_path / "replies.jsonl"), preset)
    assert list(rows(tmp_path / "both")) == want == list(rows(tmp_path / "replayed"))
    assert (tmp_path / "replies.jsonl").read_text().count('"asked"') == said


def test_verdicts_are_the_annotation(world, taken_apart):
    tally = checked(taken_apart / "items", taken_apart / "verdicts", "world", World(world))
    assert tally.failed == 0
    scenes = {scene.name: scene for scene in read_scenes(world)}
    verdicts = Verdicts(taken_apart / "verdicts")
    answers = {answer.key: answer for answer in read_answers(taken_apart / "answers")}
    flawed = 0
    for one in read_items(taken_apart / "items"):
        answer = answers[one.answer_key]
        scene = scenes[answer.group]
        found = {}
        for item in one.items:
            row = verdicts.of(one.images, item)
            found.setdefault(item.kind, []).append(row["verdict"])
        truth = judged(answer.text, scene)
        wrong = {kind: found.get(kind, []).count(-1) for kind in ("object", "count", "spatial", "text")}
        made = {kind: sum(v in (1, -1) for v in found.get(kind, [])) for kind in wrong}
        assert wrong["object"] == truth["object"][0] + truth["colour"][0] and made["object"] == truth["object"][1]
        for kind, name in (("count", "count"), ("spatial", "relation"), ("text", "word")):
            assert (wrong[kind], made[kind]) == truth[name]
        flawed += any(wrong.values())
    assert flawed > 30


def test_each_item_of_an_image_is_checked_once(taken_apart, world):
    checked(taken_apart / "items", taken_apart / "verdicts", "world", World(world))
    said, distinct = 0, set()
    for one in read_items(taken_apart / "items"):
        said += len(one.items)
        distinct |= {(one.images, item.name) for item in one.items}
    found = list(rows(taken_apart / "verdicts"))
    assert len(found) == len(distinct) < said
    assert sum(row["answers"] for row in found) == said


def test_labels_of_an_engine_say_the_same_as_the_annotation(world, taken_apart):
    """Yes and no of the world's own questions, but for what is said of things that are not there."""
    checked(taken_apart / "items", taken_apart / "verdicts", "world", World(world))
    tally = checked(taken_apart / "items", taken_apart / "asked", "asked", World(world))
    assert tally.failed == 0
    other = {(row["image"], row["kind"], *row["args"]): row for row in rows(taken_apart / "asked")}
    for row in rows(taken_apart / "verdicts"):
        asked = other[(row["image"], row["kind"], *row["args"])]
        assert asked["verdict"] == (1 if row["verdict"] == 1 else -1)
        assert asked["p_yes"] == (1.0 if row["verdict"] == 1 else 0.0)


def test_claims_and_their_questions(world, taken_apart, tmp_path):
    decomposed(taken_apart / "answers", tmp_path / "items", World(world), "rlaifv")
    checked(tmp_path / "items", tmp_path / "verdicts", "rlaifv", World(world))
    verdicts = Verdicts(tmp_path / "verdicts")
    for one, answer in zip(read_items(tmp_path / "items"), read_answers(taken_apart / "answers"), strict=True):
        said = claims(answer.text)
        assert len(one.items) == len(said.kinds) + len(said.counts) + len(said.relations) + len(said.words)
        assert all(item.kind == "claim" and item.span for item in one.items)
        scene = next(s for s in read_scenes(world) if s.name == answer.group)
        wrong = [verdicts.of(one.images, item)["verdict"] == -1 for item in one.items]
        assert any(wrong) == any(n for n, _ in judged(answer.text, scene).values())


def test_noise_turns_the_expected_share_of_verdicts(world, taken_apart, tmp_path):
    checked(taken_apart / "items", taken_apart / "verdicts", "world", World(world))
    checked(taken_apart / "items", tmp_path / "noisy", "world", World(world, noise=0.25))
    true = {(row["image"], row["kind"], *row["args"]): row["verdict"] for row in rows(taken_apart / "verdicts")}
    noisy = {(row["image"], row["kind"], *row["args"]): row["verdict"] for row in rows(tmp_path / "noisy")}
    judgeable = [name for name, verdict in true.items() if verdict in (1, -1)]
    turned = sum(noisy[name] == -true[name] for name in judgeable) / len(judgeable)
    assert abs(turned - 0.25) < 0.08 and len(judgeable) > 150
    assert all(noisy[name] == verdict for name, verdict in true.items() if verdict == -2)


def test_a_killed_check_goes_on_and_finds_the_same(world, taken_apart, tmp_path):
    checked(taken_apart / "items", tmp_path / "whole", "world", World(world))
    checked(taken_apart / "items", tmp_path / "torn", "world", World(world))
    lines = (tmp_path / "torn" / "rows-0.jsonl").read_bytes()
    cut = random.Random(3).randrange(len(lines))
    (tmp_path / "torn" / "rows-0.jsonl").write_bytes(lines[:cut])
    tally = checked(taken_apart / "items", tmp_path / "torn", "world", World(world))
    assert 0 < tally.new < tally.rows
    whole, torn = (list(rows(tmp_path / name)) for name in ("whole", "torn"))
    assert whole == torn


def test_rows_have_what_the_contract_says(taken_apart):
    row = json.loads((taken_apart / "items" / "rows-0.jsonl").read_text().splitlines()[0])
    assert {"key", "answer_key", "items", "raw"} <= set(row)
    assert set(row["items"][0]) == {"kind", "args", "claim", "question", "negated", "span"}
    row = json.loads((taken_apart / "verdicts" / "rows-0.jsonl").read_text().splitlines()[0])
    assert {"key", "image", "kind", "args", "question", "expert", "verdict", "p_yes", "evidence"} <= set(row)


@pytest.mark.slow
def test_a_tiny_detector_learns_to_see_what_the_annotation_says(tmp_path):
    """OWL-ViT of 9 patches, fitted on the world's shapes, checks captions of pictures that it has not seen."""
    world = write_world(tmp_path / "world", WorldSpec(base=20, pairs=4, groups=1, test=60))
    write_owl(tmp_path / "owl", edge=84, patch=28, hidden_size=64, intermediate_size=128, spread=False)
    fit_owl(tmp_path / "owl", list(scenes(0, "train", 2000)), 1200)
    held_out = [scene for scene in read_scenes(world) if scene.name.startswith("test")]
    write_captions(tmp_path / "answers", world, held_out)
    decomposed(tmp_path / "answers", tmp_path / "items", World(world))
    checked(tmp_path / "items", tmp_path / "true", "world", World(world))
    table = f'[experts.eyes]\nuse = "owl"\nmodel = "{tmp_path / "owl"}"\nthreshold = 0.5\n[route]\ntext = "skip"\n'
    table += "".join(f'{kind} = "eyes"\n' for kind in ("object", "count", "spatial"))
    (tmp_path / "eyes.toml").write_text(table + '[skip]\nwhole = ["centre", "image"]\n')
    checked(tmp_path / "items", tmp_path / "seen", tmp_path / "eyes.toml")
    true = {(row["image"], row["kind"], *row["args"]): row["verdict"] for row in rows(tmp_path / "true")}
    agree = {kind: [] for kind in ("object", "count", "spatial")}
    for row in rows(tmp_path / "seen"):
        if row["kind"] in agree:
            agree[row["kind"]].append(row["verdict"] == true[(row["image"], row["kind"], *row["args"])])
    told = {kind: (sum(same) / len(same), len(same)) for kind, same in agree.items()}
    print(told)
    assert all(share > 0.95 and number > 60 for share, number in told.values()), told
