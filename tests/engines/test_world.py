"""The engine that knows the answers: exact without noise, wrong as often as asked, the same every time."""

import json
import math
import random
from dataclasses import replace

import pytest

from mmfast.engines.base import About, Decode, Picture, Request
from mmfast.engines.presets import EIGHT
from mmfast.engines.world import SHORT, World, answered, yes_or_no
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from mmfast.world.grammar import CAPTION_PROMPTS, Flaws, claims, errors, question
from mmfast.world.scenes import KINDS, relations, scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=20, pairs=4, groups=1, test=40))


def ask(world, scene, text, *, number=0, **settings):
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},)
    picture = Picture(str(world / "images" / f"{scene.name}.png"))
    return Request(key=f"{scene.name}:{text}:{number}", messages=messages, images=(picture,), **settings)


def test_captions_are_true_and_say_all(world):
    engine, found = World(world), read_scenes(world)
    for prompt in (CAPTION_PROMPTS[1], EIGHT[6]):
        replies = list(engine.answer(ask(world, scene, prompt) for scene in found))
        for scene, reply in zip(found, replies, strict=True):
            assert reply.finish == "stop" and not any(errors(reply.text, scene).values())
            assert set(claims(reply.text).kinds) == scene.kinds


def test_every_question_of_the_world_has_its_own_answer(world):
    asked = set()
    for scene in scenes(0, "train", 400):
        rng = random.Random(scene.name)
        text, _, truth = question(scene, rng, Flaws())
        assert answered(scene, text, wrong=False, rng=rng) == truth
        assert answered(scene, text, wrong=True, rng=rng) != truth
        asked.add(text.split()[0] + text.split()[1])
    assert asked == {"Isthere", "Howmany", "Whatdoes", "Whereis"}


def test_yes_and_no_of_all_that_can_be_claimed():
    for scene in scenes(0, "train", 60):
        for colour, shape in KINDS:
            name, thing = f"{colour} {shape}", next((t for t in scene.things if t.kind == (colour, shape)), None)
            article = "an" if name[0] == "o" else "a"
            assert yes_or_no(scene, f"Is there {article} {name}? {SHORT}") == (thing is not None)
            many = f"Are there two {name}{'es' if shape == 'cross' else 's'}?"
            assert yes_or_no(scene, many) == (thing is not None and thing.count == 2)
            place = relations(scene).get((colour, shape))
            assert yes_or_no(scene, f"Is the {name} left of the centre?") == (place == "left of")
            assert yes_or_no(scene, f"Does the {name} say GO?") == (thing is not None and thing.word == "GO")
            assert answered(scene, f"Is there {article} {name}? {SHORT}", wrong=True, rng=random.Random(0)) == (
                "yes" if thing is None else "no"
            )


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_answers_are_wrong_as_often_as_asked(world, noise):
    engine, found = World(world, noise=noise), read_scenes(world)
    drawn = Decode(temperature=1.0)
    requests = [ask(world, scene, CAPTION_PROMPTS[0], n=20, decode=drawn) for scene in found]
    scene_of = {request.key: scene for request, scene in zip(requests, found, strict=True)}
    wrong = [any(errors(reply.text, scene_of[reply.key]).values()) for reply in engine.answer(requests)]
    assert len(wrong) == 800 and sum(wrong) / 800 == pytest.approx(noise, abs=0.05)


def test_a_wrong_caption_is_wrong_in_every_scene():
    for scene in scenes(3, "train", 500):
        text = answered(scene, CAPTION_PROMPTS[0], wrong=True, rng=random.Random(scene.name))
        assert any(errors(text, scene).values()), scene


def test_an_answer_depends_on_key_sample_and_seed_alone(world):
    engine, found = World(world, noise=0.5), read_scenes(world)[:10]

    def replies(order, seed=0, number=0):
        requests = [
            ask(world, scene, "Describe the image.", number=number, n=4, decode=Decode(temperature=1.0, seed=seed))
            for scene in order
        ]
        return {(r.key, r.sample): r.text for r in engine.answer(requests)}

    assert replies(found) == replies(found[::-1]) == {k: v for f in found for k, v in replies([f]).items()}
    texts = [list(replies(found, seed, number).values()) for seed, number in ((0, 0), (1, 0), (0, 1))]
    assert texts[0] != texts[1] and texts[0] != texts[2]


def test_labels_are_the_log_probs_of_yes_and_no(world):
    scene = read_scenes(world)[0]
    name = " ".join(scene.things[0].kind)
    request = ask(world, scene, f"Does the {name} say GO?", n=0, labels=("Yes", "no"))
    truth = scene.things[0].word == "GO"
    (reply,) = World(world, noise=0.1).answer([request])
    assert reply.text == "" and reply.labels == {
        "Yes": math.log(0.9 if truth else 0.1),
        "no": math.log(0.1 if truth else 0.9),
    }
    (sure,) = World(world).answer([request])
    assert sorted(sure.labels.values()) == [-math.inf, 0.0]
    (four,) = World(world, noise=0.1).answer([replace(request, labels=("Yes", "yes", "No", "no"))])
    assert sum(map(math.exp, four.labels.values())) == pytest.approx(1) and four.labels["Yes"] == four.labels["yes"]


