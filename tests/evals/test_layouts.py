"""Files of answers: every official layout there and back, and whose answer a row is."""

import json
import pickle

import pytest

from mmfast.engines.base import Decode
from mmfast.evals import layouts, official
from mmfast.evals.base import Answer, Data, Question
from mmfast.evals.layouts import read
from tests.make.eval_cases import Talk, Toy, ask, toy, write_talk, write_toy
from tests.make.marking import golden, stored


class Named(Toy):
    """Questions with the names that a layout has for them."""

    def __init__(self, *questions):
        self.asked = questions


def named(*officials, turns=("Is it so?",)):
    return [Question(id=f"q{n}", turns=turns, unit=f"q{n}", official=one) for n, one in enumerate(officials)]


def texts(path, questions, bench=None):
    found = read(path, bench or Toy(), questions)
    return {name: one.turns for name, one in found.answers.items()}


OFFICIAL = {
    "llava": [{"question_id": 7}, {"question_id": 8}],
    "rlhfv": [{"question_id": 0, "image_id": 42}, {"question_id": 1, "image_id": 43}],
    "amber": [{"id": 1}, {"id": 2}],
    "mtbench": [{"question_id": 81}, {"question_id": 82}],
    "mmvet": [{"id": "v1_0"}, {"id": "v1_1"}],
    "mme": [
        {"task": "count", "image": "1.jpg", "question": "One?", "gold": "Yes"},
        {"task": "count", "image": "1.jpg", "question": "Two?", "gold": "No"},
    ],
    "chair": [{"image_id": 42}, {"image_id": 43}],
    "mmbench": [{"index": 3, "question": "Which?", "A": "a", "B": "b"}, {"index": 1000003, "question": "Which?"}],
    "alpaca": [{"instruction": "Say a."}, {"instruction": "Say b."}],
    "dgpref": [{"image_id": 42}, {"image_id": 43}],
    "vqa": [{"question_id": 262148000}, {"question_id": 262148001}],
    "vizwiz": [{"image": "VizWiz_test_0.jpg"}, {"image": "VizWiz_test_1.jpg"}],
    "gqa": [{"questionId": "201307251"}, {"questionId": "201640614"}],
    "texts": [{}, {}],
}


@pytest.mark.parametrize("layout", OFFICIAL)
def test_a_layout_comes_back_in_any_order(tmp_path, layout):
    questions = named(*OFFICIAL[layout])
    said = ["Yes, it is.", "No – ö"] if layout == "mme" else ["Yes,\tit\nis.", '"No" – ö']
    answers = {q.id: Answer(id=q.id, turns=(text,)) for q, text in zip(questions, said, strict=True)}
    path = tmp_path / {"mme": "out", "dgpref": "a.pkl", "mmbench": "a.tsv"}.get(layout, "a.json")
    official.write(path, layout, questions, answers)
    assert list(texts(path, questions).values()) == [(text,) for text in said]
    if layout not in ("texts", "mme"):  # rows find their questions wherever they stand
        assert texts(path, questions[::-1]) == texts(path, questions)


def test_every_layout_is_tried():
    assert set(OFFICIAL) == set(official.LAYOUTS)
    with pytest.raises(ValueError, match="unknown layout 'x'"):
        official.write(None, "x", [], {})


