"""CHAIR by hand, and greedy captions in batches equal to captions one by one."""

import pytest

from mmfast.world import models, scenes
from mmfast.world.evaluate import greedy_captions, score
from mmfast.world.scenes import Scene, Thing

SCENE = Scene("a", "light", (Thing("red", "circle", "small", (0,)), Thing("blue", "star", "large", (1, 5))))
OTHER = Scene("b", "dark", (Thing("green", "cross", "small", (4,), None),))


def test_chair_by_hand():
    captions = [
        "The image shows a small red circle, a large blue star, and a small green square. The red circle says GO.",
        "The image shows a small green cross, and a plain dark background.",
    ]
    result = score(captions, [SCENE, OTHER])
    assert result.chair_i == pytest.approx(1 / 4)  # circle, star, square | cross: one of four is invented
    assert result.chair_s == pytest.approx(1 / 2)
    assert result.recall == pytest.approx(3 / 3)
    assert result.words == pytest.approx((21 + 12) / 2)
    assert (result.wrong_counts, result.wrong_relations, result.wrong_words) == (0.5, 0.0, 0.5)


def test_an_object_counts_once_a_caption_and_silence_recalls_nothing():
    twice = score(["a red circle and a red circle", ""], [SCENE, OTHER])
    assert (twice.chair_i, twice.chair_s, twice.recall) == (0.0, 0.0, pytest.approx(1 / 3))
    assert score(["a green star"], [OTHER]).chair_i == 1.0


def test_relations_are_judged_only_between_things_that_are_there():
    scene = Scene("c", "dark", (Thing("red", "circle", "small", (0,)), Thing("blue", "star", "large", (2,))))
    said = ["The red circle is right of the blue star. The red circle is left of the green star."]
    assert score(said, [scene]).wrong_relations == 1.0
    assert score(["The red circle is left of the blue star."], [scene]).wrong_relations == 0.0


def test_captions_and_scenes_must_match():
    with pytest.raises(ValueError, match="2 captions for 1 scenes"):
        score(["a", "b"], [SCENE])


def test_greedy_captions_do_not_depend_on_the_batch():
    model, _, _, processor = models.build("llava", seed=2, image_size=56, patch=28)
    pictures = list(scenes.scenes(1, "test", 5))
    together = greedy_captions(model, processor, pictures, max_new_tokens=8)
    alone = greedy_captions(model, processor, pictures, max_new_tokens=8, batch=2)
    assert together == alone and len(set(together)) > 1
