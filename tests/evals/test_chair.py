"""CHAIR against the official scripts, on our own list of synonyms and, where they are here, on the published ones.

golden/chair/expected_own_synonyms.json: what LisaAnne/Hallucination@6e4d33c, si0wang/SIMA@ac6b97b and
abril4416/DGPref@269ddab print for these captions with golden/chair/synonyms.txt.
"""

import json
import pickle
import shutil

import numpy as np
import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches import bench
from mmfast.evals.coco import Vocabulary, image_id, object_table
from mmfast.evals.intervals import intervals
from mmfast.evals.make_tables import chair_table
from tests.make.marking import GOLDEN, marked, official

pytest.importorskip("nltk")
HERE = GOLDEN / "chair"
EXPECTED = json.loads((HERE / "expected_own_synonyms.json").read_text())
CAPTIONS, PUBLISHED = (
    {str(row["image_id"]): row["caption"] for row in json.loads((HERE / name).read_text())}
    for name in ("answers_own.json", "answers.json")
)


def folder(tmp_path, synonyms=HERE / "synonyms.txt", reading="original"):
    """The user's data: synonyms, and a table made of annotations."""
    shutil.copy(synonyms, tmp_path / "synonyms.txt")
    chair_table(HERE / "coco_annotations", tmp_path / "synonyms.txt", tmp_path / "objects.txt.xz", reading)
    return tmp_path


@pytest.mark.parametrize("flavour", ["original", "sima"])
def test_the_figures_of_the_official_scripts(tmp_path, flavour):
    metrics, marks, scoring = marked("chair", folder(tmp_path), CAPTIONS, flavour=flavour)
    expected = EXPECTED[flavour]
    assert metrics["CHAIRs"] / 100 == pytest.approx(expected["CHAIRs"], rel=1e-15)
    assert metrics["CHAIRi"] / 100 == pytest.approx(expected["CHAIRi"], rel=1e-15)
    assert expected["printed"].split("\t")[-2:] == [f"{metrics[name]:.1f}" for name in ("CHAIRs", "CHAIRi")]
    for mark, sentence in zip(marks, expected["sentences"], strict=True):
        assert mark.sums["mentions"] == len(sentence["said"])
        wrong = [word for word, _ in sentence["wrong"]]
        assert (dict.fromkeys(mark.told["wrong_words"]) if flavour == "sima" else mark.told["wrong_words"]) == (
            dict.fromkeys(wrong) if flavour == "sima" else wrong
        )
    assert any("plurals of words of its own" in note for note in scoring.notes) == (flavour == "original")


def test_a_table_says_by_whose_reading_it_was_made(tmp_path):
    home = folder(tmp_path, reading="sima")
    told = "the table of objects was made by the reading sima; that of this flavour is original"
    for flavour, notes in (("original", 1), ("sima", 0), ("dgpref", 1)):
        assert marked("chair", home, CAPTIONS, flavour=flavour)[2].notes.count(told) == notes
    (home / "objects.txt.xz").unlink()
    (home / "objects.json").write_text(json.dumps(EXPECTED["original"]["table"]))  # says nothing
    assert marked("chair", home, CAPTIONS, flavour="sima")[2].notes == []


def test_dgpref_joins_no_words_and_knows_classes_that_no_image_has(tmp_path):
    metrics, _, _ = marked("chair", folder(tmp_path), CAPTIONS, flavour="dgpref")
    for name in ("CHAIRs", "CHAIRi", "objects"):
        assert metrics[name] == pytest.approx(EXPECTED["dgpref"][name], rel=1e-14)
    vocabulary = Vocabulary((HERE / "synonyms.txt").read_text(), "dgpref")
    for key, said in EXPECTED["dgpref"]["said"].items():
        assert [kind for _, kind in vocabulary.mentions(CAPTIONS[key])] == said
    assert vocabulary.mentions("A hot dog for the cubs, a jet")[0] == ("dog", "dog")
    assert [kind for _, kind in vocabulary.mentions("the cubs saw a jet")] == ["cub", "jet"]


@pytest.mark.parametrize("reading", ["original", "sima", "objhal"])
def test_the_table_of_objects_is_what_the_official_scripts_gather(tmp_path, reading):
    content = (folder(tmp_path, reading=reading) / "objects.txt.xz").read_bytes()
    vocabulary = Vocabulary((HERE / "synonyms.txt").read_text(), reading)
    assert {key: sorted(kinds) for key, kinds in object_table(content, "t", vocabulary).items()} == EXPECTED[reading][
        "table"
    ]


