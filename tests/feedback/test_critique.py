"""`mmfast critique`: what is compared, what verdicts are worth, and what becomes of replies of every kind."""

import json
import random
import signal
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.engines import shards
from mmfast.engines.base import Decode, Reply
from mmfast.engines.stage import rows
from mmfast.engines.world import World
from mmfast.feedback.critique import PRESETS, check_input, critique, planned, verdicts
from mmfast.world.dataset import WorldSpec, write_world
from tests.make.answer_cases import Says, captions, stage, told, written
from tests.make.engine_cases import files
from tests.make.rank_processes import CONTEXT, run_ranks

FIELDS = ["key", "group", "a", "b", "order", "verdict", "p", "reason", "problem", "raw", "finish", "tokens", "attempts",
          "template", "row"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=4, pairs=4, groups=1, test=60))


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return captions(world, tmp_path_factory.mktemp("answers") / "a")


def compare(source, out, engine, *, preset="", decode=None, limit=0, debug=0, **changes):
    return stage(critique, source, out, engine, planned(preset, decode=decode, **changes), limit=limit, debug=debug)


def shown(request):
    """The two answers, as the last message shows them."""
    text = request.messages[-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    if request.messages[-1]["role"] == "assistant":
        text = request.messages[-2]["content"][-1]["text"]
    first, _, second = text.partition("Answer 1: ")[2].partition("\n\nAnswer 2: ")
    return first, second.partition("\n\n")[0]


# the world as critic


@pytest.mark.parametrize("read", ["text", "labels"])
@pytest.mark.parametrize("order", ["one", "both", "random"])
def test_the_world_prefers_fewer_errors(world, found, tmp_path, read, order):
    faults = told(rows(found), world)
    tally = compare(found, tmp_path / "c", World(world), read=read, order=order)
    made = list(verdicts(tmp_path / "c"))
    assert len(made) > 40 and all(one.problem == "" for one in made)
    for one in made:
        fewer = "a" if faults[one.a] < faults[one.b] else "b" if faults[one.b] < faults[one.a] else "tie"
        assert one.verdict == fewer
        assert one.p == ({"a": 1.0, "b": 0.0, "tie": 0.5}[fewer] if read == "labels" else None)
    kinds = {one.verdict for one in made}
    assert kinds == {"a", "b", "tie"}, "nothing was proved"
    assert tally.also["ties"] == sum(one.verdict == "tie" for one in made) and tally.failed == 0
    assert tally.also["pairs whose orders disagree"] == tally.also["not readable"] == 0
    assert tally.rows == len(made) * (2 if order == "both" else 1)
    assert list(next(rows(tmp_path / "c"))) == FIELDS


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_noise_flips_the_expected_share(world, tmp_path, noise):
    many = captions(world, tmp_path / "a", samples=8, noise=0.7)
    faults = told(rows(many), world)
    tally = compare(many, tmp_path / "c", World(world, noise=noise))
    unequal = [row for row in rows(tmp_path / "c") if faults[row["a"]] != faults[row["b"]]]
    wrong = [row["verdict"] != ("a" if faults[row["a"]] < faults[row["b"]] else "b") for row in unequal]
    assert len(wrong) > 350 and sum(wrong) / len(wrong) == pytest.approx(noise, abs=0.05)
    # Orders err independently: both right, or both wrong, or they disagree
    pairs = [one for one in verdicts(tmp_path / "c") if faults[one.a] != faults[one.b]]
    agreed = sum(one.verdict is not None for one in pairs) / len(pairs)
    assert agreed == pytest.approx(noise**2 + (1 - noise) ** 2, abs=0.06)
    right = sum(one.verdict == ("a" if faults[one.a] < faults[one.b] else "b") for one in pairs) / len(pairs)
    assert right == pytest.approx((1 - noise) ** 2, abs=0.06)
    assert tally.also["pairs whose orders disagree"] >= len(pairs) - round(agreed * len(pairs))


def test_labels_know_how_sure_the_critic_is(world, found, tmp_path):
    faults = told(rows(found), world)
    compare(found, tmp_path / "c", World(world, noise=0.1), read="labels")
    ps = {round(one.p, 6) for one in verdicts(tmp_path / "c") if faults[one.a] < faults[one.b]}
    assert ps == {0.9}


def test_text_and_labels_come_to_the_same_verdicts(world, found, tmp_path):
    for read in ("text", "labels"):
        compare(found, tmp_path / read, World(world), read=read)
    both = [[(one.a, one.b, one.verdict) for one in verdicts(tmp_path / read)] for read in ("text", "labels")]
    assert both[0] == both[1]


def test_questions_have_true_answers_too(world, tmp_path):
    """Not only captions: an answer to a question is right, or it is not."""
    lines = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    asked = [{"image": str(world / line["images"][0]), "question": "Is there a red circle?"} for line in lines]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    from mmfast.engines.presets import planned as drawn
    from tests.make.engine_cases import answers

    answers(tmp_path / "q.jsonl", tmp_path / "a", World(world, noise=0.5), drawn(temperature=1.0, samples=6))
    compare(tmp_path / "a", tmp_path / "c", World(world))
    right = {}
    engine = World(world)
    for row in rows(tmp_path / "a"):
        scene = engine.scenes[row["images"][0].rpartition("/")[2].removesuffix(".png")]
        right[row["key"]] = row["answer"].startswith("Yes") == (("red", "circle") in scene.kinds)
    made = list(verdicts(tmp_path / "c"))
    assert len(made) > 10 and all(right[one.a if one.verdict == "a" else one.b] for one in made)


# what is compared


def test_sima_compares_the_sample_with_the_greedy_answer_once(world, tmp_path):
    source = captions(world, tmp_path / "a", preset="sima", samples=1, noise=0.5)
    assert PRESETS["sima"] == {
        "prompt": "critic_sima", "order": "one", "pairs": "greedy-sample", "retries": 0,
        "decode": Decode(max_tokens=4096),
    }  # fmt: skip
    seen = []

    def first(request):
        seen.append(request)
        return "Reason: so.\nBetter answer: [[1]]"

    tally = compare(source, tmp_path / "c", Says(first), preset="sima")
    answer = {row["key"]: row for row in rows(source)}
    made = list(rows(tmp_path / "c"))
    assert made and all(row["order"] == "ab" and row["verdict"] == "a" for row in made)
    assert all(answer[row["a"]]["decode"] == "sample" and answer[row["b"]]["decode"] == "greedy" for row in made)
    pairs = {row["group"] for row in answer.values()}
    assert tally.identical == len(pairs) - len(made) > 0  # at noise 0.5 some are alike
    # One turn, image first, sample before greedy, line breaks taken out, greedy decoding, the truth shown
    (message,) = seen[0].messages
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert seen[0].decode == Decode(max_tokens=4096) and seen[0].n == 1 and seen[0].about.answers[0]
    text = message["content"][1]["text"]
    sample, greedy = (answer[made[0][side]]["answer"] for side in "ab")
    request = next(r for r in seen if f"Answer 1: [{sample}]" in r.messages[0]["content"][1]["text"])
    assert f"Answer 2: [{greedy}]" in request.messages[0]["content"][1]["text"] and "True answer: [The image" in text


def test_pairs_of_a_group(tmp_path):
    source = written(
        tmp_path / "a", [["w", "x", "y", "x ", "z"]], decode=[["sample", "sample", "greedy", "sample", "beam"]]
    )
    always = Says(lambda request: "[[1]]")
    named = {row["key"]: row["answer"].strip() for row in rows(source)}

    def pairs(how):
        tally = compare(source, tmp_path / how, always, pairs=how, order="one")
        return tally.identical, {(named[one.a], named[one.b]) for one in verdicts(tmp_path / how)}

    # The answers' order is their folder's: by decode, then by sample
    assert pairs("all") == (1, {("z", "y"), ("z", "w"), ("z", "x"), ("y", "w"), ("y", "x"), ("w", "x")})
    assert pairs("adjacent") == (1, {("z", "y"), ("y", "w"), ("w", "x")})
    assert pairs("greedy-sample") == (1, {("w", "y"), ("x", "y")})


def test_answers_to_different_questions_of_a_group_are_not_compared(world, tmp_path):
    source = captions(world, tmp_path / "a", preset="dgpref", samples=2)
    compare(source, tmp_path / "c", World(world))
    asked = {row["key"]: json.dumps(row["prompt"]) for row in rows(source)}
    made = list(verdicts(tmp_path / "c"))
    assert made and all(asked[one.a] == asked[one.b] for one in made)


def test_a_question_of_several_turns_is_shown_whole(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "A man."},
        {"role": "user", "content": "Why?"},
    ]
    source = written(tmp_path / "a", [["x", "y"]], prompt=[[turns, turns]])
    seen = []
    compare(source, tmp_path / "c", Says(lambda request: seen.append(request) or "[[1]]"), order="one")
    assert "Question: User: Who?\nAssistant: A man.\nUser: Why?\n\n" in seen[0].messages[-1]["content"][0]["text"]


