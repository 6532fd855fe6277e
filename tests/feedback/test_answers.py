"""Answers out of folders and files: joined, cut, judged, compared, corrected; and what is made of them."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.known import read_records
from mmfast.feedback.answers import grouped, read_answers
from tests.make.stage_folders import answer, asked, folder

FIVE = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, ValueError), repr(result.exception)
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def make(tmp_path):
    """Runs `mmfast data ...`: what it said, and the records it wrote."""
    out = tmp_path / "out.jsonl"

    def data(*arguments):
        out.unlink(missing_ok=True)
        said = run("data", *arguments, "-o", out)
        return said, list(read_records(out)) if out.exists() else []

    return data


def sides(records):
    return [(r.chosen[0]["content"], r.rejected[0]["content"]) for r in records]


# folders


@pytest.fixture
def answers(tmp_path):
    rows = [
        answer("k1", "A red mug.", meta={"reference": "A mug."}),
        answer("k2", "A blue mug.", sample=1),
        answer("k3", "A cat which", sample=2, finish="length"),
        answer("k4", "Two cows.", group="h", prompt=asked("How many?", system="Be brief.")),
    ]
    return folder(tmp_path / "answers", "generate", rows)


def test_numbers_of_generate_are_no_scores(answers, make):
    found = list(read_answers(answers))
    assert [one.scores for one in found] == [{}] * 4 and found[0].meta == {
        "tokens": 9, "logp": -3.5, "reference": "A mug.",
    }  # fmt: skip
    assert [len(group) for group in grouped(found)] == [3, 1]
    assert found[0].images[0] == str(answers / "a.png") and found[0].reference == "A mug."
    for name in ("logp", "tokens", "seed", "sample"):
        assert f"no score {name} (it has none)" in make("pairs", answers, "--rule", "rlaifv", "--score", name)[0]


def test_system_prompts_and_several_turns_survive(tmp_path, make):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A mug."},
        {"role": "user", "content": "Which colour?"},
    ]
    rows = [
        answer("k1", "Red.", prompt=turns, scores={"claims": 0}),
        answer("k2", "Blue.", prompt=turns, scores={"claims": -1}),
    ]
    _, (pair,) = make("pairs", folder(tmp_path / "g", "grade", rows), "--rule", "rlaifv")
    assert pair.prompt == tuple(turns) and sides([pair]) == [("Red.", "Blue.")]
    _, found = make("sft", tmp_path / "g")
    assert [record.prompt for record in found] == [tuple(turns)] * 2
    scored = [row | {"scores": dict.fromkeys(FIVE, 3)} for row in rows]
    _, found = make("steerlm", folder(tmp_path / "s", "grade", scored))
    assert found[0].prompt[:3] == tuple(turns[:3]) and found[0].prompt[3]["content"].startswith("Which colour?\nPlease")


def test_cut_answers_are_left_out_and_counted(answers, make):
    said, found = make("sft", answers)
    assert len(found) == 3 and "1 left out: they were cut at max_tokens (--keep-cut keeps them)" in said
    said, found = make("sft", answers, "--keep-cut")
    assert len(found) == 4 and "cut" not in said
    folder(answers, "generate", [answer("k", "A cat which", finish="length")])
    said, _ = make("sft", answers)
    assert said.startswith("nothing is left to write") and "1 left out: they were cut at max_tokens" in said


def test_an_incomplete_folder_is_told_and_read(answers, make):
    folder(answers, "generate", [answer("k", "A cat.")], complete=False, counts={"failed": 2})
    said, found = make("sft", answers)
    assert f"{answers} is not complete (2 of its requests failed): what it holds is read" in said and len(found) == 1
    folder(answers, "generate", [answer("k", "A cat.")], complete=False)
    assert "is not complete (it was limited, or stopped before its end)" in make("sft", answers)[0]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("decompose", "is a folder of decompose: its items are no scores yet (mmfast check, then mmfast grade)"),
        ("check", "is a folder of check: its verdicts are no scores yet (mmfast grade)"),
        ("critique", "is a folder of critique: its verdicts are on pairs of answers (mmfast data pairs --rule sima)"),
        ("correct", "is a folder of correct: it holds corrections (mmfast data pairs --rule rlhfv)"),
        ("dance", "is a folder of dance: answers are read from folders of generate, judge, grade"),
    ],
)
def test_a_folder_of_another_stage_says_what_to_do(stage, said, tmp_path, make):
    told, _ = make("sft", folder(tmp_path / "f", stage, []))
    assert told == f"{tmp_path}/f {said}"


def test_what_is_neither_a_folder_of_answers_nor_a_file_is_told(tmp_path, make):
    for path in (tmp_path / "gone", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(
            ValueError, match=rf"^{path} is no folder of answers \(mmfast generate writes one\), and no file: "
        ):
            list(read_answers(path))


def test_a_row_that_is_no_answer_is_named(answers, make):
    (answers / "rows-0.jsonl").write_text('{"key": "k", "row": 0, "answer": "x"}\n')
    assert make("sft", answers)[0] == f"{answers}:k is no row of this stage: it has no group"
    bad = [
        answer("k", "A.", prompt=[]),
        answer("k", "A.", images=[3]),
        answer("k", None),
        answer("k", "A.", prompt="What?"),
    ]
    for row, said in zip(
        bad, ("is no row of an answer", "is no row of an answer", "its answer is null", "its prompt is"), strict=True
    ):
        told, _ = make("sft", folder(answers, "generate", [row]))
        assert told.startswith(f"{answers}:k is no row") and said in told
    for manifest in ("{", "[]"):
        (answers / "manifest.json").write_text(manifest)
        assert make("sft", answers)[0] == f"{answers}/manifest.json is damaged: it holds no JSON object"


@pytest.mark.parametrize(
    ("stage", "row", "said"),
    [
        ("critique", {"verdict": "a"}, "it has no a"),
        ("judge", {"answers": "k1", "scores": {}}, 'its answers is "k1"'),
        ("judge", {"answers": ["k1"], "scores": [1]}, "its scores is [1]"),
        ("correct", {"answer_key": "k1", "corrected": None, "segments": []}, "its corrected is null"),
    ],
)
def test_damaged_rows_of_stages_are_one_line(stage, row, said, answers, tmp_path, make):
    source = folder(tmp_path / stage, stage, [{"key": "x"} | row], input="answers")
    rule = {"critique": "sima", "judge": "mllm_dpo", "correct": "rlhfv"}[stage]
    assert make("pairs", source, "--rule", rule)[0] == f"{source}:x is no row of this stage: {said}"


def test_empty_answers_are_left_out_and_counted(rows, make):
    base = {"question": "What?"}
    path = rows(
        "a.jsonl",
        [
            base | {"answer": " \n", "claims": [["x", False]]},
            base | {"answer": "B.", "claims": []},
            base | {"answer": "C.", "claims": [["y", False]]},
        ],
    )
    said, found = make("pairs", path, "--rule", "rlaifv")
    assert sides(found) == [("B.", "C.")] and "1 left out: they are empty" in said


def test_nothing_is_written_into_a_folder_of_rows(answers):
    assert "lies in the folder of rows" in run("data", "sft", answers, "-o", answers / "out.jsonl")


# judge


@pytest.fixture
def judged(answers, tmp_path):
    scores = {
        "k1": {name.lower(): 4 for name in FIVE},  # as the stage's own prompt names them
        "k2": dict.fromkeys(FIVE, 1) | {"Verbosity": None},
        "k3": None,
    }
    rows = [
        {"key": "j1", "group": "g", "answers": ["k1", "k2", "k3"], "scores": scores, "reference": "A red mug, it is.",
         "reason": {"k1": "good", "k2": "bad", "k3": ""}, "template": "judge_five:" + "ab" * 8},
        {"key": "old", "group": "g", "answers": ["k1"], "scores": {"k1": dict.fromkeys(FIVE, 0)}, "reference": "Old.",
         "reason": {}, "template": "judge_five:" + "cd" * 8},
    ]  # fmt: skip
    return folder(tmp_path / "judged", "judge", rows, input="answers", template={"judge_five": {"digest": "ab" * 32}})


def test_a_judges_folder_gives_every_kind_of_set(judged, make):
    said, found = make("pairs", judged, "--rule", "mllm_dpo", "--keep-cut", "--on-error", "drop")
    assert sides(found) == [("A red mug.", "A blue mug.")] and found[0].scores == {"chosen": 12, "rejected": 3}
    assert "left out: 1 rows (1 score)" in said and f"left out: {judged}:j1: no score Helpfulness (it has none)" in said
    assert f"{judged}: 1 rows of an earlier wording are passed over" in said
    _, found = make("sft", judged, "--score", "Helpfulness + Correctness", "--minimum", "8")
    assert [r.chosen[0]["content"] for r in found] == ["A red mug."]
    said, found = make("sft", judged, "--answer", "reference")
    assert [r.chosen[0]["content"] for r in found] == ["A red mug, it is."]  # once, whatever was cut
    said, found = make("steerlm", judged, "--on-error", "drop")
    assert len(found) == 1 and "no score Verbosity" in said
    _, found = make("steerlm", judged, "--hindsight", "--attributes", "Helpfulness,Correctness")
    assert len(found) == 1 and found[0].prompt[1]["content"] == "A blue mug."


def test_a_null_score_ends_the_command_unless_dropped(judged, make):
    assert make("pairs", judged, "--rule", "mllm_dpo", "--keep-cut")[0] == (
        f"{judged}:j1: no score Helpfulness (it has none)"
    )


def test_answers_that_a_judge_names_are_found_or_asked_for(judged, answers, make, tmp_path):
    answers.rename(tmp_path / "moved")
    assert make("sft", judged)[0] == (
        f"{judged} names answers by their keys (its manifest names answers, which is not beside it): give them with "
        "--answers FOLDER_OR_FILE"
    )
    assert len(make("sft", judged, "--answers", tmp_path / "moved")[1]) == 2
    folder(tmp_path / "other", "generate", [answer("k1", "A red mug.")])
    said, _ = make("sft", judged, "--answers", tmp_path / "other")
    assert said.startswith(f"{judged}:j1: the answer k2 is not among the answers that {judged} is read with")
    said, found = make("sft", judged, "--answers", tmp_path / "other", "--on-error", "drop")
    assert len(found) == 1 and "left out: 2 rows (2 answers)" in said


def test_options_that_do_nothing_are_refused(judged, answers, make, rows):
    assert make("sft", judged, "--answer", "text")[0].startswith("--answer is for files of answers, and ")
    assert make("sft", answers, "--questions", answers)[0].startswith("--questions is for files of answers, and ")
    assert make("sft", judged, "--answer", "reference", "--score", "x")[0].startswith("--score ranks a model's answers")
    assert make("steerlm", judged, "--answer", "reference")[0].startswith("SteerLM asks for an answer by its own")
    assert make("pairs", answers, "--rule", "rlhfv", "--margin", "1")[0].startswith("--rule rlhfv takes people's corr")
    assert "--weight is for claims and corrections" in make("pairs", answers, "--rule", "sima", "--weight", "2")[0]
    assert "is a folder of generate: a folder of mmfast critique" in make("pairs", answers, "--rule", "sima")[0]
    path = rows("x.jsonl", [{"question": "a", "answer": "b"}])
    assert "x.jsonl is no folder of corrections" in make("pairs", path, "--rule", "rlhfv")[0]
    assert "--keep-cut and --weight are for folders" in make("pairs", path, "--rule", "sima", "--keep-cut")[0]


# critique


def compared(a, b, verdict, order="ab", **more):
    return {"key": f"{a}{b}{order}", "a": a, "b": b, "order": order, "verdict": verdict, "p": None} | more


def test_verdicts_become_pairs(answers, tmp_path, make):
    rows = [
        compared("k1", "k2", "b", p=0.25, reason="it is blue"),
        compared("k1", "k3", "a"),
        compared("k1", "k4", "tie"),
        compared("k2", "k4", None),
    ]
    critic = folder(tmp_path / "critic", "critique", rows, input="answers, pairs all", order="one")
    said, found = make("pairs", critic, "--rule", "sima")
    assert sides(found) == [("A blue mug.", "A red mug.")]
    assert found[0].meta == {"p": 0.75, "reason": "it is blue"} and found[0].scores is None
    for line in ("pairs compared: 4", "ties: 1", "without a verdict: 1", "1 left out: they were cut"):
        assert line in said
    _, found = make("pairs", critic, "--rule", "sima", "--keep-cut")
    assert sides(found) == [("A blue mug.", "A red mug."), ("A red mug.", "A cat which")]


def test_both_orders_must_agree(answers, tmp_path, make):
    rows = [
        compared("k1", "k2", "a", p=0.9), compared("k1", "k2", "a", "ba", p=0.7),
        compared("k1", "k4", "a"), compared("k1", "k4", "b", "ba"),
        compared("k2", "k4", "a"), compared("k2", "k4", None, "ba"),
        compared("k4", "k2", "b"),
    ]  # fmt: skip
    critic = folder(tmp_path / "critic", "critique", rows, input="answers", order="both")
    said, found = make("pairs", critic, "--rule", "sima")
    assert sides(found) == [("A red mug.", "A blue mug.")] and found[0].meta == {"p": pytest.approx(0.8)}
    assert "orders disagree: 1" in said and "without a verdict: 2" in said


def test_a_verdict_on_unknown_answers_is_named(answers, tmp_path, make):
    critic = folder(
        tmp_path / "critic", "critique", [compared("k1", "gone", "a"), compared("k1", "k2", "a")], input="answers"
    )
    assert make("pairs", critic, "--rule", "sima")[0].startswith(f"{critic}:k1goneab: the answer gone is not among")
    said, found = make("pairs", critic, "--rule", "sima", "--on-error", "drop")
    assert len(found) == 1 and "left out: 1 rows (1 answers)" in said


# correct


def test_corrections_mark_what_was_rewritten(answers, tmp_path, make):
    change = {"span": [2, 5], "kind": "attribute", "from": "red", "to": "bright blue"}
    gone = {"span": [5, 9], "kind": "object", "from": " mug", "to": ""}
    rows = [
        {"key": "c1", "answer_key": "k1", "corrected": "A bright blue.", "segments": [gone, change], "annotator": "an"},
        {"key": "c2", "answer_key": "k1", "corrected": "A bright blue.", "segments": [change, gone], "annotator": "bo"},
        {"key": "c3", "answer_key": "k2", "corrected": "A blue mug.", "segments": [], "annotator": "an"},
    ]
    people = folder(tmp_path / "people", "correct", rows, input="answers", task="correct")
    said, (pair,) = make("pairs", people, "--rule", "rlhfv")
    assert sides([pair]) == [("A bright blue.", "A red mug.")] and pair.meta["annotator"] == "an"
    assert pair.segments == {"chosen": [(2, 13)], "rejected": [(2, 5), (6, 9)]}
    assert "right as they are: 1" in said and "corrected alike by another: 1" in said
    _, (pair,) = make("pairs", people, "--rule", "rlhfv", "--weight", "5")
    assert pair.segments["chosen"] == [(2, 13, 5.0)]
    folder(people, "correct", rows, input="answers", task="compare")
    assert "is of the task compare: mmfast corrected makes files of it" in make("pairs", people, "--rule", "rlhfv")[0]


# files


def test_questions_and_answers_are_joined(rows, tmp_path, make):
    asked_of = [
        {"question_id": n, "image": f"{n}.png", "text": f"What is {n}?", "ground_truth": f"It is {n}."}
        for n in range(3)
    ]
    said = [
        {"question_id": n, "prompt": f"What is {n}?", "text": f"Answer {n}{m}.", "answer_id": "x", "metadata": {}}
        for n in (0, 1) for m in "ab"
    ]  # fmt: skip
    questions, path = rows("q.jsonl", asked_of), rows("a.jsonl", said)
    told, found = make("sft", path, "--questions", questions)
    assert [r.chosen[0]["content"] for r in found] == ["Answer 0a.", "Answer 0b.", "Answer 1a.", "Answer 1b."]
    assert found[0].images == ("0.png",) and found[0].prompt[0]["content"][0] == {"type": "image"}
    assert "1 questions of q.jsonl have no answer, the first 2" in told
    assert [len(group) for group in grouped(read_answers(path, questions=questions))] == [2, 2]
    _, found = make("sft", path, "--questions", questions, "--answer", "reference")
    assert [r.chosen[0]["content"] for r in found] == ["It is 0.", "It is 1."]
    # An answer alone, without what was asked
    alone = rows("t.jsonl", [{"id": 2, "text": "Only this."}])
    _, (record,) = make("sft", alone, "--questions", questions)
    assert record.chosen[0]["content"] == "Only this." and record.images == ("2.png",)


@pytest.mark.parametrize(
    ("questions", "row", "said"),
    [
        ([{"question_id": 1}, {"id": "1"}], {}, "--questions: q.jsonl:1 and q.jsonl:0 have the same id 1"),
        ([{"text": "What?"}], {}, "--questions: q.jsonl:0 has no question_id and no id"),
        (["{"], {}, "--questions: q.jsonl:0: not valid JSON"),
        ([{"question_id": 2, "text": "What?"}], {}, "a.jsonl:0: q.jsonl has no question 1"),
        ([{"question_id": 1, "text": "How?"}], {}, "a.jsonl:0: question 1 is 'How?' there, and 'What?' here"),
        (
            [{"question_id": 1, "text": "What?"}],
            {"question_id": None},
            "a.jsonl:0: the answer has no question_id and no id",
        ),
    ],
)
def test_a_join_that_does_not_fit_is_one_line(questions, row, said, rows, make):
    path = rows("a.jsonl", [{"question_id": 1, "prompt": "What?", "text": "A mug."} | row])
    assert make("sft", path, "--questions", rows("q.jsonl", questions))[0].startswith(said)


def test_files_of_other_shapes(rows, make, tmp_path):
    messages = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}]
    path = rows("m.jsonl", [
        {"prompt": messages, "answers": ["One.", "Two."], "group": "mine"},
        {"prompt": "<image>\nWhat?", "answer": "Three.", "image": "a.png", "system": "Be brief.", "seed": 3, "good": 1},
        {"prompt": "What?", "answer": "Four.", "scores": {"x": 2, "word": "y"}, "other": 9, "finish": "length"},
    ])  # fmt: skip
    one, two, three, four = read_answers(path)
    assert (one.group, one.sample, two.group, two.sample) == ("mine", 0, "mine", 1) and one.images == (
        str(tmp_path / "a.png"),
    )
    assert three.prompt[0] == {"role": "system", "content": "Be brief."} and three.scores == {"good": 1.0}
    assert four.scores == {"x": 2.0} and four.finish == "length" and four.images == ()
    assert len({a.key for a in (one, two, three, four)}) == 4 and [a.row for a in (one, two, three, four)] == [
        0,
        1,
        2,
        3,
    ]
    said, found = make("sft", path)
    assert len(found) == 3 and found[0].images == ("a.png",) and "1 left out: they were cut" in said


def test_equal_answers_have_keys_of_their_own_and_keep_them(rows):
    row = {"question": "What?", "answer": "A mug.", "image": "a.png"}
    path = rows("a.jsonl", [row, row, row | {"answer": "A cat."}])
    keys = [one.key for one in read_answers(path)]
    assert len(set(keys)) == 3 and keys == [one.key for one in read_answers(path)]
    assert keys == [one.key for one in read_answers(rows("b.jsonl", [row, row, row | {"answer": "A cat."}]))]


def test_bytes_of_a_row_are_an_image(tmp_path, picture):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = picture("a.png").read_bytes()
    row = {"question": "What?", "answer": "A mug.", "image": {"bytes": data, "path": "a.png"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (one,) = read_answers(tmp_path / "a.parquet")
    assert hashlib.sha256(one.images[0]).hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ("no list", "claims"),
        ([["c"]], "a claim is [text, holds, span, p]"),
        ([["c", True, [3, 2]]], "the span [3, 2] of the claim 'c' lies outside the answer"),
        ([["c", True, [0, 99]]], "the span [0, 99] of the claim 'c' lies outside the answer"),
        ([["c", True, "no"]], "the span of the claim 'c' is not [from, to)"),
        ([["c", True, [True, 2]]], "the span of the claim 'c' is not [from, to)"),
    ],
)
def test_bad_claims_are_named(claims, said, rows, make):
    path = rows("a.jsonl", [{"question": "What?", "answer": "A mug.", "claims": claims}])
    told, _ = make("pairs", path, "--rule", "rlaifv")
    assert told.startswith("a.jsonl:0: ") and (said in told or "is no JSON" in told)


def test_a_csv_of_the_judge(tmp_path, make):
    """mllm-dpo's table: the judge's own answer stands on every row of a prompt."""
    lines = [
        "," + ",".join(("Key", "Candidate", "prompt", "image", "cur_candidate_answer", "gpt4v_response", *FIVE, "Sum"))
    ]
    for n, (text, score) in enumerate((('"A red, round mug."', 4), ("A cat.", 1), ("NA", ""))):
        lines.append(f"{n},{n},C{n},What is this?,a.png,{text},A mug.,{','.join([str(score)] * 5)},{score}")
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    said, found = make("pairs", tmp_path / "s.csv", "--rule", "mllm_dpo", "--on-error", "drop")
    assert sides(found) == [("A red, round mug.", "A cat.")] and "left out: s.csv:2: no score Helpfulness" in said
    _, found = make("sft", tmp_path / "s.csv", "--answer", "reference")
    assert [r.chosen[0]["content"] for r in found] == ["A mug."] and found[0].images == ("a.png",)
    assert make("pairs", tmp_path / "s.csv", "--rule", "rlaifv", "--score", "Key")[0].startswith(
        "s.csv:0: no score Key"
    )


def test_flipped_pairs_flip_their_claims(rows, make, tmp_path):
    base = {"question": "What?"}
    path = rows(
        "a.jsonl", [base | {"answer": "A.", "claims": [["x", True]]}, base | {"answer": "B.", "claims": [["y", False]]}]
    )
    make("pairs", path, "--rule", "rlaifv")
    run("data", "convert", tmp_path / "out.jsonl", tmp_path / "f.jsonl", "--flip", "1")
    (pair,) = read_records(tmp_path / "f.jsonl")
    assert sides([pair]) == [("B.", "A.")] and pair.meta["claims"] == {
        "chosen": [["y", False]],
        "rejected": [["x", True]],
    }
    assert json.loads((tmp_path / "f.jsonl").read_text())["meta"]["flipped"]


def test_files_become_folders_that_stages_read(rows, tmp_path, picture, make):
    """Joined with their questions, images that lie in rows beside: what is read of the folder is what the file says."""
    picture("0.png")
    questions = rows("q.jsonl", [{"question_id": 0, "image": "0.png", "text": "What?", "ground_truth": "A mug."}])
    path = rows(
        "a.jsonl", [{"question_id": 0, "prompt": "What?", "text": text, "n": 3} for text in ("A mug.", "A cat.")]
    )
    assert "import: 2 answers" in run("feedback", "import", path, "--questions", questions, "-o", tmp_path / "import")
    want, got = list(read_answers(path, questions=questions)), list(read_answers(tmp_path / "import"))
    for name in ("key", "row", "group", "images", "prompt", "text", "scores", "reference", "claims", "meta"):
        assert [getattr(one, name) for one in got] == [getattr(one, name) for one in want], name
    assert got[0].scores == {"n": 3.0} and got[0].reference == "A mug."
    assert make("sft", tmp_path / "import", "--answer", "reference")[1][0].chosen[0]["content"] == "A mug."
    assert "is a folder of rows already" in run("feedback", "import", tmp_path / "import", "-o", tmp_path / "again")


def test_images_inside_rows_are_kept_beside(tmp_path, picture):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = picture("a.png").read_bytes()
    row = {"question": "What?", "answer": "A mug.", "image": {"bytes": data, "path": "a.png"}}
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    said = run("feedback", "export", tmp_path / "a.parquet", "--as", "mllm_dpo.questions", "-o", tmp_path / "q.jsonl")
    assert said.startswith("an image lies inside a row, and these files name images: mmfast feedback import keeps it")
    run("feedback", "import", tmp_path / "a.parquet", "-o", tmp_path / "import")
    (tmp_path / "import").rename(tmp_path / "moved")
    first, second = read_answers(tmp_path / "moved")
    assert first.images == second.images and Path(first.images[0]).read_bytes() == data
    text = "base64:" + base64.b64encode(data).decode()
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "What?", "answer": "A mug.", "image": text}))
    run("feedback", "import", tmp_path / "b.jsonl", "-o", tmp_path / "coded")
    (one,) = read_answers(tmp_path / "coded")
    assert Path(one.images[0]).read_bytes() == data