@pytest.mark.parametrize("flavour, name", [("original", "standalone_with_recall"), ("sima", "sima")])
def test_the_published_synonyms_give_the_published_golden_vectors(tmp_path, flavour, name):
    (synonyms,) = official("chair/synonyms_original.txt")
    expected = json.loads((HERE / f"expected_{name}.json").read_text())
    metrics, marks, scoring = marked("chair", folder(tmp_path, synonyms, flavour), PUBLISHED, flavour=flavour)
    for key, value in expected["overall_metrics"].items():
        assert metrics[key] / 100 == pytest.approx(value, rel=1e-15)
    for mark, sentence in zip(marks, expected["sentences"], strict=True):
        assert mark.sums["mentions"] == len(sentence["mscoco_generated_words"])
        assert mark.sums["with_wrong"] == sentence["metrics"]["CHAIRs"]
    original = json.loads((HERE / "expected_original.json").read_text())["overall_metrics"]
    if flavour == "original":
        assert metrics["CHAIRi"] / 100 == pytest.approx(original["CHAIRi"], rel=1e-15)
    assert not scoring.notes


@pytest.mark.parametrize("name", ["Instruction1_llava", "Instruction2_instructblip"])
def test_popes_captions_give_what_the_official_script_gives(tmp_path, name):
    """Of one file by the table of all images, of the other by that of its own 250."""
    synonyms, everything = official("chair/synonyms_original.txt", "chair/coco2014_objects_original_chair.txt.xz")
    rows, expected, own = official(
        *(f"chair/real_pope_captions/{name}_first250{part}.json" for part in ("", "_expected", "_gt")),
        variable="MMFAST_EVAL_GOLDEN",
    )
    shutil.copy(synonyms, tmp_path / "synonyms.txt")
    whole = name == "Instruction1_llava"
    shutil.copy(everything if whole else own, tmp_path / ("objects.txt.xz" if whole else "objects.json"))
    texts = {str(row["image_id"]): row["caption"] for row in json.loads(rows.read_text())["rows"]}
    there = json.loads(expected.read_text())
    metrics, marks, scoring = marked("chair", tmp_path, texts)
    by_id = {mark.id: mark for mark in marks}
    for key, value in there["overall"].items():
        assert metrics[key] / 100 == pytest.approx(value, rel=1e-14)
    for key, (said, wrong) in zip(texts, there["per_caption"], strict=True):
        assert (by_id[key].sums["mentions"], by_id[key].sums["wrong"]) == (len(said), len(wrong))
    assert scoring.notes == (["250 of the table's 123,287 images have a caption"] if whole else [])


def test_ids_of_every_spelling_are_one():
    for name in (42, "42", "000000000042", "COCO_val2014_000000000042.jpg", "val2014/000000000042.jpg"):
        assert image_id(name) == "42"
    assert image_id("kitchen.jpg") == "kitchen.jpg" and image_id(0) == "0"


@pytest.mark.parametrize("kind", ["json", "pickle", "graph", "text"])
def test_a_table_of_any_kind_is_read_alike(kind):
    vocabulary = Vocabulary((HERE / "synonyms.txt").read_text(), "original")
    graph = {"1": {"objects": {"a": {"name": "puppies"}, "b": {"name": "lamp"}, "c": {"name": "wine glass"}}}, "2": {}}
    graph["2"] = {"objects": {}}
    content = {
        "json": json.dumps({"000001.jpg": ["dog", "wine glass"], "2": []}).encode(),
        "pickle": pickle.dumps({1: {"dog", "wine glass"}, 2: set()}),
        "graph": json.dumps(graph).encode(),
        "text": b"dog,wine glass\n1 0,1\n2 \n",
    }[kind]
    assert object_table(content, "t", vocabulary) == {"1": {"dog", "wine glass"}, "2": frozenset()}


class Run:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content, told",
    [
        (json.dumps({"1": ["dogs"]}).encode(), "'dogs' is no class"),
        (b"{}", "no table of objects"),
        (b"dog,cat\n1 0,5\n", "no table of objects"),
        (json.dumps({"1": {"things": []}}).encode(), "a scene graph"),
    ],
)
def test_a_wrong_table_is_named(content, told):
    with pytest.raises(ValueError, match=told):
        object_table(content, "t.json", Vocabulary((HERE / "synonyms.txt").read_text(), "original"))


