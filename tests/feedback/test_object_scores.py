"""Pairs by CHAIR from scene graphs: DGPref's other source of pairs, and its caps."""

from __future__ import annotations

import json
import pickle

import pytest
from typer.testing import CliRunner

from mmfast.cli.chair import by_objects
from mmfast.cli.data import app
from mmfast.data.formats.known import read_records
from mmfast.engines.presets import EIGHT
from mmfast.feedback.answer import Answer
from tests.make import published
from tests.make.feedback_cases import write_answers

SYNONYMS = "person, man, woman\ndog, puppy\ncar\nsofa, couch\ncat\nbook\n"
LONGER = "chair, seat\ntoilet\nairplane, jet plane\n"
# By image and prompt. 0 has a dog and a bucket, 1 a man and a kite, 3 a cat and a sofa
CAPTIONS = {
    "0_0": "A dog beside a bucket.",
    "0_1": "Two dogs, a man and a car.",
    "0_2": "A puppy, a woman, a car, a cat and a cat.",
    "1_0": "A man, a dog, a car and a book.",
    "1_1": "A man flies a kite.",
    "1_3": "A dog.",
    "3_0": "A couch.",
    "3_7": "A cat on a sofa with books.",
}
WRONG = {"0_0": 0, "0_1": 2, "0_2": 3, "1_0": 3, "1_1": 0, "1_3": 1, "3_0": 0, "3_7": 1}
PAIRS = [
    ("0_0", "0_1"),
    ("0_0", "0_2"),
    ("1_1", "1_0"),
    ("1_3", "1_0"),
]  # those two apart, by image


@pytest.fixture
def pairs(tmp_path):
    """`mmfast data pairs --rule chair` of DGPref's captions: what it says, and the pairs it wrote."""
    (tmp_path / "captions").mkdir()
    source = tmp_path / "captions" / "vsg.pkl"
    source.write_bytes(pickle.dumps(CAPTIONS))
    (tmp_path / "captions" / "names.json").write_text(json.dumps(list(published.GRAPHS)))
    (tmp_path / "captions" / "prompts.txt").write_text("\n".join(EIGHT))
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    objects = published.gqa(tmp_path)

    def run(*options, objects=objects, rule="chair", source=source):
        out = tmp_path / "pairs.jsonl"
        given = ["--objects", str(objects), "--synonyms", str(tmp_path / "synonyms.txt")] if objects else []
        asked = ["pairs", str(source), "--rule", rule, *given, "--images", str(tmp_path / "VisualGenome")]
        result = CliRunner().invoke(app, [*asked, *options, "-o", str(out)])
        if result.exception:
            assert isinstance(result.exception, ValueError), (result.exception, result.output)
            return str(result.exception), []
        return result.output, list(read_records(out))

    return run


def told_of(records):
    keys = {text: key for key, text in CAPTIONS.items()}
    return [(keys[one.chosen[0]["content"]], keys[one.rejected[0]["content"]]) for one in records]


def test_captions_two_objects_apart_make_a_pair(tmp_path, pairs):
    _, found = pairs()
    assert told_of(found) == PAIRS
    assert [one.scores for one in found] == [
        {"chosen": -float(WRONG[better]), "rejected": -float(WRONG[worse])} for better, worse in PAIRS
    ]
    assert (found[2].meta["name"], found[2].meta["prefer_idx"], found[2].meta["reject_idx"]) == ("17", 1, 0)
    nearer = [*PAIRS[:2], ("0_1", "0_2"), *PAIRS[2:], ("1_1", "1_3"), ("3_0", "3_7")]
    assert told_of(pairs("--margin", "1")[1]) == nearer
    assert told_of(pairs("--margin", "3")[1]) == [PAIRS[1], PAIRS[2]]


def test_visual_genomes_list_and_a_table_of_objects_say_the_same(tmp_path, pairs):
    _, found = pairs(objects=published.visual_genome(tmp_path))
    assert told_of(found) == PAIRS
    table = {"2350001": ["dog"], "17": ["person"], "2400": ["cat", "sofa"]}
    assert told_of(pairs(objects=published.written(tmp_path / "objects.json", table))[1]) == PAIRS


# What DGPref's chair_utils.py (269ddab) counted of `invented`, nltk's tokeniser without its sentences in it
COUNTED = ["11210021", "22411322", "11310121", "23331222"]
WORDS = (
    "man",
    "dogs",
    "toilet seat",
    "kite",
    "couches",
    "cat",
    "baby dog",
    "books",
    "cub",
    "women",
    "car",
    "jet",
    "seat",
)


