"""Experts one by one: rules of boxes, scene graphs, text, yes and no, good English."""

import json
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmfast.engines.base import Picture, Reply
from mmfast.feedback.expert_scores import singulars
from mmfast.feedback.experts import Case
from mmfast.feedback.experts.boxes import Box, Found, Sizes, has_place, has_scale, judged
from mmfast.feedback.experts.grammar import Cola, Likely
from mmfast.feedback.experts.graph import Graph
from mmfast.feedback.experts.ocr import Line, Ocr, rows_of, written
from mmfast.feedback.experts.yesno import YesNo
from mmfast.feedback.items import Item, item_of
from mmfast.feedback.prompts import prompt
from tests.make.engine_cases import Fake

FOUND = Found(
    100,
    200,
    {
        "dog": (Box(0, 0, 20, 20, 0.9), Box(70, 100, 90, 120, 0.5)),
        "tower": (Box(40, 10, 60, 190),),
        "cup": (Box(45, 95, 50, 100),),
        "cat": (),
    },
)
RIGHT, COMPAT = Sizes(), Sizes(compat=True)


@pytest.mark.parametrize(
    ("aspect", "piece", "right", "compat"),
    [
        ("entity", "dog", 1, 1),
        ("entity", "cat", -1, -1),
        ("entity", "horse", -1, -1),
        ("count", "two dog", 1, 1),
        ("count", "three dog", -1, -1),
        ("count", "two cat", -2, -2),
        ("attribute", "large tower", 1, 1),
        ("attribute", "large dog", -1, -1),
        ("attribute", "huge cat", -2, -2),
        ("attribute", "small dog", 1, 1),
        ("attribute", "tall tower", 1, 1),
        ("attribute", "tall cup", -1, -1),
        ("attribute", "long tower", 1, 1),
        ("attribute", "short cup", 1, 1),
        ("attribute", "short tower", -1, -1),
        ("relation", "dog left tower", 1, 1),
        ("relation", "dog right tower", 1, 1),
        ("relation", "cup right tower", -1, -1),
        ("relation", "dog above tower", 1, 1),
        ("relation", "dog below tower", 1, -1),
        ("relation", "cup below tower", -1, -1),
        ("relation", "cup above tower", 1, -1),
        ("relation", "cup near tower", 1, 1),
        ("relation", "tower left cat", -2, -2),
        ("relation", "cup left image", 1, 1),
        ("relation", "tower right image", -1, -1),
    ],
)
def test_verdicts_of_boxes(aspect, piece, right, compat):
    item = item_of(aspect, piece.split())
    assert judged(item, FOUND, RIGHT).value == right
    assert judged(item, FOUND, COMPAT).value == compat


def test_where_dgprefs_rules_differ():
    found = Found(100, 100, {})
    low, high, beside = Box(0, 80, 10, 100), Box(0, 0, 10, 20), Box(80, 80, 100, 100)
    assert has_place("top", high, low, found, RIGHT) and not has_place("top", high, low, found, COMPAT)
    assert has_place("bottom", low, high, found, RIGHT) and not has_place("bottom", low, high, found, COMPAT)
    assert not has_place("near", low, high, found, RIGHT) and has_place("near", low, high, found, COMPAT)
    assert has_place("near", low, beside, found, COMPAT) and not has_place("near", low, beside, found, RIGHT)
    assert has_scale("short", 0.9, 0.2, RIGHT) and not has_scale("short", 0.9, 0.2, COMPAT)
    assert has_scale("large", 0.1, 0.45, RIGHT) and not has_scale("large", 0.1, 0.45, Sizes(large_height=0.5))
    there = Found(100, 100, {"dog": (low,), "dogs": ()})
    dogs, singular = item_of("entity", ("dogs",)), singulars()
    assert judged(dogs, there, COMPAT, singular=singular).value == 1 and judged(dogs, there, RIGHT).value == -1
    assert judged(dogs, Found(100, 100, {"dogs": ()}), COMPAT, singular=singular).value == -1
    assert judged(Item(kind="count", args=("lots", "dog"), claim="lots of dog"), FOUND, RIGHT).value == 0


