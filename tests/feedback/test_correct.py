"""`mmfast correct`: what people are shown, what they hand in, and the files that are made of it."""

import json
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.known import detect, read_records
from mmfast.data.preview import preview, tokens_of
from mmfast.data.settings import DataSettings
from mmfast.engines import stage
from mmfast.engines.people_desk import Desk
from mmfast.engines.people_server import Page
from mmfast.feedback.agreement import agreement, kappa, overlapping, segment_agreement
from mmfast.feedback.answers import read_answers
from mmfast.feedback.correct import KINDS, Plan, corrected, fill, prepare, segments, shown
from mmfast.feedback.corrected import WRITERS as WRITE
from mmfast.feedback.corrected import Folder
from mmfast.world.models import tiny_model
from tests.make.people_cases import TEXTS, Client, write_answers


class Office:
    """`mmfast correct` without its command: a desk with its page, and people before it."""

    def __init__(self, tmp_path, plan=None, answers=None, names=(), **written):
        self.out, self.plan = tmp_path / "out", plan or Plan()
        self.answers = answers or write_answers(tmp_path, **written)
        self.cards, self.left = prepare(self.out, self.plan, read_answers(self.answers), self.answers.name)
        self.desk = Desk(self.out, names)
        fill(self.desk, self.cards, self.plan)
        self.page = Page(self.desk, title="test")

    def person(self, name):
        one = Client(self.page.url, name)
        one.act("look")
        return one

    def close(self):
        self.page.close()
        self.desk.close()
        return Folder(self.out)


# spans


@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_code_points_and_come_back(text):
    """The whole way of a span, for every pair of places in texts with emoji, joined emoji, CJK and astral letters."""
    for first in range(len(text)):
        for end in range(first + 1, min(len(text), first + 9) + 1):
            given = [{"span": [first, end], "kind": "object", "to": "猫🎉"}]
            (one,) = segments(text, given, rewritten=text[first:end] != "猫🎉")
            new, ((a, b),) = corrected(text, [one])
            assert one["from"] == text[first:end] and new[a:b] == "猫🎉"
            assert new[:a] + one["from"] + new[b:] == text


def test_segments_are_put_in_order_and_rewritten_together():
    text = "Two red cats sit left of a dog."
    given = [
        {"span": [27, 30], "kind": "object", "to": "sheep dog"},
        {"span": [0, 3], "kind": "count", "to": "Three"},
        {"span": [4, 8], "kind": "attribute", "to": ""},
    ]
    found = segments(text, given, rewritten=True)
    assert [s["from"] for s in found] == ["Two", "red ", "dog"]
    new, spans = corrected(text, found)
    assert new == "Three cats sit left of a sheep dog."
    assert [new[a:b] for a, b in spans] == ["Three", "", "sheep dog"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"span": [0, 99], "kind": "object", "to": "x"}], "not within the answer's 31 characters"),
        ([{"span": [4, 3], "kind": "object", "to": "x"}], "not within"),
        ([{"span": [32, 32], "kind": "object", "to": "x"}], "not within"),
        ([{"span": [3, 3], "kind": "object", "to": " "}], "words are to be added, and there are none"),
        ([{"span": [3, 3], "kind": "object", "to": "x"}, {"span": [3, 3], "kind": "other", "to": "y"}], "overlap"),
        (
            [{"span": [0, 5], "kind": "object", "to": "x"}, {"span": [3, 3], "kind": "other", "to": "y"}],
            "is added overlap",
        ),
        ([{"span": [True, 3], "kind": "object", "to": "x"}], "not within"),
        ([{"span": [0.0, 3], "kind": "object", "to": "x"}], "not within"),
        ([{"span": [0, 3], "kind": "shape", "to": "x"}], "has no kind"),
        ([{"span": [0, 3], "kind": "object", "to": 5}], "rewritten to no text"),
        ([{"span": [0, 3], "kind": "object", "to": "Two"}], "marked, but not rewritten"),
        ([{"span": [0, 3], "kind": "object"}], "a segment has a span"),
        ([[0, 3, "x"]], "a segment has a span"),
        ("x", "are a list"),
        ([{"span": [0, 5], "kind": "object", "to": "x"}, {"span": [4, 8], "kind": "object", "to": "y"}], "overlap"),
    ],
)
def test_segments_that_cannot_be_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        segments("Two red cats sit left of a dog.", given, rewritten=True)


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_added_at_any_place_also_at_both_ends_and_beside_what_is_rewritten(text):
    for at in range(len(text) + 1):
        given = [{"span": [at, at], "kind": "other", "to": "猫🎉"}]
        given += [{"span": [at - 1, at], "kind": "object", "to": "x🎉"}] if at else []
        given += [{"span": [at, at + 1], "kind": "count", "to": ""}] if at < len(text) else []
        found = segments(text, given, rewritten=True)
        new, spans = corrected(text, found)
        assert new == (text[: at - 1] + "x🎉" if at else "") + "猫🎉" + text[at + 1 :]
        (a, b) = spans[[one["from"] for one in found].index("")]
        assert new[a:b] == "猫🎉"
    with pytest.raises(ValueError, match="not within"):  # there is nothing to mark
        segments(text, [{"span": [0, 0], "kind": "other", "to": ""}], rewritten=False)