def test_a_pickle_runs_nothing(capsys):
    with pytest.raises(ValueError, match="nothing in it was run"):
        object_table(pickle.dumps({1: Run()}), "t.pkl", Vocabulary((HERE / "synonyms.txt").read_text(), "original"))
    assert capsys.readouterr().out == ""


def test_a_list_of_images_is_captioned_whole_and_gives_the_questions(tmp_path):
    home = folder(tmp_path)
    rows = [
        {"image_id": 101, "question": "What is here?"},
        {"image_id": 102, "image": "b.png", "question": "And here?"},
    ]
    (home / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = bench("chair")
    asked = list(one.questions(Data(home, one), one.wordings["given"]))
    assert [q.turns for q in asked] == [("What is here?",), ("And here?",)]
    assert [q.images[0].source for q in asked] == [str(home / "COCO_val2014_000000000101.jpg"), str(home / "b.png")]
    first = next(one.questions(Data(home, one), one.wordings["detail"]))
    assert first.turns == ("Please describe this image in detail.",)
    with pytest.raises(ValueError, match=r"1 images of chair have no caption \(the first is 102\)"):
        marked("chair", home, {"101": "a dog"})
    (home / "images.jsonl").write_text("101\n102\n")
    with pytest.raises(ValueError, match="image 101: the wording `given`"):
        list(one.questions(Data(home, one), one.wordings["given"]))
    (home / "images.jsonl").write_text("101\n999\n")
    with pytest.raises(ValueError, match="table of objects has no image 999"):
        marked("chair", home, {"101": "a dog", "999": "a cat"})


@pytest.mark.parametrize(
    "name, text, told",
    [
        (
            "images.jsonl",
            '{"image_id": 101}\n{"image_id": "COCO_val2014_000000000101.jpg"}',
            "jsonl:2: image 101 is there twice",
        ),
        ("images.jsonl", "101\n{", "jsonl:2 is no JSON"),
        ("images.json", '[101, {"id": 102}]', "row 2 has no image_id"),
        ("images.json", "[101", "images.json is no JSON"),
        ("images.txt", "101\n0101\n", "image 101 is there twice"),
    ],
)
def test_a_wrong_list_of_images_is_named(tmp_path, name, text, told):
    home = folder(tmp_path)
    (home / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        marked("chair", home, CAPTIONS)


def test_what_is_missing_is_told_with_its_source(tmp_path):
    (tmp_path / "synonyms.txt").write_text("dog, puppy\ncat\n")
    with pytest.raises(ValueError, match="chair-table"):
        marked("chair", tmp_path, CAPTIONS)
    (tmp_path / "objects.json").write_text(json.dumps({"101": ["dog"]}))
    (tmp_path / "synonyms.txt").unlink()
    with pytest.raises(ValueError, match="LisaAnne/Hallucination"):
        marked("chair", tmp_path, CAPTIONS)
    with pytest.raises(ValueError, match=r"captions_train2014\.json.*cocodataset\.org"):
        shutil.copytree(HERE / "coco_annotations", tmp_path / "some")
        (tmp_path / "some" / "captions_train2014.json").unlink()
        chair_table(tmp_path / "some", HERE / "synonyms.txt", tmp_path / "out.xz")
    with pytest.raises(ValueError, match="no line for COCO's category 'backpack'"):
        (tmp_path / "two.txt").write_text("dog\ncat\n")
        chair_table(HERE / "coco_annotations", tmp_path / "two.txt", tmp_path / "out.xz")
    with pytest.raises(ValueError, match="--reading amber"):
        chair_table(HERE / "coco_annotations", HERE / "synonyms.txt", tmp_path / "out.xz", "amber")


def test_silent_captions_hallucinate_nothing_and_recall_says_so(tmp_path):
    metrics, _, _ = marked("chair", folder(tmp_path), dict.fromkeys(CAPTIONS, ""))
    assert (metrics["CHAIRs"], metrics["CHAIRi"], metrics["Recall"], metrics["objects"]) == (0, 0, 0, 0)
    metrics, marks, _ = marked("chair", tmp_path, CAPTIONS)
    assert metrics["Recall"] > 80 and metrics["words"] == 12
    # By a script's own way: CHAIRi of the sums of resampled images, each image whole
    one = bench("chair")
    found = intervals(marks, lambda sums: one.metrics(sums, "original"))
    assert all(low <= metrics[name] <= high for name, (low, high) in found.items())
    wrong = np.array([mark.sums["wrong"] for mark in marks])
    assert found["CHAIRi"][0] < found["CHAIRi"][1] and wrong.max() > 1
    assert {mark.unit for mark in marks} == set(CAPTIONS)