# scene graphs

GQA = {
    "2350001": {
        "width": 100,
        "height": 80,
        "objects": {
            "1": {
                "name": "dog",
                "x": 5,
                "y": 5,
                "w": 20,
                "h": 10,
                "attributes": ["brown"],
                "relations": [{"name": "beside", "object": "2"}],
            },
            "2": {
                "name": "buckets",
                "x": 50,
                "y": 40,
                "w": 10,
                "h": 10,
                "attributes": ["red", "metal"],
                "relations": [],
            },
            "3": {"name": "dog", "x": 70, "y": 5, "w": 20, "h": 10, "attributes": [], "relations": []},
        },
    },
    "7": {"width": 10, "height": 10, "objects": {}},
}
VG = [
    {
        "image_id": 2350001,
        "objects": [
            {"object_id": 1, "names": ["dog"], "x": 5, "y": 5, "w": 20, "h": 10, "attributes": ["brown"]},
            {"object_id": 2, "names": ["bucket"], "x": 50, "y": 40, "w": 10, "h": 10, "attributes": ["red", "metal"]},
            {"object_id": 3, "names": ["dog"], "x": 70, "y": 5, "w": 20, "h": 10},
        ],
        "relationships": [{"predicate": "beside", "subject_id": 1, "object_id": 2}],
    }
]


@pytest.mark.parametrize("content", [GQA, VG], ids=["gqa", "visual genome"])
def test_scene_graphs(tmp_path, content, picture):
    (tmp_path / "graphs.json").write_text(json.dumps(content))
    graph = Graph(str(tmp_path / "graphs.json"))
    image = Picture(str(picture("2350001.png", size=(100, 80))))
    told = {
        ("entity", "dogs"): 1,
        ("entity", "bucket"): 1,
        ("entity", "cat"): -1,
        ("count", "two dogs"): 1,
        ("count", "three dogs"): -1,
        ("attribute", "brown dog"): 1,
        ("attribute", "red dog"): -1,
        ("attribute", "red bucket"): 1,
        ("attribute", "red cat"): -2,
        ("relation", "dog beside bucket"): 1,
        ("relation", "bucket beside dog"): -1,
        ("relation", "dog beside cat"): -2,
        ("relation", "dog left bucket"): 1,
        ("relation", "dog beside image"): 0,
        ("attribute", "brown two_dogs"): 1,
    }
    items = tuple(item_of(aspect, [part.replace("_", " ") for part in piece.split()]) for aspect, piece in told)
    names = tuple(dict.fromkeys(name for item in items for name in item.args))
    (verdicts,) = graph.check([Case(images=(image,), items=items, names=names)])
    assert [verdict.value for verdict in verdicts] == list(told.values())
    (other,) = graph.check([Case(images=(Picture(str(picture("other.png"))),), items=items, names=names)])
    assert all("has no graph of" in verdict.error for verdict in other)


