"""Q-Bench: letters, kinds of question, LLaVA's prompt and the file of responses."""

import json

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches.qbench import QBench
from tests.make.marking import Marked, Said, asked

BENCH = QBench()
KEYS = ("img_path", "question", "candidates", "correct_ans", "type", "concern")
ROWS = [
    dict(zip(KEYS, row, strict=True))
    for row in (
        ("1.jpg", "How is the light?", ["High", "Low"], "Low", 1, 0),
        ("1.jpg", "Is it sharp?", ["Yes", "No"], "Yes", 0, 1),
        ("2.jpg", "What blurs it?", ["Noise", "Motion", "Focus"], "Focus", 2, 1),
    )
]


def folder_of(path, rows=ROWS, name="llvisionqa_dev.json"):
    (path / name).write_text(json.dumps(rows))
    return path


def test_letters_by_either_rule(tmp_path):
    texts = {"0": "B. Low", "1": "yes!", "2": "**C**"}
    found = Marked(BENCH, folder_of(tmp_path), texts)
    third = pytest.approx(2 / 3)
    assert Marked(BENCH, tmp_path, texts, flavour="2023").metrics["accuracy"] == third  # "**C**" is none to it
    assert found.metrics.pop("accuracy") == 1.0 and found.metrics == dict.fromkeys(
        ("concern.0", "concern.1", "type.0", "type.1", "type.2"), 1.0
    )
    assert Marked(BENCH, tmp_path, texts | {"0": "?"}).scoring.counts["no letter"] == 1


SCRIPT = """
def build_prompt(question, options, prediction):
    tmpl = ("Match it. {} {} {}")
def build_prompt_cn(question, options, prediction):
    tmpl = ("配对。{} {} {}")
"""


def test_a_judge_says_what_an_answer_without_a_letter_means(tmp_path):
    """As VLMEvalKit: only that one is asked about, in the language of its question; a lot where nothing helps."""
    rows = [*ROWS[:2], ROWS[2] | {"question": "什么模糊了它?"}]
    (folder_of(tmp_path, rows) / "multiple_choice.py").write_text(SCRIPT)
    texts = {"0": "rather dim", "1": "B", "2": "it was not sharp"}
    judge = Said(lambda call: "B" if call.key == "0" else "C. Focus")
    found = Marked(BENCH, tmp_path, texts, flavour="judge", judge=judge)
    assert found.told("right") == {"0": True, "1": False, "2": True} and not found.scoring.own_prompt
    asked_in = {call.key: call.messages[0]["content"] for call in judge.calls}
    assert asked_in == {
        "0": "Match it. How is the light? There are several options: \nA. High\nB. Low\n rather dim",
        "2": "配对。什么模糊了它? There are several options: \nA. Noise\nB. Motion\nC. Focus\n it was not sharp",
    }
    vague = Said(lambda call: "?")
    lot = Marked(BENCH, tmp_path, texts, flavour="judge", judge=vague)
    assert len(vague.calls) == 6 and lot.scoring.counts["drawn by lot"] == 2
    (tmp_path / "multiple_choice.py").unlink()
    assert Marked(BENCH, tmp_path, texts, flavour="judge", judge=judge).scoring.own_prompt
    with pytest.raises(ValueError, match="qbench needs a judge"):
        Marked(BENCH, tmp_path, texts, flavour="judge")


def test_prompts_end_with_a_line_end_as_in_llavas_script(tmp_path):
    question = asked(BENCH, folder_of(tmp_path))[0]
    assert question.turns == ("How is the light?\nChoose between one of the options as follows:\nA. High\nB. Low\n",)
    chinese = asked(BENCH, tmp_path, "llava-zh")[0].turns[0]
    assert chinese == "How is the light?\\在下列选项中选择一个:\nA. High\nB. Low\n"  # its backslash too


def test_the_test_split_is_sent_away(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "correct_ans"} for row in ROWS]
    with pytest.raises(ValueError, match="send its authors the file of responses"):
        Marked(BENCH, folder_of(tmp_path, rows), {"0": "A", "1": "A", "2": "A"})
    answers = {str(n): type("A", (), {"text": "B"}) for n in range(3)}
    out = BENCH.upload(asked(BENCH, tmp_path), answers, Data(tmp_path, BENCH))["qbench_responses.jsonl"].decode()
    assert [json.loads(line) for line in out.splitlines()] == [row | {"response": "B"} for row in rows]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"qbench needs its questions \(LLVisionQA\)"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match="row 0: 'None' is not one of its candidates"):
        asked(BENCH, folder_of(tmp_path, [ROWS[0] | {"correct_ans": "None"}]))