# correct


@pytest.fixture
def office(tmp_path):
    made = Office(tmp_path, Plan(overlap=2))
    yield made
    made.page.close()


def test_a_correction_is_a_row_a_pair_and_a_row_of_rlhfv(office, tmp_path):
    anna, bo = office.person("anna"), office.person("bo")
    assert anna.view["card"]["answer"] == TEXTS[0] and anna.view["card"]["kinds"] == list(KINDS)
    anna.correct(("Two", "count", "Three"), ("left", "position", "right"))
    anna.correct(("𝒃lue mug", "object", "cup 🍵"), ("🐈‍⬛🎉 ", "other", ""))
    anna.correct()
    anna.act("skip", reason="cannot tell")
    bo.correct(("Two", "count", "Three"), ("left", "position", "right"))
    bo.correct(("𝒃lue", "attribute", "red"))
    folder = office.close()
    # Rows
    folder.write_rows()
    found = list(stage.rows(office.out))
    assert [f"{r['answer_key']} {r['annotator']}" for r in found] == ["k0 anna", "k0 bo", "k1 anna", "k1 bo", "k2 anna"]
    mug = TEXTS[1].index("𝒃lue mug")
    assert found[2]["segments"] == [
        {"span": [mug - 7, mug - 2], "kind": "other", "from": "🐈‍⬛🎉 ", "to": ""},
        {"span": [mug, mug + 8], "kind": "object", "from": "𝒃lue mug", "to": "cup 🍵"},
    ]
    assert found[2]["corrected"] == "猫が二匹います。A cup 🍵 stands on the table."
    assert found[4]["corrected"] == TEXTS[2] and found[4]["segments"] == [] and found[0]["seconds"] == 1
    manifest = json.loads((office.out / "manifest.json").read_text())
    assert manifest["counts"] == {"rows": 5, "done": 5, "skipped": 1} and manifest["complete"]
    # Pairs: one of two equal corrections; segments point at the words of each side
    target = tmp_path / "made" / "pairs.jsonl"
    lines = WRITE["--pairs"](folder, target)
    assert lines == ["3 records", "no pair: 1 right as they are", "no pair: 1 corrected alike by another"]
    assert detect(target).name == "trl"
    pairs = list(read_records(target))
    assert [p.rejected[0]["content"] for p in pairs] == [TEXTS[0], TEXTS[1], TEXTS[1]]
    for pair in pairs:
        sides = {"chosen": pair.chosen[0]["content"], "rejected": pair.rejected[0]["content"]}
        words = {side: [sides[side][a:b] for a, b in spans] for side, spans in pair.segments.items()}
        assert words in (
            {"chosen": ["Three", "right"], "rejected": ["Two", "left"]},
            {"chosen": ["cup 🍵"], "rejected": ["🐈‍⬛🎉", "𝒃lue mug"]},
            {"chosen": ["red"], "rejected": ["𝒃lue"]},
        )
        assert pair.meta["annotator"] in ("anna", "bo") and pair.prompt[0]["content"][0] == {"type": "image"}
    # RLHF-V's
    for suffix in ("parquet", "jsonl", "tsv"):
        target = tmp_path / f"rlhfv.{suffix}"
        WRITE["--rlhfv"](folder, target)
        assert detect(target).name == "rlhfv"
        again = list(read_records(target))
        assert [(r.chosen, r.rejected) for r in again] == [(p.chosen, p.rejected) for p in pairs]
        assert suffix == "tsv" or [r.id for r in again] == ["0", "1", "2"]
        assert again[0].meta["origin_split"] == {"annotator": "anna", "kinds": ["count", "position"]}
        if suffix == "parquet":
            (image,) = again[0].images
            assert image["bytes"] == (tmp_path / "picture-0.png").read_bytes()


