"""Object HalBench against RLAIF-V's script (@83d917b): rules, and the extractor by recorded replies of a judge.

golden/objhal holds the replies and what spaCy's en_core_web_sm 3.8.0 makes of each phrase in them; golden/chair the
captions, and what the script gives with our own list of synonyms (expected_own_synonyms.json, objhal and objhal_llm).
"""

import base64
import json
import shutil

import pytest

from mmfast.evals import extraction
from mmfast.evals.base import Data
from mmfast.evals.benches import bench
from mmfast.evals.extraction import matched, parsed
from mmfast.evals.make_tables import chair_table
from tests.make.marking import GOLDEN, marked, official, recorded

pytest.importorskip("nltk")
HERE, CHAIR = GOLDEN / "objhal", GOLDEN / "chair"
ROWS = [json.loads(line) for line in (HERE / "answers.jsonl").read_text().splitlines()]
TEXTS = {str(row["image_id"]): row["text"] for row in ROWS}
REPLIES = json.loads((HERE / "recorded_extractor_replies.json").read_text())
PHRASES = json.loads((HERE / "phrases_en_core_web_sm.json").read_text())
OWN = json.loads((CHAIR / "expected_own_synonyms.json").read_text())
FIGURES = ("CHAIRs", "CHAIRs_refine", "CHAIRi", "obj_rec")
SCRIPT = 'raise SystemExit("read, not run")\nprompt_template = """Q: {question} A: {answer}"""\n'


@pytest.fixture(autouse=True)
def analysis(monkeypatch):
    asked = []

    def recorded(model):
        asked.append(model)
        return lambda phrase: [tuple(token) for token in PHRASES[phrase]]

    monkeypatch.setattr(extraction, "spacy_analysis", recorded)
    return asked


def folder(tmp_path, synonyms=CHAIR / "synonyms.txt"):
    shutil.copy(synonyms, tmp_path / "synonyms_refine.txt")
    rows = [{"image_id": row["image_id"], "question": row["prompt"], "image": "x.jpg"} for row in ROWS]
    (tmp_path / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "eval_gpt_obj_halbench.py").write_text(SCRIPT)
    chair_table(CHAIR / "coco_annotations", tmp_path / "synonyms_refine.txt", tmp_path / "objects.txt.xz", "objhal")
    return tmp_path


def check(metrics, expected):
    for name in FIGURES:
        assert metrics[name] / 100 == pytest.approx(expected[name], rel=1e-14), name
    assert metrics["avg_word_len"] == pytest.approx(expected["avg_word_len"], rel=1e-15)


def test_rules_by_our_own_synonyms(tmp_path):
    texts = {str(row["image_id"]): row["caption"] for row in json.loads((CHAIR / "answers_own.json").read_text())}
    metrics, marks, scoring = marked("objhal", folder(tmp_path), texts, flavour="rules")
    check(metrics, OWN["objhal"])
    assert scoring.notes == []
    chair_table(CHAIR / "coco_annotations", CHAIR / "synonyms.txt", tmp_path / "objects.txt.xz")
    assert "--reading objhal" in marked("objhal", tmp_path, texts, flavour="rules")[2].notes[0]
    for mark in marks:
        assert mark.told["wrong_words"] == OWN["objhal"]["wrong"][mark.id]
        assert mark.sums["mentions"] == len(OWN["objhal"]["said"][mark.id])


def test_the_extractor_by_our_own_synonyms_asks_again_and_spares_short_answers(tmp_path, analysis):
    judge = recorded(REPLIES)
    metrics, marks, scoring = marked("objhal", folder(tmp_path), TEXTS, judge=judge, spacy="small")
    check(metrics, OWN["objhal_llm"])
    assert analysis == ["small"] and [mark.id for mark in marks] == list(TEXTS)
    assert {call.key for call in judge.calls} == (TEXTS.keys() - {"122"}) | {"105#1"}
    assert scoring.counts["asked again"] == 1 and scoring.counts["unparsed"] == 0 and not scoring.own_prompt
    first = judge.calls[0]
    assert first.messages == ({"role": "system", "content": f"Q: {ROWS[0]['prompt']} A: {TEXTS['101'][11:]}"},)
    assert (first.decode.temperature, first.decode.max_tokens) == (0.2, 512)


@pytest.mark.parametrize("flavour, name", [("rules", "rules_no_llm"), ("llm", "llm_extractor")])
def test_the_published_synonyms_give_the_published_golden_vectors(tmp_path, flavour, name):
    (synonyms,) = official("chair/synonyms_refine.txt")
    expected = json.loads((HERE / f"expected_{name}.json").read_text())
    home = folder(tmp_path, synonyms)
    metrics, marks, _ = marked("objhal", home, TEXTS, flavour=flavour, judge=recorded(REPLIES))
    check(metrics, expected["overall_metrics"])
    printed = expected["summary_script"]
    assert round(metrics["CHAIRs_refine"], 2) == printed["Response Hall"]
    assert round(metrics["CHAIRi"], 2) == printed["Object Hall"]
    assert round(metrics["obj_rec"], 2) == printed["Object Recall"]
    assert round(metrics["avg_word_len"], 2) == printed["Average Length"]
    assert metrics["obj_f1"] == pytest.approx(printed["obj_f1_unprinted"], rel=1e-14)
    for mark, sentence in zip(marks, expected["sentences"], strict=True):
        assert mark.told["wrong_words"] == [word for word, _ in sentence["mscoco_hallucinated_words"]]
        assert mark.sums["mentions"] == len(sentence["mscoco_generated_words"])