# what a verdict is worth


@pytest.mark.parametrize("read", ["text", "labels"])
def test_a_critic_that_likes_the_first_yields_no_agreed_verdict(found, tmp_path, read):
    engine = Says(lambda request: "[[1]]", lambda request: {"1": -0.1, "2": -3.0, "0": -5.0})
    tally = compare(found, tmp_path / "c", engine, read=read)
    made = list(verdicts(tmp_path / "c"))
    assert made and all(one.verdict is None and one.problem == "the two orders disagree" for one in made)
    assert tally.also["pairs whose orders disagree"] == len(made) and tally.also["pairs with a verdict"] == 0
    assert tally.also["times the first shown won"] == 2 * len(made) and tally.also["times the second"] == 0
    if read == "labels":  # the liking cancels
        assert all(one.p == pytest.approx(0.5) for one in made)


@pytest.mark.parametrize("read", ["text", "labels"])
def test_a_drawn_order_shares_a_liking_out(tmp_path, read):
    """Whichever answer such a critic sees first wins: about half of the first ones, and which follows from the seed."""
    source = written(tmp_path / "a", [[f"{g}.{n}" for n in range(5)] for g in range(8)])
    engine = Says(lambda request: "[[1]]", lambda request: {"1": -0.1, "2": -3.0, "0": -5.0})
    tally = compare(source, tmp_path / "c", engine, read=read, order="random")
    assert (
        tally.rows == 80 == tally.also["times the first shown won"] and tally.also["pairs whose orders disagree"] == 0
    )
    found = {(one.a, one.b): one.verdict for one in verdicts(tmp_path / "c")}
    assert 25 < sum(verdict == "a" for verdict in found.values()) < 55 and set(found.values()) == {"a", "b"}
    assert all((one.p is None) == (read == "text") and not one.problem for one in verdicts(tmp_path / "c"))
    compare(source, tmp_path / "d", engine, read=read, order="random", pairs="adjacent")
    assert {(one.a, one.b): one.verdict for one in verdicts(tmp_path / "d")}.items() < found.items()
    compare(source, tmp_path / "e", engine, read=read, order="random", decode={"seed": 3})
    assert {(one.a, one.b): one.verdict for one in verdicts(tmp_path / "e")} != found
    with pytest.raises(ValueError, match="order_seed was 0 and is 3"):
        compare(source, tmp_path / "c", engine, read=read, order="random", decode={"seed": 3})


