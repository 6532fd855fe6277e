"""AMBER against its own inference.py (@534babf): on data of our own, with tags and a table that are given, and on its
data where they are here. golden/amber/own/expected.json is what the script prints for each part of own/answers.json.
"""

import io
import json
import lzma
import shutil
import zipfile

import numpy as np
import pytest

from mmfast.evals.amber_words import nouns_of
from mmfast.evals.base import Data, Scoring
from mmfast.evals.benches import bench
from mmfast.evals.benches.amber import GROUPS, discriminative, generative
from mmfast.evals.intervals import intervals
from mmfast.evals.make_tables import amber_table
from mmfast.evals.text.tagger import tagger
from tests.make.marking import GOLDEN, marked, official

pytest.importorskip("nltk")
HERE = GOLDEN / "amber"
OWN = HERE / "own"
EXPECTED = json.loads((OWN / "expected.json").read_text())
ANSWERS = {str(row["id"]): row["response"] for row in json.loads((OWN / "answers.json").read_text())}
TRUTHS = json.loads((OWN / "annotations.json").read_text())
DESCRIPTIONS = {str(row["id"]): ANSWERS[str(row["id"])] for row in TRUTHS if row["type"] == "generative"}
# How the script prints its parts -> how ours are called
PRINTED = {"Generative Task": "", "Descriminative Task": "", "Exsitence": "Existence."} | {
    name: f"{name}." for name in ("Attribute", "State", "Number", "Action", "Relation")
}
TAGGER = "averaged_perceptron_tagger_eng.zip"


def zipped(weights, tagdict, classes):
    """The file of nltk_data."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, value in (("weights", weights), ("tagdict", tagdict), ("classes", classes)):
            file.writestr(
                f"averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng.{name}.json", json.dumps(value)
            )
    return out.getvalue()


@pytest.fixture
def home(tmp_path):
    for name in ("annotations.json", "query_all.json", "relation.json", "similarity.json", "safe_words.txt"):
        shutil.copy(OWN / name, tmp_path)
    (tmp_path / TAGGER).write_bytes(zipped({}, json.loads((OWN / "tags.json").read_text()), ["NN"]))
    return tmp_path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """AMBER's own data, with the stand-in for the table of words that are alike."""
    files = ["annotations.json", "relation.json", "query_all.json", "safe_words.txt"]
    tags = ["tagger_weights.json.xz", *(f"averaged_perceptron_tagger_eng.{n}.json" for n in ("tagdict", "classes"))]
    paths = official(*(f"amber/{name}" for name in files), *(f"wordnet_nltk/{name}" for name in tags))
    folder = tmp_path_factory.mktemp("amber")
    for path in paths[: len(files)]:
        shutil.copy(path, folder)
    weights, tagdict, classes = paths[len(files) :]
    content = [
        json.loads(lzma.decompress(weights.read_bytes())),
        *(json.loads(p.read_text()) for p in (tagdict, classes)),
    ]
    (folder / TAGGER).write_bytes(zipped(*content))
    shutil.copy(HERE / "similarity_standin_glove50_0.8.json", folder / "similarity.json")
    return folder


def check(metrics, printed, parts=PRINTED):
    for part, values in printed.items():
        for name, value in values.items() if part in parts else ():
            assert metrics[parts[part] + name] == value, (part, name)


def test_every_printed_figure_of_our_own_data(home):
    metrics, marks, scoring = marked("amber", home, ANSWERS)
    check(metrics, EXPECTED["a"])
    assert metrics["AMBER"] == (100 - metrics["CHAIR"] + metrics["F1"]) / 2
    assert scoring.counts["unparsed"] == 4  # "no", "No.", "", "It is not so."
    assert scoring.notes == [
        "approximate: words are alike by own, not by en_core_web_lg; on real captions such tables move CHAIR by about "
        "0.3 and Hal by about 1"
    ]
    for mark in marks[:5]:
        one = generative(mark.sums)
        assert {name: one[name] for name in ("CHAIR", "Cover", "Hal", "Cog")} == EXPECTED["each"][mark.id]
    assert marks[0].told["wrong_words"] == [] and marks[2].told["wrong_words"] == ["lamp", "duck"]


