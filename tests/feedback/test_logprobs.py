"""`mmfast logprobs`: finished answers have the log-probs that training's reference pass gives them, and plain forwards;
two folders of them are the implicit reward."""

import json
import random
import shutil
import signal

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.known import read_records
from mmfast.engines.base import Reply, Request
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.engines.recorded import Recorded
from mmfast.engines.stage import rows as rows_of
from mmfast.feedback.logprobs import logprobs
from mmfast.reference.exchange import export_file
from mmfast.reference.scoring import reference
from tests.make.answer_cases import stage
from tests.make.engine_cases import Fake
from tests.make.local_cases import SHAPES, model_folder, picture, question, request
from tests.make.rank_processes import CONTEXT, run_ranks
from tests.make.stage_folders import answer, asked, folder
from tests.make.tiny_run import make_config, make_model, write_pairs

TEXTS = ("two red circles", "Zwei rote Kreise – und 😀.", "二つの赤い円があります。", "no\n\nmore of it than that ")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, ValueError), repr(result.exception)
        return str(result.exception)
    assert result.exit_code == code, result.output
    return result.output


def scored(request: Request, text: str) -> Request:
    """The answer `text` to a request."""
    messages = (*request.messages, {"role": "assistant", "content": text})
    return Request(key=f"{request.key}: {text}", messages=messages, images=request.images, n=0, scored=True)


# engines


