"""MMBench: circular hits and reports of VLMEvalKit, with a judge and without, LLaVA's prompts and workbook."""

import base64
import csv
import io
import zipfile

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches.mmbench import MmBench, MmBenchCn
from mmfast.evals.sheet import workbook
from tests.make.marking import Marked, Said, asked, golden

BENCH, INPUTS, EXPECTED = MmBench(), golden("mmbench/inputs.json"), golden("mmbench/expected.json")
IMAGE = base64.b64encode(b"picture" * 20).decode()
TEXTS = {str(row["index"]): row["prediction"] for row in INPUTS["rows"]}
COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "source",
    "l2-category",
    "image",
    "comment",
    "split",
)
SCRIPT = """
def build_prompt(question, options, prediction):
    tmpl = (
        'Match it. '
        'Question: {}?\\nOptions: {}\\nAnswer: {}\\nYour output: '
    )
    return tmpl.format(question, options, prediction)
class MMBench_Evaluator:
    def build_prompt(self, question, options, prediction):
        tmpl = ("Match. {} {} {}")
"""


def folder_of(path, rows=INPUTS["rows"], name="mmbench_dev_20230712.tsv", **more):
    with open(path / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            short = str(row["index"] % 1_000_000) if row["index"] >= 1_000_000 else IMAGE
            writer.writerow({"image": short, **{k: v for k, v in row.items() if v is not None}, **more})
    return path


def test_the_official_groups_and_report(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), TEXTS)
    hits = EXPECTED["group_hits_prefetch(None=needs_judge)"]
    assert {mark.id: int(mark.told["right"]) for mark in found.marks} == {k: v or 0 for k, v in hits.items()}
    (report,) = EXPECTED["report_acc_exact_matching"]
    assert found.metrics == {name.replace("Overall", "overall"): v for name, v in report.items() if name != "split"}
    assert found.scoring.counts["no letter"] > 0 and found.scoring.counts["judge calls"] == 0


def test_a_judge_is_asked_only_where_it_can_change_something(tmp_path):
    """Groups that are wrong already are not asked about, nor rows behind a wrong one; three tries a row."""
    (folder_of(tmp_path) / "multiple_choice.py").write_text(SCRIPT)
    gold = {str(row["index"]): row["answer"] for row in INPUTS["rows"]}
    judge = Said(lambda call: gold[call.key])
    found = Marked(BENCH, tmp_path, TEXTS, flavour="judge", judge=judge)
    hits = EXPECTED["group_hits_prefetch(None=needs_judge)"]
    assert {mark.id: mark.told["right"] for mark in found.marks} == {k: v != 0 for k, v in hits.items()}
    assert {int(call.key) % 1_000_000 for call in judge.calls} == {int(k) for k, v in hits.items() if v is None}
    text = judge.calls[0].messages[0]["content"]
    assert text.startswith("Match it. Question: q?\nOptions: There are several options: \nA. ")
    assert judge.calls[0].decode.temperature == 0 and not found.scoring.own_prompt
    # One that says nothing to the point is asked three times a row, with other seeds, and then a lot is drawn
    vague = Said(lambda call: "?")
    lot = Marked(BENCH, tmp_path, TEXTS, flavour="judge", judge=vague)
    assert lot.scoring.counts["drawn by lot"] == len(vague.calls) / 3 > 0
    first = vague.calls[0].key
    seeds = {call.key: call.decode.seed for call in vague.calls if call.key.partition("#")[0] == first}
    assert seeds == {first: 0, f"{first}#1": 1, f"{first}#2": 2}
    strict = Marked(BENCH, tmp_path, TEXTS, flavour="judge", judge=vague, strict=True)
    exact = Marked(BENCH, tmp_path, TEXTS, strict=True)
    assert strict.metrics == exact.metrics and not strict.scoring.counts["drawn by lot"]


def test_the_flavours_of_2023(tmp_path):
    folder_of(tmp_path)
    texts = TEXTS | {"1": "[B]"}
    assert Marked(BENCH, tmp_path, texts).told("right")["1"] is True
    assert Marked(BENCH, tmp_path, texts, flavour="exact-2023").told("right")["1"] is False
    (tmp_path / "mmbench_evals.py").write_text(SCRIPT)
    judge = Said(lambda call: "B")
    assert Marked(BENCH, tmp_path, texts, flavour="judge-2023", judge=judge).told("right")["1"] is True
    assert judge.calls[0].messages[0]["content"].startswith("Match. q There are")