def test_either_part_may_be_left_out_and_a_kind_only_as_a_whole(home):
    metrics, _, scoring = marked("amber", home, DESCRIPTIONS)
    assert set(metrics) == {"CHAIR", "Cover", "Hal", "Cog"}
    check(metrics, EXPECTED["g"])
    assert "not answered, as a whole: " in scoring.notes[0] and "Existence" in scoring.notes[0]
    for name in ("similarity.json", TAGGER, "relation.json", "safe_words.txt"):
        (home / name).unlink()  # of descriptions alone
    metrics, _, _ = marked("amber", home, {key: text for key, text in ANSWERS.items() if key not in DESCRIPTIONS})
    check(metrics, EXPECTED["d"])
    assert "CHAIR" not in metrics and "AMBER" not in metrics
    some = {str(row["id"]): "No" for row in TRUTHS if row["type"] == "discriminative-hallucination"}
    metrics, _, _ = marked("amber", home, some)
    assert set(metrics) == {f"Existence.{name}" for name in ("Accuracy", "Precision", "Recall", "F1")}
    del some["8"]
    with pytest.raises(ValueError, match=r"1 of the 4 existence items have no answer \(the first: 8\)"):
        marked("amber", home, some)


def test_without_answers_the_official_counters_show():
    got = generative({}) | discriminative({}, tuple(GROUPS)[:5], counts=1)
    got |= {
        f"{group}.{name}": value for group, kinds in GROUPS.items() for name, value in discriminative({}, kinds).items()
    }
    check(got, EXPECTED["empty"])
    assert got["Hal"] == 100


def test_the_exact_flavour_has_neither_counters_nor_rounding(home):
    metrics, _, _ = marked("amber", home, ANSWERS, flavour="exact")
    assert metrics["CHAIR"] == pytest.approx(100 * 10 / 26, rel=1e-15)
    assert metrics["Accuracy"] == pytest.approx(100 * 8 / 18) and metrics["Action.F1"] == 0
    assert metrics["Existence.F1"] == metrics["Number.F1"] == pytest.approx(200 / 3, rel=1e-14)
    assert metrics["F1"] == pytest.approx(37.5, rel=1e-14)


def test_strictly_a_sentence_is_an_answer_too(home):
    metrics, marks, scoring = marked("amber", home, ANSWERS, strict=True)
    assert scoring.counts["unparsed"] == 1
    said = {mark.id: mark.told["said"] for mark in marks[5:]}
    assert [said[key] for key in ("9", "13", "16", "23")] == [False, False, None, False]
    assert metrics["Accuracy"] > EXPECTED["a"]["Descriminative Task"]["Accuracy"]
    sentences = {key: f"{text}, it is so." if text in ("Yes", "No") else text for key, text in ANSWERS.items()}
    assert marked("amber", home, sentences, strict=True)[0]["Accuracy"] == metrics["Accuracy"]
    assert marked("amber", home, sentences)[0]["Accuracy"] == 0


def test_a_question_s_image_is_the_unit_and_descriptions_have_no_suffix(home):
    one = bench("amber")
    questions = list(one.questions(Data(home, one), one.wordings["short"]))
    assert questions[0].turns == ("Say what you see.",) and questions[5].turns[0].endswith("a single word or phrase.")
    assert questions[5].unit == "own_1.jpg" == questions[0].unit and questions[5].official == {"id": 6}
    _, marks, _ = marked("amber", home, ANSWERS)
    found = intervals(marks, lambda sums: one.metrics(sums, "official"))
    assert found["CHAIR"][0] < 38.5 < found["CHAIR"][1]
    sums = {name: np.array([value]) for name, value in marks[0].sums.items()}
    assert {k: v[0] for k, v in generative(sums).items()} == generative(marks[0].sums)