def invented():
    """Scene graphs of four images, and eight captions of each."""
    graphs, captions = {}, {}
    for i in range(4):
        there = [WORDS[(5 * i + 4 * n) % len(WORDS)] for n in range(4)]
        graphs[str(70 + i)] = {
            "width": 8,
            "height": 8,
            "objects": {str(n): {"name": name} for n, name in enumerate(there)},
        }
        for k in range(8):
            words = [WORDS[(7 * i + 3 * k * j + j * j) % len(WORDS)] for j in range(2 + k % 4)]
            captions[f"{i}_{k}"] = f"There are {', '.join(words)} in it."
    return graphs, captions


def test_objects_are_counted_as_dgprefs_script_counts_them(tmp_path):
    graphs, captions = invented()
    objects, synonyms = published.written(tmp_path / "graphs.json", graphs), tmp_path / "synonyms.txt"
    synonyms.write_text(SYNONYMS + LONGER)
    found = [
        Answer(key=key, row=n, source=key, group=key[0], text=text, meta={"name": str(70 + int(key[0]))})
        for n, (key, text) in enumerate(captions.items())
    ]
    scores = [int(-one.scores["chair"]) for one in by_objects(iter(found), objects, synonyms, None)]
    assert ["".join(map(str, scores[i : i + 8])) for i in range(0, 32, 8)] == COUNTED


def test_a_folder_of_answers_finds_its_images_by_the_names_of_their_files(tmp_path, pairs):
    image = tmp_path / "VisualGenome" / "VG_100K_2" / "17.jpg"
    said = ["A man.", "A dog and a car.", "A man and a cat."]
    folder = write_answers(tmp_path / "answers", [(image, text) for text in said])
    _, (one,) = pairs(source=folder)
    assert (one.chosen[0]["content"], one.rejected[0]["content"]) == (said[0], said[1])
    assert one.scores == {"chosen": 0, "rejected": -2}


def test_names_of_two_words_in_a_scene_graph_are_their_things(tmp_path, pairs):
    """As DGPref has them: "toilet seat" a toilet, "baby elephant" an elephant, which no list of synonyms need name."""
    things = ["puppy dog", "baby cat", "passenger car", "man"]
    graphs = {
        name: {"objects": {str(n): {"name": thing} for n, thing in enumerate(things)}} for name in published.GRAPHS
    }
    _, found = pairs("--margin", "1", objects=published.written(tmp_path / "odd.json", graphs))
    # There are a cat and a man; "puppy dog" and "passenger car" are none that it knows
    wrong = {"0_0": 1, "0_1": 2, "0_2": 2, "1_0": 3, "1_1": 0, "1_3": 1, "3_0": 1, "3_7": 2}
    assert {one.scores["rejected"] for one in found} <= {-float(n) for n in wrong.values()}
    texts = {text: key for key, text in CAPTIONS.items()}
    assert all(one.scores["chosen"] == -wrong[texts[one.chosen[0]["content"]]] for one in found) and len(found) == 6


@pytest.mark.parametrize(("first", "kept"), [("1", 1), ("0.5", 2), ("0.6", 2), ("4", 4)])
def test_the_first_so_many_or_this_share_of_the_pairs(pairs, first, kept):
    said, found = pairs("--first", first)
    assert told_of(found) == PAIRS[:kept] and ("first of them" in said) == (kept < 4)


def test_every_mistake_is_one_line(tmp_path, pairs):
    cases = [
        (pairs("--first", "5"), "--first 5: there are 4 pairs"),
        (pairs("--first", "1.5"), "a number of pairs (68414), or a share of them below 1 (0.5)"),
        (pairs("--first", "0"), "a number of pairs"),
        (pairs("--first", "half"), "a number of pairs"),
        (pairs(objects=None), "--rule chair needs --objects: what is in the images"),
        (pairs(objects=tmp_path / "gone.json"), "gone.json: there is no such file"),
        (pairs(rule="dgpref"), "--objects is for --rule chair: dgpref reads no objects"),
        (pairs("--first", "2", objects=None, rule="sima"), "--first is for scored answers"),
        (pairs(objects=published.written(tmp_path / "few.json", {"17": ["person"]})), "--objects has no image 2350001"),
        (pairs(objects=published.written(tmp_path / "odd.json", [{"a": 1}])), "has an image_id and objects in each"),
    ]
    for (said, found), told in cases:
        assert told in said and "\n" not in said and not found
    few = tmp_path / "few.json"
    said, found = pairs("--on-error", "drop", objects=few)
    assert told_of(found) == PAIRS[2:] and "left out: 5 rows (5 score)" in said