def test_added_words_are_a_segment_of_the_corrected_answer_alone(office, tmp_path):
    """They weigh in training on the side that has them, by either way to pairs; they are no hallucination."""
    anna, bo = office.person("anna"), office.person("bo")
    at = TEXTS[0].index(" sit")
    added = {"span": [at, at], "kind": "other", "to": " in 2 hats 🎩"}
    anna.act("done", work={"segments": [added, {"span": [0, 3], "kind": "count", "to": "Three"}]})
    bo.act("done", work={"segments": [added]})
    folder = office.close()
    folder.write_rows()
    want = TEXTS[0][:at] + " in 2 hats 🎩" + TEXTS[0][at:]
    assert [one.row["corrected"] for one in folder.done] == ["Three" + want[3:], want]
    WRITE["--pairs"](folder, tmp_path / "a.jsonl")
    cli = ["data", "pairs", str(office.out), "--rule", "rlhfv", "--answers", str(office.answers)]
    assert CliRunner().invoke(app, [*cli, "-o", str(tmp_path / "b.jsonl")]).exit_code == 0
    for name in ("a", "b"):
        both, one = read_records(tmp_path / f"{name}.jsonl")
        assert set(one.segments) == {"chosen"} and one.chosen[0]["content"] == want
        said = {side: [text[a:b] for a, b in both.segments[side]] for side, text in (
            ("chosen", both.chosen[0]["content"]), ("rejected", both.rejected[0]["content"]))}  # fmt: skip
        assert said == {"chosen": ["Three", "in 2 hats 🎩"], "rejected": ["Two"]}
    # Exactly these tokens weigh gamma
    data = DataSettings(path=str(tmp_path / "a.jsonl"), segments="record")
    tokenizer, (shown, _) = preview(data, tiny_model("llava", tmp_path / "model"), 10)
    for name, branch in shown.sides():
        marked = "".join(token.text for token in tokens_of(tokenizer, branch) if token.scored and token.changed)
        assert marked.split() == (["Three", "in", "2", "hats", "🎩"] if name == "chosen" else ["Two"])
    # The report, MHumanEval's judgements, and how far the two agree
    told = folder.report()
    assert told["segments"] == {"count": 1} and told["places where words were added"] == 2
    assert told["rates"]["all"] == 50.0 and told["agreement"]["segment_f1"] == pytest.approx(2 / 3)
    WRITE["--mhumaneval"](folder, tmp_path / "j.jsonl")
    judged = [json.loads(line)["hallucinations"] for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [[one["text"] for one in found] for found in judged] == [["Two"], []]


def test_what_is_not_rewritten_is_not_handed_in(office):
    anna = office.person("anna")
    with pytest.raises(ValueError, match="400: “cats” is marked, but not rewritten"):
        anna.correct(("cats", "object", "cats"))
    assert anna.act("look")["card"]["answer"] == TEXTS[0] and anna.view["work"]["segments"][0]["kind"] == "object"


def test_the_report_counts_kinds_skips_and_agreement(office):
    anna, bo = office.person("anna"), office.person("bo")
    anna.correct(("Two", "count", "Three"), ("left of", "position", "right of"))  # k0
    bo.correct(("Two red", "count", "Three"), ("dog", "object", "sheep"))
    anna.correct()  # k1: wrong for one of them
    bo.correct(("mug", "object", "cup"))
    anna.correct()  # k2: right for both
    bo.correct()
    anna.act("skip", reason="cannot tell")
    told = office.close().report()
    assert told["done"] == 3 and told["cards"] == 4
    assert told["people"] == {
        "anna": {"done": 3, "skipped": 1, "open": 0, "seconds": 1.0},
        "bo": {"done": 3, "skipped": 0, "open": 0, "seconds": 1.0},
    }
    assert told["segments"] == {"count": 2, "object": 2, "position": 1} and told["skipped"] == {"cannot tell": 1}
    assert told["rates"] == {"object": 33.33, "position": 16.67, "number": 33.33, "others": 0.0, "all": 50.0}
    agree = told["agreement"]
    assert (agree["cards"], agree["pairs"]) == (3, 3) and agree["equal_verdicts"] == pytest.approx(2 / 3)
    assert agree["kappa"] == pytest.approx((2 / 3 - 0.5) / 0.5)
    assert agree["segment_f1"] == pytest.approx(2 * 1 / 5) and agree["equal_kinds"] == 1.0
    assert agree["character_f1"] == pytest.approx(2 * 3 / (3 + 7 + 7 + 3 + 3))


def test_judgements_are_mhumanevals(tmp_path):
    office = Office(tmp_path, Plan(task="mark"))
    anna = office.person("anna")
    assert anna.view["card"]["task"] == "mark"
    anna.correct(("Two", "count", "Two"), ("sit", "relation", "sit"))  # marked, and not rewritten
    anna.correct()
    folder = office.close()
    WRITE["--mhumaneval"](folder, tmp_path / "judged.jsonl")
    one, two = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert one == {
        "id": "q0",
        "question": "What is here?",
        "answer": TEXTS[0],
        "images": [str(tmp_path / "picture-0.png")],
        "annotator": "anna",
        "hallucinations": [
            {"span": [0, 3], "text": "Two", "kind": "count", "type": "number"},
            {"span": [13, 16], "text": "sit", "kind": "relation", "type": "others"},
        ],
    }
    assert two["hallucinations"] == []
    with pytest.raises(ValueError, match="the task mark gives no pairs"):
        WRITE["--pairs"](folder, tmp_path / "no.jsonl")


# compare and rate


def test_comparisons_show_either_side_and_become_pairs(tmp_path):
    texts = ("one", "two", "three", "four", "five", "five")
    office = Office(tmp_path, Plan(task="compare", overlap=3), texts=texts, group=2)
    assert office.left == ["left out: 1 pairs of equal answers"] and len(office.cards) == 2
    told = {"anna": "aa", "bo": "at", "eve": "bb"}
    for name, verdicts in told.items():
        person = office.person(name)
        for one, verdict in zip(office.cards, verdicts, strict=True):
            left = {"a": "b", "b": "a"}.get(verdict, "tie") if one.order == "ba" else verdict
            assert [a["text"] for a in person.view["card"]["answers"]] == list(one.answers.values())
            person.act("done", work={"values": ["tie" if verdict == "t" else left, None]})
    folder = office.close()
    assert Counter(d.row["verdict"] for d in folder.done) == {"a": 3, "b": 2, "tie": 1}
    agree = folder.report()["agreement"]
    assert agree["pairs"] == 6 and agree["equal_verdicts"] == pytest.approx(1 / 6)
    # Two of three say a; the second card has three opinions
    lines = WRITE["--pairs"](folder, tmp_path / "pairs.jsonl")
    assert "no pair: 1 people are divided" in lines
    (pair,) = read_records(tmp_path / "pairs.jsonl")
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("one", "two")
    assert pair.meta["verdicts"] == {"anna": "a", "bo": "a", "eve": "b"}


def test_sides_are_drawn_and_pairs_of_a_prompt_are_limited(tmp_path):
    answers = list(read_answers(write_answers(tmp_path, tuple(f"answer {n}" for n in range(40)), group=40)))
    plan, counts = Plan(task="compare", per_prompt=25), Counter()
    found = list(shown(answers, plan, counts))
    assert len(found) == 25 and counts["pairs beyond --per-prompt"] == 40 * 39 // 2 - 25
    assert found == list(shown(answers, plan)) and found != list(shown(answers, replace(plan, seed=1)))
    orders = Counter(one.order for one in shown(answers, replace(plan, per_prompt=0)))
    assert 330 < orders["ab"] < 450  # of 780
    assert sum(Plan(overlap=2, share=0.25).people(str(n)) == 2 for n in range(4000)) in range(900, 1100)


def test_ratings_become_scored_answers(tmp_path):
    plan = Plan(task="rate", metrics=("Helpfulness", "Truth"), low=1, high=5, overlap=2)
    office = Office(tmp_path, plan, texts=("a true one", "a worse one"), group=2)
    anna, bo = office.person("anna"), office.person("bo")
    fields = anna.view["card"]["fields"]
    assert [f["label"] for f in fields] == ["Helpfulness", "Truth", "Why, if you like"]
    assert [o["value"] for o in fields[0]["options"]] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no choice 0"):
        anna.act("done", work={"values": [0, 3, None]})
    anna.act("done", work={"values": [2, 3, "it is short"]})
    bo.act("done", work={"values": [5, 3, None]})
    anna.act("done", work={"values": [1, 2, None]})
    folder = office.close()
    assert folder.done[0].row["scores"] == {"Helpfulness": 2, "Truth": 3}
    assert folder.done[0].row["reason"] == "it is short"
    scores = folder.report()["agreement"]["scores"]
    assert scores["Helpfulness"] == {"equal": 0.0, "mean_distance": 3.0} and scores["Truth"]["equal"] == 1.0
    WRITE["--scores"](folder, tmp_path / "scores.jsonl")
    one, two = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert (
        one["Helpfulness"] == 3.5 and two["Helpfulness"] == 1.0 and one["images"] == [str(tmp_path / "picture-0.png")]
    )
    # As any scored answers they become pairs by a rule
    target = tmp_path / "pairs.jsonl"
    rule = ["--rule", "mllm_dpo", "--score", "Helpfulness + Truth", "--margin", "1"]
    done = run("data", "pairs", tmp_path / "scores.jsonl", "--out", target, *rule)
    assert done.exit_code == 0, done.output
    (pair,) = read_records(target)
    assert [pair.chosen[0]["content"], pair.rejected[0]["content"]] == ["a true one", "a worse one"]


# agreement


def spans(*found):
    return [{"span": list(span), "kind": kind} for *span, kind in found]


def test_agreement_by_hand():
    a, b = spans((0, 3, "object"), (5, 9, "count")), spans((2, 6, "object"), (8, 10, "object"), (20, 22, "text"))
    assert overlapping(a, b) == [(a[0], b[0]), (a[1], b[1])] and overlapping([], b) == []
    assert overlapping(spans((0, 3, "x")), spans((3, 4, "x"))) == []  # they touch, and share nothing
    told = segment_agreement([(a, b)])
    assert told == {"segment_f1": 2 * 2 / 5, "character_f1": 2 * 3 / (7 + 8), "equal_kinds": 0.5}
    assert segment_agreement([([], [])]) == {"segment_f1": None, "character_f1": None, "equal_kinds": None}
    assert kappa([("a", "a")] * 3) is None and kappa([("a", "b")] * 3) == -1.0
    assert kappa([("a", "a"), ("b", "b"), ("a", "b"), ("b", "a")]) == pytest.approx(0.0)
    assert agreement([{"key": "k.anna", "annotator": "anna", "segments": []}]) == {}


def test_matching_is_the_most_that_can_be_matched():
    """Against every way to match, on random segments."""
    import random

    drawn = random.Random(0)

    def some():
        ends = sorted(drawn.sample(range(14), 2 * drawn.randint(0, 4)))
        return spans(*((a, b, "object") for a, b in zip(ends[::2], ends[1::2], strict=True)))

    def most(a, b):
        if not a or not b:
            return 0
        met = [
            n for n, other in enumerate(b) if a[0]["span"][0] < other["span"][1] and other["span"][0] < a[0]["span"][1]
        ]
        return max([most(a[1:], b), *(1 + most(a[1:], b[:n] + b[n + 1 :]) for n in met)])

    for _ in range(300):
        a, b = some(), some()
        assert len(overlapping(a, b)) == most(a, b)


def test_a_share_is_of_whole_prompts_and_a_larger_one_holds_a_smaller_one(tmp_path):
    answers = list(read_answers(write_answers(tmp_path, tuple(f"answer {n}" for n in range(60)), group=3)))

    def keys(share, seed=0, task="correct"):
        counts = Counter()
        found = list(shown(answers, Plan(task=task, prompts=share, seed=seed), counts))
        groups = Counter(one.group for one in found)
        assert set(groups.values()) == {3} and counts["prompts beyond --share"] == 20 - len(groups)
        return list(groups)

    small, large = keys(0.1), keys(0.5)
    assert len(small) == 2 and len(large) == 10 and set(small) < set(large) and large != keys(0.5, seed=1)
    assert large == keys(0.5, task="compare")  # three pairs of three answers
    assert large == [one for one in dict.fromkeys(answer.group for answer in answers) if one in large]  # their order
    assert len(keys(0.001)) == 1 and len(keys(1.0)) == 20


# the folder


def test_a_folder_goes_on_with_more_answers_and_is_of_one_task(tmp_path):
    office = Office(tmp_path)
    anna = office.person("anna")
    anna.correct(("Two", "count", "Three"))
    office.close()
    shorter = write_answers(tmp_path / "more", ("Another one.",))
    again = Office(tmp_path, answers=shorter)
    assert again.person("anna").view["progress"]["cards"] == 1
    folder = again.close()
    texts = [text for one in folder.cards.values() for text in one.answers.values()]
    assert texts == ["Another one.", *TEXTS] and len(folder.done) == 1  # k0 has another text now: another card
    assert folder.done[0].row["corrected"].startswith("Three red cats")
    with pytest.raises(ValueError, match='task was "correct" and is "mark"'):
        prepare(tmp_path / "out", Plan(task="mark"), read_answers(shorter), "answers")
    with pytest.raises(ValueError, match="is of another stage"):
        prepare(shorter, Plan(), read_answers(shorter), "answers")
    with pytest.raises(ValueError, match="no folder of corrections"):
        Folder(shorter)


def test_pictures_that_cannot_be_read_and_empty_answers_are_left_out_and_told(tmp_path):
    answers = write_answers(tmp_path, ("a", "b", " ", "d"))
    (tmp_path / "picture-1.png").unlink()
    (tmp_path / "picture-3.png").write_bytes(b"no picture")
    office = Office(tmp_path, answers=answers)
    assert [list(one.answers) for one in office.cards] == [["k0"]]
    assert "left out: 1 empty answers" in office.left and len(office.left) == 3
    assert any("picture-1.png cannot be read (No such file" in line for line in office.left)
    assert any("picture-3.png: " in line for line in office.left)
    office.close()
    with pytest.raises(ValueError, match="answers has nothing to compare"):
        prepare(tmp_path / "none", Plan(task="compare"), read_answers(answers), "answers")


def test_pictures_inside_rows_are_kept_and_the_folder_may_move(tmp_path):
    answers = list(read_answers(write_answers(tmp_path)))
    data = (tmp_path / "picture-0.png").read_bytes()
    inside = [replace(answers[0], images=(data,)), replace(answers[1], images=({"bytes": data, "path": "x"},))]
    cards, left = prepare(tmp_path / "out", Plan(), [*inside, replace(answers[2], images=(b"no",))], "file")
    assert len(cards) == 2 and "cannot be decoded" in left[0] and len(left) == 1
    assert cards[0].images == cards[1].images and cards[0].images[0].startswith("images/")
    (tmp_path / "out").rename(tmp_path / "moved")
    for one in Folder(tmp_path / "moved").cards.values():
        (path,) = one.images
        assert path.startswith(str(tmp_path / "moved" / "images")) and Path(path).read_bytes() == data


# the commands


def run(*given):
    return CliRunner().invoke(app, [str(g) for g in given])


def test_a_mistake_is_told_before_the_page_opens(tmp_path):
    answers = write_answers(tmp_path)
    for given, said in (
        (["--task", "praise"], "--task: it must be one of correct, mark"),
        (["--metrics", "a,b"], "--metrics has no effect on --task correct"),
        (["--task", "rate", "--scale", "4"], "is not LOW-HIGH"),
        (["--task", "rate", "--scale", "4-2"], "--scale: it must be"),
        (["--task", "rate", "--metrics", "a,a"], "--metrics: it must be names that differ"),
        (["--seed", "1"], "--seed has no effect"),
        (["--share", "0"], "--share: it must be above 0, and at most 1"),
        (["--share", "1.5"], "--share: it must be above 0, and at most 1"),
        (["--overlap-share", "0.5"], "--overlap-share has no effect without --overlap"),
        (["--overlap", "2", "--annotator", "anna"], "there are only 1 annotators"),
        (["--annotator", "\t"], "a name is a line"),
    ):
        done = run("correct", answers, "--out", tmp_path / "out", *given)
        assert done.exit_code == 1 and said in str(done.exception), given
        assert not (tmp_path / "out").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("correct", answers, "--out", tmp_path / "out", "--port", port)
    assert f"--port {port}: Address already in use" in str(done.exception)
    done = run("correct", tmp_path / "nothing", "--out", tmp_path / "out")
    assert "is no folder of answers" in str(done.exception)


def test_the_command_reports_and_writes(tmp_path, monkeypatch):
    import mmfast.cli.correct as command

    def one_person(url, names, cards):
        assert names == ["anna"] and cards == 4 and url.startswith("http://127.0.0.1:")
        anna = Client(url, "anna")
        anna.act("look")
        anna.correct(("Two", "count", "Three"))

    monkeypatch.setattr(command, "_serve", one_person)
    answers = write_answers(tmp_path)
    done = run("correct", answers, "--out", tmp_path / "out", "--annotator", "anna")
    assert done.exit_code == 0 and "correct: 1 of 4 cards done" in done.output, done.output
    done = run("corrected", tmp_path / "out", "--json", "--annotator", "anna")
    assert json.loads(done.stdout)["people"]["anna"]["done"] == 1
    pairs = tmp_path / "pairs.jsonl"
    done = run("corrected", tmp_path / "out", "--pairs", pairs, "--rlhfv", tmp_path / "r.parquet")
    assert done.exit_code == 0 and f"{pairs}: 1 records" in done.output and "count 1" in done.output
    assert "nobody of this name" in str(run("corrected", tmp_path / "out", "--annotator", "bo").exception)
    assert "the task correct rates nothing" in str(run("corrected", tmp_path / "out", "--scores", pairs).exception)


def test_data_check_passes_on_what_is_written(tmp_path, tiny):
    office = Office(tmp_path)
    anna = office.person("anna")
    anna.correct(("Two", "count", "Three"), ("dog", "object", "sheep"))
    anna.correct(("mug", "object", "cup"))
    folder = office.close()
    for name, target in (("--pairs", tmp_path / "pairs.jsonl"), ("--rlhfv", tmp_path / "rlhfv.parquet")):
        WRITE[name](folder, target)
        done = run("data", "check", target, "--model", tiny[0], "--cache", tmp_path / "cache", "--json")
        told = json.loads(done.stdout)
        assert done.exit_code == 0 and told["pairs"] == 2 and told["dropped"] == {}, done.output