def test_the_official_fields_are_there(tmp_path):
    """What the official scripts read, by name and kind."""
    answers = {f"q{n}": Answer(id=f"q{n}", turns=("a", "b")[: n + 1]) for n in range(2)}
    made = {}
    for layout, names in OFFICIAL.items():
        path = tmp_path / f"{layout}.json"
        official.write(path, layout, named(*names), answers, "someone/model")
        if layout in ("llava", "rlhfv", "mtbench"):
            made[layout] = json.loads(path.read_text().splitlines()[1])
        elif path.is_file() and layout not in ("dgpref", "mmbench"):
            made[layout] = json.loads(path.read_text())
    assert {k: made["llava"][k] for k in ("question_id", "prompt", "text")} == {
        "question_id": 8,
        "prompt": "Is it so?",
        "text": "b",
    }
    assert made["rlhfv"]["image_id"] == 43 and made["amber"][1] == {"id": 2, "response": "b"}
    assert made["mtbench"]["choices"] == [{"index": 0, "turns": ["a", "b"]}] and made["mmvet"]["v1_1"] == "b"
    assert made["chair"]["imgToEval"]["0"]["image_id"] == 42 and "METEOR" in made["chair"]["overall"]
    assert made["alpaca"][0] == {"instruction": "Say a.", "output": "a", "generator": "someone/model"}
    assert (tmp_path / "mme.json" / "count.txt").read_text() == "1.jpg\tOne?\tYes\ta\n1.jpg\tTwo?\tNo\tb\n"
    assert pickle.loads((tmp_path / "dgpref.json").read_bytes()) == {"42": "a", "43": "b"}


def test_our_own_file_comes_back(tmp_path):
    asked = toy(write_toy(tmp_path / "data"))
    ask(asked, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").open()][1:]
    assert texts(tmp_path / "out", asked.questions) == {row["id"]: (row["text"],) for row in rows}
    with pytest.raises(ValueError, match="holds answers to toy, not to talk"):
        layouts.header_of(tmp_path / "out", Talk())
    path = tmp_path / "out" / "answers.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="answers question q0 of toy twice"):
        texts(path, asked.questions)
    path.write_text(whole + '{"id": "100", "text": "an official name is no id of ours"}\n')
    with pytest.raises(ValueError, match=r"of 13 answers 1 are to no question of toy \(the first: id 100\)"):
        texts(path, asked.questions)
    path.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="another version of mmfast"):
        layouts.header_of(path, asked.bench)


QUESTIONS = named({"question_id": 7}, {"question_id": 8}, {"question_id": 9})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question_id": 7, "text": "a"}, {"question_id": 7, "text": "b"}],
            r"question q0 of toy twice: .*:1 and .*:2",
        ),
        ([{"question_id": 70, "text": "a"}], "of 1 answers none is to a question of toy .the first: question_id 70"),
        ([{"question_id": 7, "text": "a"}, {"question_id": 6, "text": "b"}], "1 are to no question of toy"),
        ([{"question_id": 7, "words": "a"}], "has no answer: none of the columns text, answer"),
        (["a", "b"], "2 answers without names, and toy asks 3 questions"),
        ([{"text": "a"}, {"text": "b"}], "2 answers without names"),
        ([{"question": "Who?", "answer": "a"}] * 3, "answers 'who.' where toy asks 'is it so."),
        ([{"question_id": 7, "choices": [{"turns": ["a"]}] * 2}], "2 choices: a file of one choice"),
        ([3], "no answer: a row with a name"),
        ([], "holds no answer"),
        ({"a": 3}, ".name: text. is wanted"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, rows, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as caught:
        read(path, Toy(), QUESTIONS)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such file of answers"):
        read(tmp_path / "a.json", Toy(), QUESTIONS)
    (tmp_path / "a.jsonl").write_text('{"question_id": 7, "text": "a"}\n{"question')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read(tmp_path / "a.jsonl", Toy(), QUESTIONS)
    with pytest.raises(ValueError, match=r"neither answers.jsonl nor TASK.txt"):
        read(tmp_path, Toy(), QUESTIONS)
    (tmp_path / "count.txt").write_text("1.jpg\tOne?\tYes\n")
    with pytest.raises(ValueError, match="has 3 cells"):
        read(tmp_path, Toy(), QUESTIONS)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(pytest.raises))
    with pytest.raises(ValueError, match="refused by the restricted unpickler"):
        read(tmp_path / "a.pkl", Toy(), QUESTIONS)