def test_graphs_by_their_position_as_dgpref_counts(tmp_path, picture):
    (tmp_path / "graphs.json").write_text(json.dumps(GQA))
    graph = Graph(str(tmp_path / "graphs.json"), images="index")
    assert graph.graph(Picture(str(picture("0_3.png")))) is graph.graphs["2350001"]
    assert graph.graph(Picture(str(picture("1.png")))) is graph.graphs["7"]
    with pytest.raises(ValueError, match="has no graph of"):
        graph.graph(Picture(str(picture("2_0.png"))))
    for text, told in (("[", "no JSON"), ('{"a": {}}', "holds no scene graphs")):
        (tmp_path / "graphs.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            Graph(str(tmp_path / "graphs.json"))


# text

LINES = [
    Line("COFFEE", 10, 10, 60, 30),
    Line("SHOP", 70, 12, 110, 31),
    Line("O", 200, 10, 230, 200),
    Line("Open daily!", 10, 50, 90, 70),
    Line("8-12", 10, 80, 40, 100),
]


@pytest.mark.parametrize(
    ("text", "right", "compat"),
    [
        ("COFFEE SHOP", 1, -1),
        ("coffee", 1, 1),
        ("CoffeeShop", 1, -1),
        ("open daily", 1, 1),
        ("Open", 1, -1),
        ("shop open", 1, -1),
        ("8-12", 1, 1),
        ("8", 1, -1),
        ("tea", -1, -1),
        ("pen", -1, -1),
        ("daily.", 1, -1),
        ("Open daily! 8", 1, -1),
        ("?!", 0, -1),
    ],
)
def test_text_is_found_in_rows_among_other_lines(text, right, compat):
    lines = [line for line in LINES if line.text != "O"]
    assert written(text, lines).value == right
    assert written(text, lines, compat=True).value == compat
    # Circles that were read as an O, one of them as high as the page and one between two words
    assert written(text, [Line("O", 0, 0, 9, 70), Line("o", 62, 10, 68, 30), *LINES]).value == right


def test_lines_of_one_height_are_one_row():
    assert rows_of(LINES) == ["COFFEE SHOP", "Open daily!", "8-12", "O"]
    assert rows_of(LINES[::-1]) == rows_of(LINES)
    assert rows_of([]) == []


FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


def test_words_of_a_real_font_are_read(tmp_path):
    pytest.importorskip("rapidocr", reason="rapidocr is not installed (extra ocr)")
    try:
        font = ImageFont.truetype(FONT, 40)
    except OSError:
        font = ImageFont.load_default(40)
    image = Image.new("RGB", (640, 320), "white")
    draw = ImageDraw.Draw(image)
    draw.text((30, 30), "COFFEE", fill="black", font=font)
    draw.text((380, 30), "SHOP", fill="darkred", font=font)
    draw.text((30, 130), "Open daily 8-12", fill="navy", font=font)
    draw.ellipse((480, 150, 600, 270), fill="orange")
    image.save(tmp_path / "sign.png")
    reader = Ocr()
    items = tuple(item_of("text", (text,)) for text in ("coffee shop", "Open daily", "8-12", "CLOSED", "Shop"))
    (verdicts,) = reader.check([Case(images=(Picture(str(tmp_path / "sign.png")),), items=items)])
    assert [verdict.value for verdict in verdicts] == [1, 1, 1, -1, 1]
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "blank.png")
    (verdicts,) = reader.check([Case(images=(Picture(str(tmp_path / "blank.png")),), items=items[:1])])
    assert verdicts[0].value == -1 and verdicts[0].evidence == {"lines": []}
    assert Ocr(compat=True).identity() != reader.identity()


def test_without_rapidocr_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(ValueError, match="rapidocr"):
        Ocr()


# yes and no


class Says(Fake):
    """Label -> log-prob, by the question."""

    def __init__(self, told, bounded=()):
        super().__init__()
        self.told, self.bounded = told, bounded

    def reply(self, request, sample):
        asked = request.messages[-1]["content"][-1]["text"]
        for question, labels in self.told.items():
            if question in asked:
                return Reply(
                    key=request.key, labels={label: labels[label] for label in request.labels}, bounded=self.bounded
                )
        return Reply(key=request.key, finish="error", error="the prompt is too long")


def claim(question, negated=False):
    return Item(kind="claim", claim=question, question=question, negated=negated)


