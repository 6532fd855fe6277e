"""`mmfast judge`: every answer of a group rated in one call; what is missing stays missing."""

import json
import random

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.engines.base import Reply
from mmfast.engines.local import Local
from mmfast.engines.stage import rows
from mmfast.engines.world import World
from mmfast.feedback.answers import read_answers
from mmfast.feedback.judge import PLACES, PRESETS, check_input, judge, planned
from mmfast.feedback.ratings import ratings
from mmfast.feedback.ratings import written as said
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.grammar import errors
from tests.make.answer_cases import Says, captions, stage, told, written
from tests.make.engine_cases import files
from tests.make.prompt_models import llava
from tests.make.rank_processes import run_ranks

FIELDS = ["key", "group", "answers", "shown", "scores", "reference", "reason", "out_of_range", "problem", "raw",
          "finish", "tokens", "attempts", "template", "row"]  # fmt: skip
NONE = "times none was best"
FIVE = ["Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=4, pairs=4, groups=1, test=60))


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return captions(world, tmp_path_factory.mktemp("answers") / "a")


def rate(source, out, engine, *, preset="", decode=None, limit=0, debug=0, **changes):
    return stage(judge, source, out, engine, planned(preset, decode=decode, **changes), limit=limit, debug=debug)


def reply(*scores, reference="the truth", **changes):
    """A judge's text: a number an answer, for every metric."""
    made = json.loads(said([dict.fromkeys(FIVE, score) for score in scores], ["so"] * len(scores), reference))
    return json.dumps(made | changes)


# the world as judge


def test_the_world_rates_by_errors_and_gives_a_true_reference(world, found, tmp_path):
    faults, engine = told(rows(found), world), World(world)
    tally = rate(found, tmp_path / "j", engine)
    made = list(rows(tmp_path / "j"))
    assert len(made) == 60 and all(list(row) == FIELDS and row["problem"] == "" for row in made)
    pictures = {row["group"]: row["images"][0].rpartition("/")[2].removesuffix(".png") for row in rows(found)}
    for row in made:
        assert list(row["scores"]) == row["answers"] and len(row["answers"]) == 4
        for key, score in row["scores"].items():
            assert score == dict.fromkeys(FIVE, max(0, 4 - faults[key]))
            assert row["reason"][key] == f"{faults[key]} false"
        assert not any(errors(row["reference"], engine.scenes[pictures[row["group"]]]).values())
    assert len({score["Correctness"] for row in made for score in row["scores"].values()}) > 2
    assert tally.also == {
        "not readable": 0, "asked again": 0, "answers rated": 240, "answers with a metric missing": 0,
        "values out of range": 0, "no reference": 0,
    } | {name: tally.also[name] for name in (*PLACES.values(), NONE)}  # fmt: skip
    assert sum(tally.also[name] for name in (*PLACES.values(), NONE)) <= 60 and tally.also[NONE] < 60


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_noise_turns_the_expected_share_round(world, found, tmp_path, noise):
    faults = told(rows(found), world)
    rate(found, tmp_path / "j", World(world, noise=noise))
    flipped = []
    for row in rows(tmp_path / "j"):
        best, worst = min(row["answers"], key=faults.__getitem__), max(row["answers"], key=faults.__getitem__)
        if faults[best] < faults[worst]:
            flipped.append(row["scores"][best]["Correctness"] < row["scores"][worst]["Correctness"])
    assert len(flipped) > 40 and sum(flipped) / len(flipped) == pytest.approx(noise, abs=0.15)


# what is asked


def test_all_answers_are_shown_in_one_call_and_equal_ones_once(tmp_path):
    source = written(tmp_path / "a", [["x", "y", "x\n", "z"], ["alone"]])
    seen = []

    def say(request):
        seen.append(request)
        return reply(*range(len(request.about.answers)))

    tally = rate(source, tmp_path / "j", Says(say))
    first, second = rows(tmp_path / "j")
    assert len(seen) == 2 and tally.identical == 1
    text = next(r for r in seen if len(r.about.answers) == 3).messages[-1]["content"][0]["text"]
    assert "There are 3 answers." in text and "Answer 1:\nx\n\nAnswer 2:\ny\n\nAnswer 3:\nz" in text
    # Equal answers are rated alike
    assert [score["Correctness"] for score in first["scores"].values()] == [0, 1, 0, 2]
    assert first["answers"] == ["k0.0", "k0.1", "k0.2", "k0.3"] and second["answers"] == ["k1.0"]
    assert first["reference"] == "the truth"


def test_a_drawn_order_is_of_its_group_and_seed_alone(tmp_path):
    groups = [[f"{g}{n}" for n in range(4)] for g in "abcdefgh"]
    source, seen = written(tmp_path / "a", groups), []

    def say(request):
        seen.append(request.about.answers)
        return reply(*(int(text[1]) for text in request.about.answers))

    def shown(name, source=source, **options):
        seen.clear()
        rate(source, tmp_path / name, Says(say), **options)
        return {row["group"]: [key[-1] for key in row["shown"]] for row in rows(tmp_path / name)}, list(
            rows(tmp_path / name)
        )

    drawn, made = shown("j", order="random")
    assert len({tuple(order) for order in drawn.values()}) > 4 and all(
        sorted(o) == list("0123") for o in drawn.values()
    )
    assert sorted(seen) == sorted(tuple(f"{g}{n}" for n in drawn[f"g{k}"]) for k, g in enumerate("abcdefgh"))
    for row in made:  # numbers belong to answers, not to places
        assert [score["Coherence"] for score in row["scores"].values()] == [0, 1, 2, 3]
        assert row["answers"] == [f"k{row['group'][1:]}.{n}" for n in range(4)]
    assert shown("again", order="random")[0] == drawn
    assert shown("few", written(tmp_path / "b", groups[:3]), order="random")[0] == {
        g: drawn[g] for g in ("g0", "g1", "g2")
    }
    assert shown("other", order="random", decode={"seed": 1})[0] != drawn
    assert set(map(tuple, shown("one")[0].values())) == {tuple("0123")}
    with pytest.raises(ValueError, match=r"order was \"random\" and is \"one\""):
        shown("j")


@pytest.mark.parametrize("place", [0, -1])
def test_a_liking_for_a_place_is_counted_and_both_orders_take_it_out(tmp_path, place):
    source = written(tmp_path / "a", [["x", "y", "z", "x "], ["alone"]])

    def say(request):
        scores = [2] * len(request.about.answers)
        scores[place] = 4
        return reply(*scores, reference=request.about.answers[0])

    tally = rate(source, tmp_path / "j", Says(say), order="both")
    made = list(rows(tmp_path / "j"))
    assert [row["shown"] for row in made if len(row["shown"]) == 1] == [["k1.0"]] and len(made) == 3
    assert {tuple(row["shown"]) for row in made} > {("k0.0", "k0.1", "k0.2"), ("k0.2", "k0.1", "k0.0")}
    name = PLACES["last" if place else "first"]
    assert tally.also[name] == 2 and tally.also["groups whose orders differ in the best"] == 1
    found = {one.key: one for one in read_answers(tmp_path / "j")}
    assert {key: one.scores["Coherence"] for key, one in found.items()} == {
        "k0.0": 3, "k0.1": 2, "k0.2": 3, "k0.3": 3, "k1.0": 4,
    }  # fmt: skip
    assert found["k1.0"].reference == "alone"
    # Without the liking's help the same judge ranks by place alone
    assert rate(source, tmp_path / "one", Says(say)).also[name] == 1
    assert len({one.scores["Coherence"] for one in read_answers(tmp_path / "one") if one.key[:2] == "k0"}) == 2


def test_a_metric_counts_that_both_orders_rated(tmp_path):
    source = written(tmp_path / "a", [["x", "y"]])

    def say(request):
        if request.about.answers[0] == "y":
            return json.dumps({"answers": [{"Coherence": 1}, {"Coherence": 2, "Verbosity": 9}], "reference": ""})
        return reply(3, 3)

    tally = rate(source, tmp_path / "j", Says(say), order="both", retries=0)
    assert tally.also["values out of range"] == 1 and tally.also["not readable"] == 1
    found = {one.key: one.scores for one in read_answers(tmp_path / "j")}
    assert found == {"k0.0": {"Coherence": 2.5}, "k0.1": {"Coherence": 2.0}}


def test_preset_of_mllm_dpo():
    how = planned("mllm_dpo")
    assert PRESETS == {"mllm_dpo": {"prompt": "judge_five"}}
    assert list(how.prompt.wording.metrics) == FIVE and (how.prompt.wording.low, how.prompt.wording.high) == (0, 4)


def test_a_prompt_of_ones_own_has_its_own_metrics_and_range(tmp_path):
    text = (
        'version = 1\nabout = "x"\nparser = "ratings"\nslots = ["answers"]\nlow = 1\nhigh = 10\n'
        'each = "({number}) {answer}"\ntext = "Rate {low}-{high}: {metrics}\\n{answers}"\n'
        '[metrics]\ntruth = "how true"\n'
    )
    (tmp_path / "mine.toml").write_text(text)
    source = written(tmp_path / "a", [["x", "y"]])
    engine = Says(lambda request: '{"answers": [{"truth": 10}, {"truth": 0}]}')
    tally = rate(source, tmp_path / "j", engine, prompt=str(tmp_path / "mine.toml"), retries=0)
    (row,) = rows(tmp_path / "j")
    assert row["scores"] == {"k0.0": {"truth": 10}, "k0.1": {"truth": None}}
    assert tally.also["values out of range"] == 1 and tally.also["no reference"] == 1
    (tmp_path / "none.toml").write_text(text.replace('[metrics]\ntruth = "how true"\n', ""))
    with pytest.raises(ValueError, match="a judge's prompt has"):
        planned(prompt=str(tmp_path / "none.toml"))
    (tmp_path / "less.toml").write_text(text.replace("{answers}", "").replace('"answers"', ""))
    with pytest.raises(ValueError, match="no slot answers, which this stage needs"):
        planned(prompt=str(tmp_path / "less.toml"))


def test_a_schema_is_asked_for_where_the_engine_has_it(tmp_path, capsys):
    source, seen = written(tmp_path / "a", [["x", "y"]]), []

    class Constrained(Says):
        can = Says.can | {"constraint"}

    def say(request):
        seen.append(request.constraint)
        return reply(3, 4)

    rate(source, tmp_path / "with", Constrained(say))
    rate(source, tmp_path / "without", Says(say))
    assert json.loads(seen[0].schema)["properties"]["answers"]["minItems"] == 2 and seen[1] is None
    assert capsys.readouterr().err.count("follows no JSON schema") == 1
    assert next(rows(tmp_path / "with"))["scores"] == next(rows(tmp_path / "without"))["scores"]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text())["schema"] for name in ("with", "without")]
    assert manifests == [True, False]


