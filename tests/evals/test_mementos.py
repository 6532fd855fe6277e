"""Mementos against its notebook (@b7f2e62), run cell by cell on graphs, descriptions and replies of our own
(golden/mementos); and on its graphs where they are here.
"""

import json
import pickle
import shutil

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches import bench
from mmfast.evals.intervals import intervals
from mmfast.evals.synonym_graphs import CLASSES, LISTS, compared, graph_of, official_lists, replaced, strict_lists
from tests.make.marking import GOLDEN, marked, official, recorded

HERE = GOLDEN / "mementos"
GIVEN = json.loads((HERE / "expected.json").read_text())
REPLIES = {key: [reply] for key, reply in GIVEN["replies"].items()}
TEXTS = {key: f"A model tells of {key}." for key in REPLIES}
NAMES = ("recall", "precision", "f1")
PROMPT = "Lists of {} and {}.\nAction list 2: [run]"


@pytest.fixture
def home(tmp_path):
    for path in HERE.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "expected.json").unlink()
    cells = [
        {"cell_type": "markdown", "source": ["Action list 2 is no code"]},
        {"cell_type": "code", "source": ["%magic Action list 2\n"]},
        {"cell_type": "code", "source": ["ask(\n", f"  {PROMPT!r}.format(gt_des, gpt_des))\n"]},
    ]
    (tmp_path / "GPT-4-assisted_evaluation.ipynb").write_text(json.dumps({"cells": cells}))
    return tmp_path


def test_recall_precision_and_f1_of_the_notebook(home):
    judge = recorded(REPLIES)
    metrics, marks, scoring = marked("mementos", home, TEXTS, judge=judge)
    for part, expected in GIVEN["expected"].items():
        for name in NAMES:
            assert metrics[f"{part}.{name}"] / 100 == pytest.approx(expected[name], rel=1e-14), (part, name)
        for mark in marks:
            if mark.id in expected["items"]:
                assert [mark.sums[f"{part}.{name}"] for name in NAMES] == expected["items"][mark.id]
    assert len(metrics) == 12 and not scoring.own_prompt
    asked = judge.calls[0]
    assert asked.messages[0]["content"] == PROMPT.format(
        "What people saw in rw_1, at length.", "A model tells of rw_1."
    )
    assert (asked.decode.temperature, asked.decode.max_tokens) == (0.0, 1000)
    found = intervals(marks, lambda sums: bench("mementos").metrics(sums, "official"))
    assert found["dl.object.f1"][0] < metrics["dl.object.f1"] < found["dl.object.f1"][1]


def test_fixed_counts_each_word_that_is_left():
    """The reference [dog] and the prediction [dog, cat, tree, car]: a precision of 1/4, officially 1/2."""
    graph = {"dog": {"": ["dog"]}}
    said = ["dog", "cat", "tree", "car"]
    official_one = replaced(["dog"], said, graph, pairs=False, fixed=False)
    assert compared(["dog"], official_one)[1] == 0.5
    fixed = replaced(["dog"], said, graph, pairs=False, fixed=True)
    assert fixed == said and compared(["dog"], fixed)[1] == 0.25


def test_fixed_is_a_flavour_of_its_own(home):
    metrics, marks, _ = marked("mementos", home, TEXTS, judge=recorded(REPLIES), flavour="fixed")
    precision = {mark.id: mark.sums["dl.object.precision"] for mark in marks if mark.id.startswith("rw")}
    officially = {key: items[1] for key, items in GIVEN["expected"]["dl.object"]["items"].items()}
    assert (precision["rw_2"], officially["rw_2"]) == (0.25, 0.5)
    assert (precision["rw_3"], officially["rw_3"]) == (1.0, 2 / 3)  # what is left was found before
    assert metrics["dl.object.recall"] / 100 == pytest.approx(GIVEN["expected"]["dl.object"]["recall"], rel=1e-14)


def test_two_words_are_an_action_and_a_word_of_the_reference_is_taken_once():
    graph = {"pick": {"up": ["lift"]}, "raise": {"": ["lift"]}}
    assert replaced(["lift", "run"], ["pick", "up", "raise"], graph, pairs=True, fixed=True) == ["lift", "raise"]
    assert replaced(["lift", "run"], ["pick", "up"], graph, pairs=False, fixed=True) == ["pick", "up"]


GOOD = GIVEN["replies"]["rw_2"]


@pytest.mark.parametrize(
    "reply, officially, strictly",
    [
        (GOOD, True, True),
        (f"The lists are:\n{GOOD}", False, True),
        (GOOD.replace("Object list 1", "**Object list 1**"), False, True),
        (GOOD.replace("dog, cat", "dog: brown, cat"), True, True),
        (GOOD.replace("[dog, cat", "[a: b, cat"), False, True),
        ("\n".join(GOOD.split("\n")[:3]), False, False),
        ("I cannot.", False, False),
    ],
)
def test_replies_by_either_parser(reply, officially, strictly):
    reply = reply.replace("dog: brown", "dog:brown")
    assert (official_lists(reply) is not None) == officially
    assert (strict_lists(reply) is not None) == strictly