def test_yes_and_no_of_labels(picture):
    told = {
        "Dog?": {"Yes": math.log(0.3), "No": math.log(0.1)},
        "Cat?": {"Yes": math.log(0.1), "No": math.log(0.3)},
        "Tie?": {"Yes": math.log(0.2), "No": math.log(0.2)},
        "Never?": {"Yes": -math.inf, "No": -math.inf},
    }
    items = (
        claim("Dog?"),
        claim("Cat?"),
        claim("Cat?", negated=True),
        claim("Tie?"),
        claim("Never?"),
        claim("Long?"),
        claim(""),
    )
    case = Case(images=(Picture(str(picture("a.png"))),), items=items)
    (verdicts,) = YesNo(Says(told), prompt("yes_no")).check([case])
    assert [v.value for v in verdicts if not v.error] == [1, -1, 1, -1, 0]
    assert verdicts[0].p_yes == pytest.approx(0.75) and verdicts[2].p_yes == pytest.approx(0.25)
    assert "neither yes nor no has a probability" in verdicts[4].error and verdicts[5].error == "the prompt is too long"
    assert verdicts[6].evidence == {"why": "there is no question to ask"}


def test_labels_of_one_meaning_are_added_up(picture):
    """RLAIF-V: alone "No" is likelier than "Yes" and than "yes"; together they are not."""
    told = {"Dog?": {"Yes": math.log(0.2), "yes": math.log(0.2), "No": math.log(0.3), "no": math.log(0.05)}}
    case = Case(images=(Picture(str(picture("a.png"))),), items=(claim("Dog?"),))
    both = YesNo(Says(told), prompt("yes_no"), labels={"yes": ["yes", "Yes"], "no": ["no", "No"]})
    assert next(both.check([case]))[0].value == 1
    assert next(YesNo(Says(told), prompt("yes_no")).check([case]))[0].value == -1
    hidden = YesNo(Says(told, bounded=("Yes", "No")), prompt("yes_no"))
    (verdict,) = next(hidden.check([case]))
    assert verdict.value == 0 and verdict.p_yes is None and "showed neither" in verdict.evidence["why"]


def test_what_cannot_be_read_as_yes_and_no_is_refused():
    engine = Says({})
    with pytest.raises(ValueError, match="slots must be question alone"):
        YesNo(engine, prompt("split_claims"))
    with pytest.raises(ValueError, match="must be yes and no"):
        YesNo(engine, prompt("yes_no"), labels={"yes": "Yes"})
    with pytest.raises(ValueError, match="stands for yes and for no"):
        YesNo(engine, prompt("yes_no"), labels={"yes": "Yes", "no": ["Yes"]})
    engine.can = frozenset({"images"})
    with pytest.raises(ValueError, match="no log-probs of labels"):
        YesNo(engine, prompt("yes_no"))


# good English


class Scores(Fake):
    """A label of n words has the log-prob -n, or -10 n where it says "glorp"."""

    def reply(self, request, sample):
        (label,) = request.labels
        if label == "What?":
            return Reply(key=request.key, finish="error", error="the prompt is too long")
        return Reply(key=request.key, labels={label: -len(label.split()) * (10.0 if "glorp" in label else 1.0)})


def test_likely_questions_pass():
    likely = Likely(Scores(), prompt("question_check"), least=-5)
    passed = likely.passed(["Is the dog brown?", "Is the glorp?", "Is the dog brown?", "What?"])
    assert [(one.good, one.score) for one in passed[:3]] == [(True, -1.0), (False, -10.0), (True, -1.0)]
    assert not passed[3].good and "too long" in passed[3].error


def test_a_classifier_of_acceptability(tmp_path):
    import torch
    import transformers as hf

    from tests.make.detectors import classifier

    folder = classifier(tmp_path / "cola")
    cola = Cola(str(folder), least=0.5)
    questions = ["red dog", "dog", "two red dog cat kite", "cat red"]
    passed = cola.passed(questions)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    for question, one in zip(questions, passed, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(question, return_tensors="pt")).logits.softmax(-1)[0, 1]
        assert one.score == pytest.approx(float(alone), abs=1e-5) and one.good == (one.score >= 0.5)
    form = Cola(str(folder), form="two {question} kite").passed(["dog"])[0].score
    assert form == pytest.approx(cola.passed(["two dog kite"])[0].score, abs=1e-6)
    with pytest.raises(ValueError, match=r"no \{question\}"):
        Cola(str(folder), form="Question:")
    assert np.ptp([one.score for one in passed]) > 1e-4