def test_pictures_are_known_by_their_bytes(world):
    scene = read_scenes(world)[0]
    path, other = (world / "images" / f"{scene.name}.png", world / "images" / "train-00000.png")
    request = ask(world, scene, "Describe the image.")
    engine = World(world)
    (expected,) = engine.answer([request])
    for picture in (Picture("in the row", path.read_bytes()), Picture(str(other), path.read_bytes())):
        (reply,) = engine.answer([replace(request, images=(picture,))])
        assert reply == expected


def test_what_it_cannot_answer_is_an_error_by_name(world):
    scene = read_scenes(world)[0]
    absent = next(" ".join(kind) for kind in KINDS if kind not in scene.kinds)
    fine = ask(world, scene, "Describe the image.")
    for request, told in (
        (ask(world, scene, "Who painted this?"), "no answer to 'Who painted this?'"),
        (ask(world, scene, f"What does the {absent} say?"), f"there is no {absent} in the picture"),
        (replace(fine, images=(Picture("x.png", b"other"),)), "x.png is no picture of the world"),
        (replace(fine, images=()), "the request has 0"),
        (replace(fine, images=(Picture("/nowhere/x.png"),)), "No such file"),
        (ask(world, scene, "Describe the image.", decode=Decode(beams=3)), "no beams"),
        (ask(world, scene, "Is there a red star?", n=0, labels=("maybe",)), "'maybe' is neither yes nor no"),
        (ask(world, scene, "Describe the image.", n=0, labels=("yes",)), "no answer to"),
    ):
        (reply, last) = World(world).answer([request, fine])
        assert reply.finish == "error" and told in reply.error
        assert last.finish == "stop"


def test_long_answers_are_cut_and_say_so(world):
    (reply,) = World(world).answer(
        [ask(world, read_scenes(world)[0], "Describe the image.", decode=Decode(max_tokens=3))]
    )
    assert (reply.text, reply.tokens, reply.finish) == ("The image shows", 3, "length")


def test_a_folder_that_is_no_world_and_noise_that_is_no_probability(world, tmp_path):
    with pytest.raises(ValueError, match=r"needs a world's folder.*annotation.jsonl"):
        World(tmp_path)
    with pytest.raises(ValueError, match="--noise"):
        World(world, noise=-0.1)


def about(task, *answers, ties=False, question=CAPTION_PROMPTS[0], **more):
    def say(verdict):
        return json.dumps(verdict)

    return About(task=task, say=say, question=question, answers=answers, more={"ties": ties, **more})


def test_verdicts_are_drawn_as_their_labels_say(world):
    """The share of each verdict in many texts is the probability of its label."""
    scene = read_scenes(world)[0]
    true = answered(scene, CAPTION_PROMPTS[0], wrong=False, rng=random.Random(0))
    false = answered(scene, CAPTION_PROMPTS[0], wrong=True, rng=random.Random(0))
    engine = World(world, noise=0.3)
    for pair, ties in (((true, false), True), ((false, true), False), ((true, true), True), ((true, true), False)):
        asked = about("prefer", *pair, ties=ties)
        labels = ("0", "1", "null") if ties else ("0", "1")
        (shares,) = engine.answer([ask(world, scene, "x", n=0, labels=labels, about=asked)])
        drawn = Decode(temperature=1.0)
        texts = [r.text for r in engine.answer([ask(world, scene, "x", n=2000, decode=drawn, about=asked)])]
        for label in labels:
            assert texts.count(label) / 2000 == pytest.approx(math.exp(shares.labels[label]), abs=0.04), (pair, label)
        assert sum(map(math.exp, shares.labels.values())) == pytest.approx(1)


def test_what_has_no_verdict_is_an_error_of_its_own(world):
    scene = read_scenes(world)[0]
    for request, told in (
        (ask(world, scene, "x", about=about("guess", "a", "b")), "no verdict of the kind 'guess'"),
        (ask(world, scene, "x", about=about("prefer", "a", "b", question="Why?")), "the world has no answer to 'Why?'"),
        (ask(world, scene, "x", n=0, labels=("2",), about=about("prefer", "a", "b")), "the label '2' is no verdict"),
        (
            ask(world, scene, "x", n=0, labels=("2",), about=about("rate", "a", low=0, high=4, metrics=("m",))),
            "no label",
        ),
    ):
        (reply,) = World(world).answer([request])
        assert reply.finish == "error" and told in reply.error