@pytest.mark.parametrize("family", SHAPES)
def test_finished_answers_have_the_plain_forwards_log_probs(tmp_path, family):
    """All answers to the questions about an image in one pack, the image and each question once; a dialogue too."""
    model, generator = model_folder(tmp_path, family), random.Random(0)
    local, plain = Local(str(model)), Plain(model)
    shown = (lambda n: ()) if family == "llama" else (lambda n: (picture(n // 2),))
    asks = [scored(request(f"{n}", question(generator), *shown(n)), text) for n in range(4) for text in TEXTS]
    turns = request("turns", "what is it", *shown(0)).messages
    turns = (*turns, {"role": "assistant", "content": "a star"}, {"role": "user", "content": "what else"})
    asks.append(scored(Request(key="turns", messages=turns, images=shown(0)), "nothing"))
    found, twin = ({reply.key: reply for reply in engine.answer(asks)} for engine in (local, plain))
    assert local.counts["steps"] == 0 and len(found) == len(asks)
    for name, reply in found.items():
        assert reply.error == twin[name].error == "" and reply.tokens == twin[name].tokens > 1, name
        assert abs(reply.logp - twin[name].logp) < 1e-5 * reply.tokens, name
    if family == "llava":  # the four answers to a question read image and question once
        assert local.counts["prefilled"] < sum(local.prompts.read(one).slots for one in asks)


def test_the_end_is_scored_and_a_label_is_without_it(tmp_path):
    engine = Local(str(model_folder(tmp_path, "llava")))
    ask = request("a", "what is it", picture(0))
    (whole,) = engine.answer([scored(ask, "a star")])
    (begun,) = engine.answer([request("b", "what is it", picture(0), n=0, labels=("a star",))])
    prompt = engine.prompts.read(scored(ask, "a star"))
    label = engine.prompts.read(request("b", "what is it", picture(0), n=0, labels=("a star",))).labels["a star"]
    assert prompt.labels[""] == [*label, engine.prompts.tokenizer.eos_id]
    assert whole.tokens == len(label) + 1 and whole.logp < begun.labels["a star"]


def test_a_model_that_cannot_share_scores_them_too(tmp_path):
    model = model_folder(tmp_path, "llava")
    asks = [scored(request(f"{n}", "what is it", picture(n)), text) for n in range(2) for text in TEXTS]
    want = {reply.key: (reply.logp, reply.tokens) for reply in Local(str(model)).answer(asks)}
    engine = Local(str(model))
    engine.scorer.run_unshared("a test")
    found = {reply.key: (reply.logp, reply.tokens) for reply in engine.answer(asks)}
    assert found == {name: (pytest.approx(logp, abs=1e-3), tokens) for name, (logp, tokens) in want.items()}


def test_what_cannot_be_scored_is_told(tmp_path):
    model = model_folder(tmp_path, "llava")
    long = scored(request("a", "what", picture(0)), "red " * 5000)
    image = scored(request("b", "what", picture(0)), "an <image> of it")
    for engine in (Local(str(model)), Plain(model)):
        first, second = engine.answer([long, image])
        assert "prompt and answer: " in first.error and "the model's window is" in first.error
        assert second.error == ""  # as words: training reads it so
    with pytest.raises(ValueError, match="a finished answer is scored by itself, as the last message"):
        Request(key="a", messages=({"role": "user", "content": "x"},), n=0, scored=True)
    with pytest.raises(ValueError, match="a finished answer is scored by itself"):
        Request(key="a", messages=({"role": "assistant", "content": "x"},), scored=True)


def test_recorded_log_probs_are_those_of_finished_answers(tmp_path):
    """A finished answer is not the beginning of one: both stand in one file."""
    model = str(model_folder(tmp_path, "llava"))
    whole = scored(request("a", "what is it", picture(0)), "a star")
    begun = Request(key="b", messages=whole.messages, images=whole.images, n=0, labels=(" too",))
    engine = Recorded(tmp_path / "r.jsonl", Local(model))
    want = {reply.key: reply for reply in engine.answer([whole, begun])}
    engine.close()
    alone = Recorded(tmp_path / "r.jsonl")
    assert {reply.key: reply for reply in alone.answer([whole, begun])} == want


# the stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Preference pairs, their reference log-probs by training's own pass, and the same answers as a file."""
    root = tmp_path_factory.mktemp("trained")
    model, pairs = make_model(root), write_pairs(root, 10, text_only=1)
    pairs = [json.loads(line) for line in pairs.read_text().splitlines()]
    (root / "pairs.json").write_text(json.dumps(pairs))
    config = make_config(root, model, root / "pairs.json")
    reference(config)
    export_file(config, root / "out.json")
    answers = [
        {"images": row["images"], "question": row["prompt"], "answer": row[side][0]["content"]}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return root, model, json.loads((root / "out.json").read_text())


def test_the_sums_are_those_of_trainings_reference_pass(trained, tmp_path):
    root, model, exported = trained
    said = run("logprobs", root / "answers.jsonl", "--engine", "local", "-m", model, "-o", tmp_path / "lp")
    found = list(rows_of(tmp_path / "lp"))
    want = [row[name] for row in exported for name in ("ref_win_logp", "ref_rej_logp")]
    means = [row[name] for row in exported for name in ("ref_win_avg_logp", "ref_rej_avg_logp")]
    assert [row["logp"] for row in found] == pytest.approx(want, abs=2e-4) and len(found) == 20
    assert [row["logp"] / row["tokens"] for row in found] == pytest.approx(means, abs=1e-4)
    assert "20 rows, 20 of them new: 0 empty, 0 cut" in said
    assert f"{sum(r['tokens'] for r in found)} tokens" in said


def test_killed_at_any_byte_and_on_two_ranks_the_rows_are_the_same(trained, tmp_path):
    root, model, _ = trained
    source, engine = root / "answers.jsonl", Local(str(model))
    stage(logprobs, source, tmp_path / "one", engine)
    want, data = list(rows_of(tmp_path / "one")), (tmp_path / "one/rows-0.jsonl").read_bytes()
    for at in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1):
        shutil.copytree(tmp_path / "one", tmp_path / f"cut{at}")
        (tmp_path / f"cut{at}/rows-0.jsonl").write_bytes(data[:at])
        tally = stage(logprobs, source, tmp_path / f"cut{at}", engine)
        assert same(rows_of(tmp_path / f"cut{at}"), want) and tally.new == 20 - data[:at].count(b"\n")
    assert stage(logprobs, source, tmp_path / "one", engine).new == 0
    run_ranks(2, tmp_path, _two, source, tmp_path / "two", str(model))
    assert same(rows_of(tmp_path / "two"), want) and len(list((tmp_path / "two").glob("rows-*.jsonl"))) == 2


def _two(source, out, model):
    stage(logprobs, source, out, Local(model))


def same(rows, want):
    """What runs beside a row may show in a log-prob's last digit."""
    rows = list(rows)
    assert [row | {"logp": 0} for row in rows] == [row | {"logp": 0} for row in want]
    return [row["logp"] for row in rows] == pytest.approx([row["logp"] for row in want], abs=2e-4)


def test_a_process_killed_in_the_middle_goes_on(trained, tmp_path):
    root, *_ = trained
    source = root / "answers.jsonl"
    process = CONTEXT.Process(target=_dies, args=(source, tmp_path / "o"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    engine = Numbers()
    stage(logprobs, source, tmp_path / "o", engine)
    assert engine.asks == 15 and len(list(rows_of(tmp_path / "o"))) == 20


class Numbers(Fake):
    can = Fake.can | {"score"}

    def reply(self, request, sample):
        return Reply(key=request.key, logp=-2.0, tokens=4)


def _dies(source, out):
    stage(logprobs, source, out, Numbers(dies=5))


def test_bad_input_is_counted_and_told(trained, tmp_path, picture):
    _, model, _ = trained
    image = picture("a.png")
    found = [
        answer("k1", "A dog.", image), answer("k2", "  \n", image), answer("k3", "A cat.", tmp_path / "gone.png"),
        answer("k4", "A cat.", image), answer("k5", "A cat.", image), answer("k6", "red " * 9000, image),
    ]  # fmt: skip
    source = folder(tmp_path / "a", "generate", found)
    said = run("logprobs", source, "--engine", "local", "-m", model, "-o", tmp_path / "o", code=1)
    assert "3 rows, 3 of them new" in said and "2 of 5 requests failed" in said and "1 empty answers are not" in said
    failed = [json.loads(line) for line in (tmp_path / "o/failed.jsonl").read_text().splitlines()]
    assert [row["answer_key"] for row in failed] == ["k3", "k6"]
    assert "gone.png" in failed[0]["error"] and "the model's window is" in failed[1]["error"]
    kept = {row["answer_key"]: row["logp"] for row in rows_of(tmp_path / "o")}
    assert kept.keys() == {"k1", "k4", "k5"} and kept["k4"] == kept["k5"]  # each of equal answers has its row
    for arguments, want in (
        (("--engine", "world", "-m", tmp_path), "mmfast logprobs: the engine world has no score: leave it out, or"),
        (("--engine", "people", "-m", tmp_path / "team"), "mmfast logprobs: the engine people has no score"),
    ):
        assert run("logprobs", source, *arguments, "-o", tmp_path / "n", code=1).startswith(want)
    nothing = folder(tmp_path / "empty", "generate", [answer("k", " ", image)])
    told = run("logprobs", nothing, "--engine", "local", "-m", model, "-o", tmp_path / "n")
    assert told == f"{nothing} holds no answer: nothing can be scored"
    told = run("logprobs", source, "--engine", "local", "-m", model, "-o", source)
    assert told == f"--out {source} holds the input {source}: name another folder"
    told = run("data", "pairs", tmp_path / "o", "--rule", "reward", "-o", tmp_path / "p.jsonl")
    assert told.endswith("its log-probs are no scores yet (mmfast grade --beta)")


# the reward


@pytest.fixture
def two(tmp_path):
    """Three answers to a question, scored by a policy and by its reference."""
    texts = {"k1": "Short.", "k2": "A longer one.", "k3": "Never scored."}
    source = folder(tmp_path / "a", "generate", [
        answer(k, text, prompt=asked(images=0), images=[], logp=-99.0, tokens=3) for k, text in texts.items()
    ])  # fmt: skip

    def lp(name, engine, **numbers):
        rows = [{"key": f"{name}{k}", "answer_key": k, "logp": logp, "tokens": n} for k, (logp, n) in numbers.items()]
        return folder(tmp_path / name, "logprobs", rows, engine={"engine": "local", "weights": engine})

    policy = lp("policy", "p", k1=(-2.0, 2), k2=(-8.0, 8))
    return source, policy, lp("base", "r", k1=(-3.0, 2), k2=(-10.0, 8)), lp


@pytest.mark.parametrize(("more", "want"), [((), [0.05, 0.025]), (("--whole",), [0.1, 0.2])])
def test_the_reward_of_two_folders(two, tmp_path, more, want):
    source, policy, base, _ = two
    said = run("grade", source, "--beta", "0.1", "--policy", policy, "--reference", base, "-o", tmp_path / "g", *more)
    found = [row["scores"].get("reward") for row in rows_of(tmp_path / "g")]
    assert found == [pytest.approx(want[0]), pytest.approx(want[1]), None] and "1 without log-probs" in said
    made_by = json.loads((tmp_path / "g/manifest.json").read_text())
    assert (made_by["policy"], made_by["reference"]) == ("policy", "base")
    # The highest over the lowest; and the best of N alone
    out = tmp_path / "p.jsonl"
    run("data", "pairs", tmp_path / "g", "--rule", "reward", "--on-error", "drop", "-o", out)
    (pair,) = read_records(out)
    best, least = ("Short.", "A longer one.") if not more else ("A longer one.", "Short.")
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == (best, least)
    run("data", "sft", tmp_path / "g", "--score", "reward", "--on-error", "drop", "-o", out)
    (one,) = read_records(out)
    assert one.chosen[0]["content"] == best


def test_a_folder_beside_a_column_and_other_tokens(two, tmp_path):
    """What generate wrote of its own answer is compared only where the numbers of tokens agree."""
    source, _, base, lp = two
    said = run("grade", source, "--beta", "1", "--reference", base, "-o", tmp_path / "g")
    assert "2 whose tokens are others for policy and reference: without a reward" in said
    base = lp("three", "r", k1=(-100.0, 3), k2=(-100.0, 3), k3=(-105.0, 3))
    run("grade", source, "--beta", "1", "--reference", base, "-o", tmp_path / "h")
    assert [row["scores"]["reward"] for row in rows_of(tmp_path / "h")] == [pytest.approx(n / 3) for n in (1, 1, 6)]


def test_mistakes_of_the_reward_are_one_line(two, tmp_path):
    source, policy, base, lp = two
    for options, want in (
        ((policy, lp("again", "p", k1=(-2.0, 2))), "--policy and --reference were scored by the same model"),
        ((policy, tmp_path / "gone"), f"--reference {tmp_path}/gone is no folder of mmfast logprobs, and no name of a"),
        ((source, base), f"{source} is a folder of generate: one of mmfast logprobs is needed"),
    ):
        given = ("--policy", options[0], "--reference", options[1])
        assert run("grade", source, "--beta", "1", *given, "-o", tmp_path / "g").startswith(want)
    (base / "rows-0.jsonl").write_text('{"key": "a", "row": 0, "answer_key": "k1", "logp": "much", "tokens": 3}\n')
    told = run("grade", source, "--beta", "1", "--policy", policy, "--reference", base, "-o", tmp_path / "g")
    assert told.endswith('is no row of this stage: its logp is "much"')


def test_from_answers_to_pairs_by_two_models(trained, tmp_path):
    root, model, _ = trained
    other = make_model(tmp_path / "other", seed=5)
    for name, which in (("policy", other), ("base", model)):
        run("logprobs", root / "answers.jsonl", "--engine", "local", "-m", which, "-o", tmp_path / name)
    given = ("--policy", tmp_path / "policy", "--reference", tmp_path / "base")
    run("grade", root / "answers.jsonl", "--beta", "0.1", *given, "-o", tmp_path / "g")
    policy, base = ({r["answer_key"]: r for r in rows_of(tmp_path / name)} for name in ("policy", "base"))
    graded = list(rows_of(tmp_path / "g"))
    for row in graded:
        a, b = policy[row["key"]], base[row["key"]]
        assert row["scores"]["reward"] == pytest.approx(0.1 * (a["logp"] - b["logp"]) / a["tokens"])
    run("data", "pairs", tmp_path / "g", "--rule", "reward", "-o", tmp_path / "p.jsonl")
    assert len(list(read_records(tmp_path / "p.jsonl"))) == 10