def test_what_is_no_list_is_left_out_and_told(tmp_path):
    judge = recorded({**REPLIES, "103": ["none", "{}", '"dog"', "never asked"]})
    _, marks, scoring = marked("objhal", folder(tmp_path), TEXTS, judge=judge)
    assert "103" not in {mark.id for mark in marks} and len(marks) == 21
    assert scoring.counts["unparsed"] == 1 and scoring.counts["asked again"] == 3
    assert scoring.notes == ["1 answers are left out, for the judge gave no list for them (the first: 103)"]


def test_three_words_are_no_description_and_four_are(tmp_path):
    texts = {**TEXTS, "101": "A dog sits.", "102": " A dog  sits there.\n"}
    judge = recorded(REPLIES)
    marked("objhal", folder(tmp_path), texts, judge=judge)
    asked = {call.key for call in judge.calls}
    assert "101" not in asked and "102" in asked


def test_replies_are_read_as_officially():
    assert parsed('["dog", "cat"]') == ["dog", "cat"]
    assert parsed('Here:\n["dog"]\n') == ["dog"]
    assert parsed('["dog"]\nThat is all.') is None
    assert parsed("Here:\n[]") is None  # without a quote the last line is not looked at
    assert parsed("{}") is None


def test_known_pairs_win_over_runs_of_nouns(tmp_path):
    folder(tmp_path)
    vocabulary = extraction.Vocabulary((tmp_path / "synonyms_refine.txt").read_text(), "objhal")
    tags = {
        "a red kitchen sink": [("a", "DT"), ("red", "JJ"), ("kitchen", "NN"), ("sink", "NN")],
        "a wine glass and fork": [("a", "DT"), ("wine", "NN"), ("glass", "NN"), ("and", "CC"), ("fork", "NN")],
        "a dog, cat": [("a", "DT"), ("dog", "NN"), (",", ","), ("cat", "NN")],
    }
    assert matched([phrase[2:] for phrase in tags], vocabulary, tags.get) == [
        "kitchen sink",
        "wine glass",
        "dog",
        "cat",
    ]


def test_texts_of_a_hindsight_model_lose_their_markers(tmp_path):
    texts = dict.fromkeys(TEXTS, "A clock. The following is a response without hallucination. A zebra and a dog")
    home = folder(tmp_path)
    told = marked("objhal", home, texts, flavour="rules", hindsight="yes")[1][0]
    assert told.sums["mentions"] == 1 and told.sums["words"] == 5
    assert marked("objhal", home, texts, flavour="rules")[1][0].sums["mentions"] == 2
    assert bench("objhal").text("A dog. Generate a response with errors. A cat", True) == "A dog."
    with pytest.raises(ValueError, match="hindsight is yes or no"):
        marked("objhal", home, texts, flavour="rules", hindsight="coh")


def test_images_may_lie_in_the_questions(tmp_path):
    home = folder(tmp_path)
    content = bytes(range(256)) * 2
    row = {"image_id": 101, "question": "What?", "image": base64.b64encode(content).decode()}
    (home / "images.jsonl").write_text(json.dumps(row))
    one = bench("objhal")
    (question,) = one.questions(Data(home, one), one.wordings["rlhfv"])
    assert question.images[0].data == content and question.official == {"image_id": 101}
    assert one.wordings["rlhfv"].decode.beams == 3
    (home / "images.jsonl").write_text(json.dumps({"image_id": 101}))
    with pytest.raises(ValueError, match="image 101 of Object HalBench has no question"):
        list(one.questions(Data(home, one), one.wordings["rlhfv"]))


def test_mistakes_are_told_before_the_judge_is_asked(tmp_path, monkeypatch):
    home = folder(tmp_path)
    with pytest.raises(ValueError, match="objhal needs a judge"):
        marked("objhal", home, TEXTS)
    judge = recorded(REPLIES)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="spaCy's no_such_model, which is not installed"):
        marked("objhal", home, TEXTS, judge=judge, spacy="no_such_model")
    (home / "eval_gpt_obj_halbench.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no prompt_template"):
        marked("objhal", home, TEXTS, judge=judge)
    assert judge.calls == []
    (home / "eval_gpt_obj_halbench.py").unlink()
    _, _, scoring = marked("objhal", home, dict.fromkeys(TEXTS, ""))
    assert scoring.own_prompt