def test_wrong_data_is_told(home):
    table = json.loads((home / "similarity.json").read_text())
    (home / "similarity.json").write_text(json.dumps({**table, "vocabulary": table["vocabulary"][1:]}))
    with pytest.raises(ValueError, match=r"lacks 1 of AMBER's words \(the first: boat\)"):
        marked("amber", home, ANSWERS)
    (home / "similarity.json").write_text("[]")
    with pytest.raises(ValueError, match="amber-table"):
        marked("amber", home, ANSWERS)
    (home / "similarity.json").unlink()
    with pytest.raises(ValueError, match=r"amber-table.*en_core_web_lg"):
        marked("amber", home, ANSWERS)
    for name in ("similarity.json", "relation.json", "query_all.json"):
        kept = (home / name).read_text() if (home / name).exists() else "[]"
        (home / name).write_text("[")
        with pytest.raises(ValueError, match=f"{name} is no JSON"):
            marked("amber", home, ANSWERS)
        (home / name).write_text(json.dumps(table) if name == "similarity.json" else kept)
    for wrong in ([], [{"id": 1}], json.loads((OWN / "query_all.json").read_text())[:-1], {}):
        (home / "query_all.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="not of one version of AMBER"):
            marked("amber", home, ANSWERS)
    for content in (b"no zip", zipped({}, {}, [])[:40]):
        with pytest.raises(ValueError, match=TAGGER.replace(".", r"\.")):
            tagger(content)


class Word:
    """As a spaCy document: 0 where the model does not know the word."""

    def __init__(self, word):
        self.word = word

    def similarity(self, other):
        if "cart" in (self.word, other.word):
            return 0.0
        return (
            1.0
            if self.word == other.word
            else {frozenset(("dog", "duck")): 0.81, frozenset(("hut", "roof")): 0.8}.get(
                frozenset((self.word, other.word)), 0.1
            )
        )


class Model:
    """As spaCy.load gives it, by a name or by a folder."""

    def __init__(self, name, keys=9):
        self.meta = {"lang": "en", "name": "core_web_lg", "version": "3.8.0", "vectors": {"keys": keys, "name": "own"}}

    def __call__(self, word):
        return Word(word)


def test_the_table_asks_a_model_for_each_pair(home):
    out = home / "similarity.json"
    assert amber_table(home / "relation.json", out, "some/folder", load=Model) == 1
    table = json.loads(out.read_text())
    assert table["similar_pairs"] == [["dog", "duck"]] and table["self_not_similar"] == ["cart"]
    assert (table["model"], table["version"], table["threshold"]) == ("en_core_web_lg", "3.8.0", 0.8)
    assert marked("amber", home, DESCRIPTIONS)[2].notes[1:] == []  # no word of "approximate"

    with pytest.raises(ValueError, match="en_core_web_sm has no vectors"):
        amber_table(home / "relation.json", out, "en_core_web_sm", load=lambda name: Model(name, 0))

    def lacks(name):
        raise OSError

    with pytest.raises(ValueError, match="spaCy has no model en_core_web_md"):
        amber_table(home / "relation.json", out, "en_core_web_md", load=lacks)


def test_the_golden_vectors_of_ambers_own_data(theirs):
    expected = json.loads((HERE / "expected.json").read_text())
    answers = {str(row["id"]): row["response"] for row in json.loads((HERE / "answers.json").read_text())}
    check(marked("amber", theirs, answers, only=True)[0], expected["a"])
    alone = {str(row["id"]): row["response"] for row in json.loads((HERE / "answers_generative_only.json").read_text())}
    check(marked("amber", theirs, alone, only=True)[0], expected["g_only_file"])
    for word in ("Yes", "No"):
        one = bench("amber")
        asked = one.questions(Data(theirs, one), one.wordings["bare"])
        said = {q.id: word for q in asked if q.truth["kind"] != "generative"}
        check(marked("amber", theirs, said)[0], expected[f"all_{word.lower()}_full_discriminative"])


def test_nouns_of_ambers_golden_captions(theirs):
    tags = tagger((theirs / TAGGER).read_bytes())
    answers = {str(row["id"]): row["response"] for row in json.loads((HERE / "answers.json").read_text())}
    expected = json.loads((HERE / "expected_nouns.json").read_text())
    for key, told in expected.items():
        assert nouns_of(answers[key], tags) == tuple(told["nouns"])


def test_a_table_without_pairs_is_the_threshold_that_none_reaches(theirs, tmp_path):
    shutil.copytree(theirs, tmp_path / "amber")
    table = json.loads((tmp_path / "amber" / "similarity.json").read_text())
    (tmp_path / "amber" / "similarity.json").write_text(json.dumps({**table, "similar_pairs": []}))
    alone = {str(row["id"]): row["response"] for row in json.loads((HERE / "answers_generative_only.json").read_text())}
    expected = json.loads((HERE / "expected.json").read_text())["g_only_file_threshold_0.999"]
    metrics, _, scoring = marked("amber", tmp_path, alone, only=True)  # --data DIR holds DIR/amber
    check(metrics, expected)
    assert isinstance(scoring, Scoring)