def test_rows_speak_of_a_and_b_whatever_was_shown_first(tmp_path):
    source = written(tmp_path / "a", [["good", "bad"]])
    say = Says(lambda request: f"[[{shown(request).index('good') + 1}]]")
    compare(source, tmp_path / "c", say)
    assert [(row["order"], row["verdict"]) for row in sorted(rows(tmp_path / "c"), key=lambda r: r["order"])] == [
        ("ab", "a"),
        ("ba", "a"),
    ]


def test_a_pair_with_one_order_alone_has_no_verdict(tmp_path):
    source = written(tmp_path / "a", [["good", "bad"], ["fine", "poor"]])

    def say(request):
        if shown(request) == ("bad", "good"):
            return Reply(key=request.key, finish="error", error="too long")
        return "[[1]]" if shown(request)[0] in ("good", "fine") else "[[2]]"

    with pytest.raises(AssertionError):
        assert compare(source, tmp_path / "c", Says(say)).failed == 0
    one, other = verdicts(tmp_path / "c")
    assert one.verdict is None and "order ba has no reply" in one.problem and other.verdict == "a"


def test_a_server_that_shows_no_probability_of_the_winner_gives_no_verdict(tmp_path):
    source = written(tmp_path / "a", [["good", "bad"]])

    class Bounds(Says):
        def reply(self, request, sample):
            return replace(super().reply(request, sample), bounded=self.bounded)

    engine = Bounds(None, lambda request: {"1": -2.0, "2": -2.0, "0": -2.0})
    engine.bounded = ("1", "2", "0")  # all three are what they are at most
    compare(source, tmp_path / "c", engine, read="labels")
    assert {row["verdict"] for row in rows(tmp_path / "c")} == {None}
    engine = Bounds(None, lambda request: {"1": -0.5, "2": -2.0, "0": -2.0})
    engine.bounded = ("2", "0")  # the winner's is known
    compare(source, tmp_path / "d", engine, read="labels", order="one")
    assert [row["verdict"] for row in rows(tmp_path / "d")] == ["a"]