def test_our_own_words_are_told(tmp_path):
    judge = Said(lambda call: "A")
    found = Marked(BENCH, folder_of(tmp_path), TEXTS, flavour="judge", judge=judge)
    assert found.scoring.own_prompt and "multiple_choice.py" in found.scoring.notes[0]
    with pytest.raises(ValueError, match="mmbench needs a judge"):
        Marked(BENCH, tmp_path, TEXTS, flavour="judge")
    (tmp_path / "multiple_choice.py").write_text("tmpl = 'x'")
    with pytest.raises(ValueError, match=r"has no build_prompt.tmpl with three places"):
        Marked(BENCH, tmp_path, TEXTS, flavour="judge", judge=judge)


def test_a_judge_that_fails_midway(tmp_path):
    from mmfast.engines.base import Reply

    judge = Said(
        lambda call: Reply(key=call.key, finish="error", error="out of money") if call.key == "3000006" else "A"
    )
    with pytest.raises(
        ValueError, match=r"the judge failed at 1 of \d calls .*3000006: out of money.*asks only for the rest"
    ):
        Marked(BENCH, folder_of(tmp_path), TEXTS, flavour="judge", judge=judge)


def test_prompts_are_llavas(tmp_path):
    row = {"index": 7, "question": "What is it?\tNow", "hint": "Two lines\nof hint", "A": "a cat", "B": "NA", "C": "x"}
    rows = [
        row | {"answer": "A"},
        {"index": 8, "question": "2?", "hint": "nan", "A": "1", "B": "2", "C": "3", "answer": "C"},
    ]
    first, second = asked(BENCH, folder_of(tmp_path, rows))
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert first.turns == ("Two lines\nof hint\nWhat is it?\tNow\nA. a cat" + letter,)  # up to the first empty option
    assert second.turns == ("2?\nA. 1\nB. 2\nC. 3" + letter,)
    assert second.images[0].data == b"picture" * 20
    cn = asked(MmBenchCn(), folder_of(tmp_path, rows, "mmbench_dev_cn_20231003.tsv"))
    assert cn[1].turns == ("2?\nA. 1\nB. 2\nC. 3\n请直接回答选项字母。",)


def test_several_splits_are_apart(tmp_path):
    rows = [
        {"index": n, "question": "q", "A": "1", "B": "2", "answer": "A", "split": s}
        for n, s in ((1, "dev"), (2, "test"))
    ]
    told = Marked(BENCH, folder_of(tmp_path, rows), {"1": "A", "2": "B"}).metrics
    assert told == {"dev.overall": 1.0, "test.overall": 0.0}


def test_the_workbook(tmp_path):
    found = Marked(BENCH, folder_of(tmp_path), TEXTS | {"1": "<B> & \x00\n"})
    book = BENCH.upload(found.questions, found.answers, Data(tmp_path, BENCH))["mmbench_upload.xlsx"]
    sheet = zipfile.ZipFile(io.BytesIO(book)).read("xl/worksheets/sheet1.xml").decode()
    head = "".join(
        f'<c t="inlineStr"><is><t xml:space="preserve">{n}</t></is></c>'
        for n in ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    )
    assert f"<sheetData><row>{head}</row><row><c><v>1</v></c>" in sheet
    assert "&lt;B&gt; &amp; \n</t>" in sheet and sheet.count("<row>") == 1 + len(TEXTS)
    assert workbook([["a"]]) == workbook([["a"]])


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mmbench needs its table, .*openmmlab"):
        asked(BENCH, tmp_path)
    with pytest.raises(ValueError, match="index 1: its image is no base64"):
        asked(BENCH, folder_of(tmp_path, INPUTS["rows"][:1], image="äö"))
    with pytest.raises(ValueError, match=r"its table has no answers|table has no answers: a test split"):
        Marked(BENCH, folder_of(tmp_path, [{k: v for k, v in INPUTS["rows"][0].items() if k != "answer"}]), {"1": "A"})
    with pytest.raises(ValueError, match=r"index '1.5' is no number"):
        (tmp_path / "mmbench_dev_20230712.tsv").write_text(f"index\tquestion\tA\timage\n1.5\tq\ta\t{IMAGE}\n")
        asked(BENCH, tmp_path)