def test_names_are_spelt_in_many_ways(tmp_path):
    """COCO's file names, numbers as texts, and names that only a file of one line has."""
    questions = named({"image_id": 42}, {"image_id": "COCO_val2014_000000000043.jpg"})
    path = tmp_path / "a.json"
    for one, two in ((42, 43), ("42", "000000000043"), ("COCO_val2014_000000000042.jpg", 43), ("42.jpg", "43.png")):
        path.write_text(json.dumps([{"image_id": two, "caption": "b"}, {"image_id": one, "caption": "a"}]))
        assert texts(path, questions) == {"q0": ("a",), "q1": ("b",)}
    path.write_text(json.dumps({"question_id": 7, "text": "a"}))
    assert texts(path, QUESTIONS) == {"q0": ("a",)}


def test_questions_of_one_name_are_told_apart_by_their_words_then_by_order(tmp_path):
    """TextVQA's files call a question by its image; POPE's three parts count from one again."""
    images = [
        Question(id="a", turns=("What is it?\nOCR: x",), official={"question_id": "i"}),
        Question(id="b", turns=("What colour?",), official={"question_id": "i"}),
    ]
    path = tmp_path / "a.json"
    rows = [
        {"question_id": "i", "prompt": "What colour?", "text": "red"},
        {"question_id": "i", "prompt": "<image>\nWhat is it?\nOCR: x", "text": "it"},
    ]
    path.write_text(json.dumps(rows))
    assert texts(path, images) == {"b": ("red",), "a": ("it",)}
    parts = named({"question_id": 1}, {"question_id": 2}, {"question_id": 1}, {"question_id": 2})
    path.write_text(json.dumps([{"question_id": n % 2 + 1, "text": str(n)} for n in range(4)]))
    assert texts(path, parts) == {f"q{n}": (str(n),) for n in range(4)}
    path.write_text(json.dumps([{"question_id": 1, "text": "a"}]))
    with pytest.raises(ValueError, match="several questions named 1"):
        read(path, Toy(), parts)


def test_two_turns_are_read(tmp_path):
    data = write_talk(tmp_path / "data", 2)
    talk = Talk()
    questions = list(talk.questions(Data(data, talk), talk.wordings["official"]))
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question_id": 0, "choices": [{"index": 0, "turns": ["a"]}]}\n{"question_id": 1, "turns": ["b", "c"]}\n'
    )
    assert texts(path, questions, talk) == {"0": ("a",), "1": ("b", "c")}
    assert questions[1].decode == {"temperature": 0.7, "seed": 1} and Decode(**questions[1].decode)


def test_xlsx_needs_its_package(tmp_path):
    questions = named({"index": 3}, {"index": 4})
    answers = {q.id: Answer(id=q.id, turns=("A",)) for q in questions}
    try:
        import openpyxl  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match="needs openpyxl"):
            official.write(tmp_path / "a.xlsx", "mmbench", questions, answers)
        return
    official.write(tmp_path / "a.xlsx", "mmbench", questions, answers)
    assert texts(tmp_path / "a.xlsx", questions) == {"q0": ("A",), "q1": ("A",)}


@pytest.mark.parametrize("name", [n for n in golden("prompts/items.json") if "/" not in n and n != "mmhal@rlaifv"])
def test_an_official_file_of_each_benchmark_is_read_in_any_order(tmp_path, name):
    """Its own layout and its file for a server: by a name that a benchmark does not know, the order would decide. (In
    TextVQA's file for a server question_id is no image, as it is in LLaVA's: that is told.)"""
    bench, questions = stored(name, tmp_path)
    answers = {q.id: Answer(id=q.id, turns=(f"said {n}",)) for n, q in enumerate(questions)}
    wanted = {key: answer.turns for key, answer in answers.items()}
    path = tmp_path / ("answers.tsv" if bench.layout == "mmbench" else "answers.json")
    official.write(path, bench.layout if bench.layout != "mme" else "llava", questions, answers)
    assert texts(path, questions[::-1], bench) == wanted
    for file, content in bench.upload(questions, answers, Data(tmp_path, bench)).items():
        if file.endswith((".json", ".jsonl")) and bench.name != "textvqa":
            (tmp_path / file).write_bytes(content)
            assert texts(tmp_path / file, questions[::-1], bench) == wanted, file