# replies of every kind

REPLIES = {
    "empty": ("", "the reply is empty"),
    "refusal": ("I am sorry, I cannot compare them.", "no verdict in"),
    "both": ("Either [[1]] or [[2]].", "holds [[1]] and [[2]]"),
    "foreign": ("[[7]]", "[[7]] is no verdict"),
}


@pytest.mark.parametrize("kind", REPLIES)
def test_what_cannot_be_read_is_kept_without_a_verdict_and_counted(tmp_path, kind):
    said, why = REPLIES[kind]
    source = written(tmp_path / "a", [["x", "y"], ["v", "w"]])
    engine = Says(lambda request: said if "x" in shown(request) else "[[1]]")
    tally = compare(source, tmp_path / "c", engine, order="one", retries=1)
    bad, good = rows(tmp_path / "c")
    assert bad["verdict"] is None and why in bad["problem"] and bad["raw"] == said and bad["attempts"] == 2
    assert good["verdict"] == "a" and tally.also["not readable"] == 1 and tally.also["asked again"] == 1
    assert tally.failed == 0 and engine.asks == 3 and tally.empty == (kind == "empty")
    one, _ = verdicts(tmp_path / "c")
    assert one.verdict is None and why in one.problem


def test_a_cut_reply_says_so(tmp_path):
    source = written(tmp_path / "a", [["x", "y"]])
    cut = Says(lambda request: Reply(key=request.key, text="Both of them [[", finish="length"))
    tally = compare(source, tmp_path / "c", cut, order="one", retries=0)
    (row,) = rows(tmp_path / "c")
    assert row["problem"].startswith("cut at max_tokens") and tally.cut == 1 and row["verdict"] is None


def test_simas_parser_takes_the_last_of_two_verdicts(tmp_path):
    source = written(tmp_path / "a", [["x", "y"]], decode=[["greedy", "sample"]])
    compare(source, tmp_path / "c", Says(lambda request: "[[1]] no, [[2]]"), preset="sima")
    (row,) = rows(tmp_path / "c")
    assert row["verdict"] == "b" and row["b"] == "k0.0"  # the greedy one was shown second


def test_a_second_seed_may_bring_the_verdict(tmp_path):
    source = written(tmp_path / "a", [["x", "y"]])
    compare(source, tmp_path / "c", Says(lambda r: "[[2]]" if r.decode.seed == 2 else "well"), order="one")
    (row,) = rows(tmp_path / "c")
    assert row["verdict"] == "b" and row["attempts"] == 3


# the folder