def test_an_empty_list_has_one_empty_word_officially_and_none_strictly():
    reply = GIVEN["replies"]["rw_4"]
    assert official_lists(reply)["Object list 2"] == [""] and strict_lists(reply)["Object list 2"] == []


def test_what_does_not_parse_is_asked_again_and_then_left_out(home):
    again = {**REPLIES, "rw_3": ["no", *REPLIES["rw_3"]], "rw_6": ["no"] * 3}
    metrics, marks, scoring = marked("mementos", home, TEXTS, judge=recorded(again))
    assert len(marks) == 7 and scoring.counts["unparsed"] == 1 and scoring.counts["asked again"] == 3
    assert scoring.notes == ["1 items are left out, for no reply of the judge had the four lists (the first: rw_6)"]
    assert metrics["robo.object.f1"] / 100 == pytest.approx(GIVEN["expected"]["robo.object"]["f1"])


def test_an_empty_answer_is_not_shown_to_the_judge(home):
    judge = recorded(REPLIES)
    _, marks, _ = marked("mementos", home, {**TEXTS, "rw_1": "  "}, judge=judge)
    assert "rw_1" not in {call.key for call in judge.calls}
    assert marks[0].id == "rw_1" and marks[0].sums["dl.object.f1"] == 0
    silent = marked("mementos", home, dict.fromkeys(TEXTS, ""))[0]  # asks for no judge
    assert len(silent) == 12 and set(silent.values()) == {0}


def test_frames_are_a_folder_or_one_image_and_domains_those_that_are_there(home):
    frames = home / "rw_1"
    frames.mkdir()
    for name in ("10.png", "9.png", "1.png"):
        (frames / name).write_bytes(b"x")
    one = bench("mementos")
    questions = {q.id: q for q in one.questions(Data(home, one), one.wordings["own"])}
    assert [p.source for p in questions["rw_1"].images] == [str(frames / f"{n}.png") for n in (1, 9, 10)]
    assert [p.source for p in questions["rb_1"].images] == [str(home / "rb_1.png")]
    assert {q.truth["domain"] for q in questions.values()} == {"dl", "robo"}
    assert {q.unit for q in questions.values()} == {f"{key}.png" for key in TEXTS}


def test_what_is_missing_is_told(home):
    (home / "GPT-4-assisted_evaluation.ipynb").write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match="no prompt for two paragraphs"):
        marked("mementos", home, TEXTS, judge=recorded(REPLIES))
    (home / "GPT-4-assisted_evaluation.ipynb").unlink()
    judge = recorded(REPLIES)
    assert marked("mementos", home, TEXTS, judge=judge)[2].own_prompt
    assert all(name in judge.calls[0].messages[0]["content"] for name in LISTS)
    with pytest.raises(ValueError, match="mementos needs a judge"):
        marked("mementos", home, TEXTS)
    (home / "dl_object_graph_v1.json").unlink()
    with pytest.raises(ValueError, match=r"dl_object_graph_v1\.json.*umd-huang-lab/Mementos"):
        marked("mementos", home, TEXTS, judge=judge)
    (home / "dl_description.csv").write_text("image_name,text\na.png,b\n")
    with pytest.raises(ValueError, match=r"dl_description\.csv: a row without an image or a description"):
        marked("mementos", home, TEXTS, judge=judge)
    for name in ("dl", "robo"):
        (home / f"{name}_description.csv").unlink()
    with pytest.raises(ValueError, match=r"has none of dl_description\.csv"):
        marked("mementos", home, TEXTS, judge=judge)


class ActionGraph:
    def __init__(self, graph):
        self.graph = graph


class Run:
    def __reduce__(self):
        return print, ("run",)


def test_official_pickles_are_read_and_run_nothing(monkeypatch, capsys):
    monkeypatch.setattr(ActionGraph, "__module__", "__main__")
    monkeypatch.setattr(__import__("__main__"), "ActionGraph", ActionGraph, raising=False)
    assert ("__main__", "ActionGraph") in CLASSES
    graph = {"run": {"": ["run"]}}
    assert graph_of(pickle.dumps(ActionGraph(graph)), "dl.action") == graph
    for wrong in (ActionGraph(Run()), Run()):
        with pytest.raises(ValueError, match=r"graph dl\.action of Mementos is refused.*nothing in it was run"):
            graph_of(pickle.dumps(wrong), "dl.action")
    with pytest.raises(ValueError, match="is refused"):
        graph_of(pickle.dumps([1]), "dl.action")
    assert capsys.readouterr().out == ""


def test_the_official_graphs_know_their_words():
    names = [
        f"mementos/{domain}_{part}_graph_v1.json" for domain in ("dl", "cmc", "robo") for part in ("object", "action")
    ]
    graphs = [graph_of(path.read_bytes(), path.name) for path in official(*names)]
    assert [len(graph) for graph in graphs] == [976, 794, 229, 260, 221, 172]
    dog = replaced(["dog"], ["puppy", "cat"], graphs[0], pairs=False, fixed=False)
    assert dog[0] == "dog" and len(dog) == 2
