"""Judges: asked once, gone on with, bounded, counted, resampled, compared."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from mmfast.engines.base import Decode
from mmfast.evals import score
from mmfast.evals.answering import asking
from mmfast.evals.base import Call, Mark
from mmfast.evals.judge import EngineJudge, ListedJudge, agreement, until_parsed
from mmfast.evals.tables import agreed
from tests.make.eval_cases import Rater, Talk, ask, rating, write_talk


@pytest.fixture
def made(tmp_path):
    """(its data, answers: 4 questions with 7 turns)"""
    data = write_talk(tmp_path / "data")
    ask(asking(Talk(), data), tmp_path / "out")
    return data, tmp_path / "out"


def judged(made, judge, **options):
    data, out = made
    try:
        return score(Talk(), out, data=data, judge=judge, **options)
    finally:
        judge.close()


def test_a_score_that_is_made_again_asks_for_nothing(made, tmp_path):
    record = tmp_path / "judge.jsonl"
    first = EngineJudge(Rater(), record=record)
    result = judged(made, first)
    assert first.asked == 7 and len(result.marks) == 7 and 0 < result.metrics["rating"] < 10
    again = EngineJudge(Rater(), record=record)
    assert judged(made, again) == result and again.asked == 0
    assert judged(made, EngineJudge(None, record=record)) == result  # the record alone
    other = EngineJudge(Rater(name="other"), record=record)  # another judge is asked
    assert judged(made, other).made_by["judge"]["name"] == "other" and other.asked == 7


def test_an_engine_is_a_judge(made, tmp_path):
    assert score(Talk(), made[1], data=made[0], judge=Rater()).metrics == judged(made, EngineJudge(Rater())).metrics


def test_a_judge_that_fails_midway_is_gone_on_with(made, tmp_path):
    record = tmp_path / "judge.jsonl"
    answers = [json.loads(line) for line in (made[1] / "answers.jsonl").open()][1:]
    word = answers[2]["turns"][0]
    failing = EngineJudge(Rater(fails=word), record=record, tries=3)
    with pytest.raises(ValueError, match=r"failed at 1 of 7 calls \(the line is busy\); what it answered is kept in"):
        judged(made, failing)
    assert failing.asked == 7 + 2  # that one alone was asked again, twice
    rest = EngineJudge(Rater(), record=record)
    result = judged(made, rest)
    assert rest.asked == 1 and result == judged(made, EngineJudge(Rater(), record=tmp_path / "whole.jsonl"))
    allowed = judged(made, EngineJudge(Rater(fails=word), allow=0.2))
    assert (
        allowed.counts["failed"] == 1
        and "unparsed" not in allowed.counts
        and len([m for m in allowed.marks if m.told["verdict"] is None]) == 1
    )


def test_replies_that_do_not_parse_are_asked_again_so_often_and_counted():
    calls = [Call(key=k, messages=({"role": "user", "content": k},), decode=Decode()) for k in ("a", "bb", "hm", "dd")]
    engine = Rater(mumbles="hm")
    counts = Counter()
    found = until_parsed(EngineJudge(engine), calls, rating, counts=counts)
    assert engine.asks == 5 and found["hm"][0] == 7 and counts["asked again"] == 1 and not counts["unparsed"]
    assert list(found) == ["a", "bb", "hm", "dd"]
    never = until_parsed(EngineJudge(engine := Rater()), calls, lambda text: None, tries=3, counts=counts)
    assert engine.asks == 12 and counts["unparsed"] == 4 and all(said is None for said, _ in never.values())
    drawn = []

    def hotter(call, number):
        drawn.append(Decode(temperature=0.5 * number))
        return Call(key=call.key, messages=call.messages, decode=drawn[-1])

    until_parsed(EngineJudge(Rater()), calls[:1], lambda text: None, tries=3, again=hotter)
    assert [one.temperature for one in drawn] == [0.5, 1.0]


def test_runs_of_a_judge_have_seeds_of_their_own_and_widen_the_interval(made):
    steady, moody = EngineJudge(Rater()), EngineJudge(Rater(steady=False))
    one, same, other = judged(made, steady), judged(made, steady, runs=3), judged(made, moody, runs=3)
    assert steady.asked == 7 * 3 and same.metrics == one.metrics and len(same.more) == 2
    assert other.metrics["rating"] != one.metrics["rating"] and other.made_by["runs"] == 3
    firsts = [[mark.told["verdict"] for mark in run] for run in (other.marks, *other.more)]
    assert firsts[0] != firsts[1] != firsts[2]


def test_a_judge_that_no_answer_needs_is_told(made):
    class Silent(Talk):
        def marks(self, questions, answers, scoring):
            yield Mark(id="0", unit="0", sums={"points": 1.0, "rated": 1.0})

    found = score(Silent(), made[1], data=made[0], judge=EngineJudge(Rater()))
    assert found.metrics["rating"] and "the judge was not asked: every answer could be scored without it" in found.notes


def test_our_own_words_stand_in_the_name(made):
    assert judged(made, EngineJudge(Rater())).flavour == "official, own prompt"
    official = judged(made, EngineJudge(Rater()), options={"official": True})
    assert official.flavour == "official" and official.made_by["judge prompt"] == "official"
    with pytest.raises(ValueError, match=r"--option offical: talk has no such option \(there are official"):
        judged(made, EngineJudge(Rater()), options={"offical": True})
    with pytest.raises(ValueError, match=r"talk needs a judge: give --judge \(officially gpt-0\)"):
        score(Talk(), made[1], data=made[0])


@pytest.mark.parametrize("form", ["texts", "completions", "rows"])
def test_replies_of_another_system_are_read_in_their_order(made, tmp_path, form):
    path, texts = tmp_path / "reviews.json", [f"Rating: {n}" for n in range(7)]
    if form == "texts":
        path.write_text(json.dumps(texts))
    elif form == "completions":
        path.write_text(json.dumps([{"choices": [{"message": {"content": text}}]} for text in texts]))
    else:
        path.write_text("".join(json.dumps({"question_id": 1, "content": text}) + "\n" for text in texts))
    result = judged(made, ListedJudge(path))
    assert result.metrics["rating"] == 3 and [m.told["verdict"] for m in result.marks] == list(range(7))


def test_replies_of_another_set_are_refused(made, tmp_path):
    path = tmp_path / "reviews.json"
    for texts, message in (
        (["Rating: 1"] * 5, "has 5 replies, and more are asked for"),
        (["Rating: 1"] * 9, "has 9 replies, and 7 were asked for"),
    ):
        path.write_text(json.dumps(texts))
        judge = ListedJudge(path)
        with pytest.raises(ValueError, match=message):
            score(Talk(), made[1], data=made[0], judge=judge)
            judge.close()
    for text, message in (("[1]", "is no reply"), ("{", "neither a JSON list nor JSON lines")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ListedJudge(path)


def test_agreement_is_the_share_and_what_it_is_beyond_chance(made):
    first = dict(enumerate("yyyyynnnnn"))
    second = dict(enumerate("yyyynnnnny"))
    found = agreement(first, second)
    assert found["share"] == 0.8 and found["kappa"] == pytest.approx((0.8 - 0.5) / 0.5) and found["items"] == 10
    assert agreement(first, first)["kappa"] == 1 and agreement({1: "y"}, {1: "y"})["kappa"] == 1
    with pytest.raises(ValueError, match="item by item"):
        agreement(first, {1: "y"})
    one, other = (judged(made, EngineJudge(Rater(name=name))) for name in ("a", "bb"))
    assert agreed(one, one)["share"] == 1 and agreed(one, other)["share"] == 0
    silent = [replace(r, marks=[replace(m, told={}) for m in r.marks]) for r in (one, other)]
    assert agreed(*silent)["share"] == 0 and agreed(silent[0], silent[0])["share"] == 1  # by what they add
    with pytest.raises(ValueError, match="has no judge"):
        agreed(one, replace(other, made_by=other.made_by | {"judge": ""}))
    with pytest.raises(ValueError, match="the same answers"):
        agreed(one, replace(other, made_by=other.made_by | {"weights": "x"}))