def test_killed_and_started_again_the_rows_are_the_same(world, found, tmp_path):
    compare(found, tmp_path / "whole", World(world, noise=0.3))
    whole = list(rows(tmp_path / "whole"))
    before = files(tmp_path / "whole")
    assert compare(found, tmp_path / "whole", World(world, noise=0.3)).new == 0 and files(tmp_path / "whole") == before
    content = (tmp_path / "whole" / "rows-0.jsonl").read_bytes()
    for cut in random.Random(1).sample(range(len(content)), 6):
        (tmp_path / "whole" / "rows-0.jsonl").write_bytes(content[:cut])
        compare(found, tmp_path / "whole", World(world, noise=0.3))
        assert list(rows(tmp_path / "whole")) == whole
    process = CONTEXT.Process(target=compare, args=(found, tmp_path / "killed", Says(_first, dies=20)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    compare(found, tmp_path / "killed", Says(_first))
    compare(found, tmp_path / "once", Says(_first))
    assert list(rows(tmp_path / "killed")) == list(rows(tmp_path / "once"))


def _first(request):
    return "[[1]]"


def test_two_ranks_write_what_one_writes(world, found, tmp_path):
    compare(found, tmp_path / "one", World(world))
    run_ranks(2, tmp_path, compare, found, tmp_path / "two", World(world))
    assert list(rows(tmp_path / "two")) == list(rows(tmp_path / "one"))
    assert len(list((tmp_path / "two").glob("rows-*.jsonl"))) == 2


def test_more_pairs_add_rows_and_other_orders_are_refused(world, found, tmp_path):
    few = compare(found, tmp_path / "c", World(world), pairs="adjacent")
    all_ = compare(found, tmp_path / "c", World(world), pairs="all")
    assert 0 < few.new < all_.rows and all_.new == all_.rows - few.new
    for changes, told_ in (({"order": "one"}, "order was"), ({"read": "labels"}, "decode|read was")):
        with pytest.raises(ValueError, match=told_):
            compare(found, tmp_path / "c", World(world), **changes)


def test_limit_counts_groups(world, found, tmp_path):
    tally = compare(found, tmp_path / "c", World(world), limit=2)
    assert len({row["group"] for row in rows(tmp_path / "c")}) <= 2 and tally.rows
    assert not json.loads((tmp_path / "c" / "manifest.json").read_text())["complete"]


# bad input


def test_a_group_without_a_pair_fails_and_is_named(tmp_path):
    source = written(tmp_path / "a", [["x", "y"], ["alone"], ["same", "same"]])
    tally = compare(source, tmp_path / "c", Says(_first))
    assert tally.failed == 1 and tally.identical == 1 and tally.rows == 2
    (failed,) = [row for _, row in shards.read(tmp_path / "c" / "failed.jsonl")]
    assert failed["group"] == "g1" and "no second answer" in failed["error"]


def test_input_without_any_pair_is_told_before_an_engine_opens(tmp_path):
    source = written(tmp_path / "a", [["same", "same"], ["alone"]])
    with pytest.raises(ValueError, match="has no two answers to one question"):
        check_input(source, planned())
    with pytest.raises(ValueError, match="no greedy and sampled answer"):
        check_input(source, planned("sima"))
    with pytest.raises(ValueError, match="has no answer to one question"):
        check_input(written(tmp_path / "b", []), planned())


@pytest.mark.parametrize(
    ("options", "told_"),
    [
        ({"preset": "simma"}, "unknown preset 'simma'"),
        ({"order": "two"}, "--order two: choose one, both or random"),
        ({"pairs": "some"}, "choose greedy-sample, all or adjacent"),
        ({"read": "labels", "retries": 1}, "--retries has no effect with --read labels"),
        ({"read": "labels", "decode": {"max_tokens": 4}}, "--max-tokens has no effect with --read labels"),
        ({"read": "labels", "decode": {"seed": 4}}, "--seed has no effect with --read labels"),
        ({"prompt": "critik"}, "did you mean critic"),
        ({"prompt": "judge_five"}, "there is no parser 'ratings' here"),
        ({"decode": {"temperature": -1.0}}, "temperature = -1.0: it must be at least 0"),
    ],
)
def test_bad_options_are_told(options, told_):
    with pytest.raises(ValueError, match=told_):
        planned(**options)


def test_a_prompt_of_ones_own(tmp_path):
    text = (
        'version = 1\nabout = "x"\nparser = "verdict"\nslots = ["a", "b"]\nlabels = { a = "A", b = "B" }\n'
        'opening = "Better: [["\ntext = "One: {a} Two: {b}"\n'
    )
    (tmp_path / "mine.toml").write_text(text)
    source = written(tmp_path / "a", [["x", "y"]])
    seen = []
    engine = Says(lambda request: seen.append(request) or "B]]")
    compare(source, tmp_path / "c", engine, prompt=str(tmp_path / "mine.toml"), order="one")
    (row,) = rows(tmp_path / "c")
    assert row["verdict"] == "b" and row["template"].startswith("mine:")
    assert seen[0].messages[-1] == {"role": "assistant", "content": "Better: [["}
    assert [seen[0].about.say(n) for n in (0, 1)] == ["A]]", "B]]"]  # what a person's or the world's choice would say
    (tmp_path / "bad.toml").write_text(text.replace('b = "B"', 'b = "A"'))
    with pytest.raises(ValueError, match="its labels must be a, b and perhaps tie"):
        planned(prompt=str(tmp_path / "bad.toml"))
    (tmp_path / "less.toml").write_text(text.replace(', "b"]', "]").replace("Two: {b}", ""))
    with pytest.raises(ValueError, match="no slot b, which this stage needs"):
        planned(prompt=str(tmp_path / "less.toml"))


def test_a_prompt_that_needs_a_true_answer_is_not_filled_with_nothing(tmp_path):
    text = (
        'version = 1\nabout = "x"\nparser = "verdict"\nslots = ["a", "b", "truth"]\nlabels = { a = "1", b = "2" }\n'
        'text = "True: {truth} One: {a} Two: {b}"\n'
    )
    (tmp_path / "mine.toml").write_text(text)
    mine = str(tmp_path / "mine.toml")
    source = written(tmp_path / "a", [["x", "y"], ["v", "w"]], meta=[[{}, {}], [{"reference": "t"}] * 2])
    tally = compare(source, tmp_path / "c", Says(_first), prompt=mine, order="one")
    assert tally.failed == 1 and tally.rows == 1
    assert "needs {truth}, and these answers came without one" in (tmp_path / "c" / "failed.jsonl").read_text()
    with pytest.raises(ValueError, match=r"mine needs \{truth\}"):
        check_input(written(tmp_path / "b", [["x", "y"]]), planned(prompt=mine))


# the command


def test_the_command(world, tmp_path):
    source = captions(world, tmp_path / "a", preset="sima", samples=1, noise=0.5)
    command = ["critique", str(source), "--engine", "world", "--model", str(world), "--out", str(tmp_path / "c")]
    made = CliRunner().invoke(app, [*command, "--debug", "1", "--noise", "0.1"])
    assert made.exit_code == 0, made.output
    assert "pairs with a verdict" in made.output and "True answer: The image shows" in made.output
    again = CliRunner().invoke(app, [*command, "--noise", "0.1"])
    assert "0 of them new" in again.output
    other = CliRunner().invoke(app, command)
    assert other.exit_code == 1 and "engine.noise was 0.1 and is 0.0" in str(other.exception or other.output)
    for options, told_ in (
        (["--read", "labels", "--temperature", "1"], "--temperature has no effect with --read labels"),
        (["--out", str(source)], "holds the input"),
        (["--prompt", "nothing"], "there is no prompt nothing"),
    ):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 1 and told_ in str(result.exception)


def test_the_command_refuses_what_holds_no_answers(world, tmp_path):
    command = ["critique", str(world / "test.jsonl"), "--engine", "world", "--model", str(world)]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "c")])
    assert result.exit_code == 1 and "a scored answer needs a question" in str(result.exception)