def test_a_model_that_knows_nothing_is_held_to_the_schema(world, found, tmp_path):
    """A random model under the schema: what it ends with is read whole, what is cut is null."""
    pytest.importorskip("llguidance")
    folder = llava(tmp_path)
    tally = rate(found, tmp_path / "j", Local(folder), limit=2, retries=1, decode={"max_tokens": 400, "seed": 3})
    made = list(rows(tmp_path / "j"))
    assert len(made) == 2 == tally.rows and tally.failed == 0
    for row in made:
        assert row["raw"].startswith('{"answers"') or row["raw"].lstrip().startswith("{")
        assert bool(row["problem"]) == (row["finish"] == "length")


# replies of every kind

KINDS = {
    "empty": ("", "the reply is empty"),
    "refusal": ("I would rather not.", "no JSON object"),
    "cut": ('{"answers": [{"reason": "it', "no JSON object"),
    "too few": (reply(3), "it rates 1 answers, and was shown 2"),
    "too many": (reply(3, 3, 3), "it rates 3 answers, and was shown 2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_asked_again_and_kept_without_scores(tmp_path, kind):
    text, why = KINDS[kind]
    engine = Says(lambda request: text)
    tally = rate(written(tmp_path / "a", [["x", "y"]]), tmp_path / "j", engine, retries=2)
    (row,) = rows(tmp_path / "j")
    assert row["scores"] == dict.fromkeys(("k0.0", "k0.1"), dict.fromkeys(FIVE)) and why in row["problem"]
    assert row["attempts"] == 3 == engine.asks and row["raw"] == text
    assert tally.also["not readable"] == 1 and tally.also["answers with a metric missing"] == 2 and tally.failed == 0


def test_a_judge_that_returns_four_of_five_is_counted_and_nothing_is_filled_in(tmp_path):
    four = json.loads(reply(3, 2))
    del four["answers"][1]["Coherence"]
    four["answers"][0]["Verbosity"] = 7
    tally = rate(written(tmp_path / "a", [["x", "y"]]), tmp_path / "j", Says(lambda request: json.dumps(four)))
    (row,) = rows(tmp_path / "j")
    assert row["scores"]["k0.0"] == {**dict.fromkeys(FIVE, 3), "Verbosity": None}
    assert row["scores"]["k0.1"] == {**dict.fromkeys(FIVE, 2), "Coherence": None}
    assert row["attempts"] == 3 and row["out_of_range"] == 1 and row["reference"] == "the truth"
    assert (
        "answer 2 has no Coherence" in row["problem"] and "Verbosity is no whole number from 0 to 4" in row["problem"]
    )
    assert tally.also["answers with a metric missing"] == 2 and tally.also["values out of range"] == 1


def test_a_second_seed_may_bring_all(tmp_path):
    engine = Says(lambda request: reply(4, 1) if request.decode.seed == 1 else "well")
    rate(written(tmp_path / "a", [["x", "y"]]), tmp_path / "j", engine)
    (row,) = rows(tmp_path / "j")
    assert row["attempts"] == 2 and row["problem"] == "" and row["scores"]["k0.0"]["Helpfulness"] == 4


def test_a_reply_cut_at_max_tokens_says_so(tmp_path):
    cut = Says(lambda request: Reply(key=request.key, text='{"answers"', finish="length"))
    tally = rate(written(tmp_path / "a", [["x", "y"]]), tmp_path / "j", cut, retries=0)
    assert next(rows(tmp_path / "j"))["problem"].startswith("cut at max_tokens") and tally.cut == 1


# the folder and the command


def test_killed_and_started_again_on_other_ranks_the_rows_are_the_same(world, found, tmp_path):
    rate(found, tmp_path / "one", World(world, noise=0.3))
    whole, before = list(rows(tmp_path / "one")), files(tmp_path / "one")
    assert rate(found, tmp_path / "one", World(world, noise=0.3)).new == 0 and files(tmp_path / "one") == before
    content = (tmp_path / "one" / "rows-0.jsonl").read_bytes()
    (tmp_path / "one" / "rows-0.jsonl").write_bytes(content[: random.Random(0).randrange(len(content))])
    run_ranks(2, tmp_path, rate, found, tmp_path / "one", World(world, noise=0.3))
    assert list(rows(tmp_path / "one")) == whole
    run_ranks(2, tmp_path, rate, found, tmp_path / "two", World(world, noise=0.3))
    assert list(rows(tmp_path / "two")) == whole


def test_the_command(world, found, tmp_path):
    command = ["judge", str(found), "--engine", "world", "--model", str(world), "--out", str(tmp_path / "j")]
    made = CliRunner().invoke(app, [*command, "--preset", "mllm_dpo", "--debug", "1", "--limit", "5"])
    assert made.exit_code == 0, made.output
    assert "20 answers rated" in made.output and "There are" in made.output
    # Behind a record: the second time nothing is asked
    kept = [*command[:-1], str(tmp_path / "r"), "--recorded", str(tmp_path / "replies.jsonl")]
    made = []
    for _ in range(2):
        assert CliRunner().invoke(app, kept).exit_code == 0
        assert (tmp_path / "replies.jsonl").read_text().count('"asked"') == 60
        made.append(list(rows(tmp_path / "r")))
        (tmp_path / "r" / "rows-0.jsonl").unlink()
    assert len(made[0]) == 60 and made[0] == made[1]
    whole = CliRunner().invoke(app, command)
    assert "60 rows, 55 of them new" in whole.output
    for options, told_ in (
        (["--preset", "five"], "unknown preset 'five'"),
        (["--prompt", "critic"], "there is no parser 'verdict' here"),
        (["--out", str(found)], "holds the input"),
        (["--order", "ab"], "--order ab: choose one, random or both"),
    ):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 1 and told_ in str(result.exception)


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no answer"):
        check_input(written(tmp_path / "a", []))


def test_what_the_world_says_is_what_the_parser_reads():
    text = said([{"m": 1}, {"m": 3}], ["a", "b"], "c")
    found = ratings(text, 2, ("m",), 0, 4)
    assert (found.scores, found.reasons, found.reference) == ([{"m": 1}, {"m": 3}], ["a", "b"], "c")
