"""Q-Bench: letters, kinds of question, LLaVA's prompt and the file of responses."""

import json

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches.qbench import QBench
from tests.make.marking import Marked, asked

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
