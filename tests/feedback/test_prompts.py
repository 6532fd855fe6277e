"""Prompts are data: what a file may say, what is told of a bad one; and each of ours, once through two engines."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.engines.base import Decode, Request
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.feedback import ratings, verdicts
from mmfast.feedback.prompts import FOLDER, Prompt, Wording, known, prompt
from mmfast.packages import tomllib
from tests.feedback.test_decompose import OWN as TAKEN_APART
from tests.make.local_cases import picture
from tests.make.prompt_models import llava

WINDOW, ANSWER, ROOM = 4096, 512, 256  # tokens: the model's, of each answer, left for the reply


def critic(made, a, b):
    return {"question": "Describe the image in detail.", "truth": "A cup on a table.", "a": a, "b": b}


def judge(made, a, b):
    return {"question": "Describe the image in detail.", "count": "2", "answers": made.listed([a, b])}


def reads_verdict(made, reply):
    meaning, problem = verdicts.PARSERS[made.wording.parser](made.wording.opening + reply, made.wording.labels)
    return meaning is not None and not problem


def reads_ratings(made, reply):
    wording = made.wording
    found = ratings.ratings(reply, 2, tuple(wording.metrics), wording.low, wording.high)
    return not found.problems and found.reference and all(found.reasons)


# name -> (the values of its slots, with two answers; whether a reply is read)
CASES = {
    "critic": (critic, reads_verdict),
    "critic_sima": (critic, reads_verdict),
    "judge_five": (judge, reads_ratings),
}


def test_every_prompt_is_tried():
    experts = ["question_check", "yes_no", "yes_no_short"]  # in test_check and test_experts
    assert sorted([*CASES, *TAKEN_APART, *experts]) == known()


@pytest.mark.parametrize("name", CASES)
def test_the_parser_reads_what_the_demonstrations_print(name):
    made, (_, reads) = prompt(name), CASES[name]
    assert len(made.wording.demonstrations) >= (2 if "critic" in name else 1)
    assert all(reads(made, shown["reply"]) for shown in made.wording.demonstrations)


@pytest.fixture(scope="module", params=["own", "llava15"])
def engines(request, tmp_path_factory):
    home = os.environ.get("MMFAST_TOKENIZERS", "")
    if request.param != "own" and not home:
        pytest.skip("MMFAST_TOKENIZERS names no folder with llava15's tokenizer")
    folder = llava(tmp_path_factory.mktemp("model"), Path(home) / request.param if request.param != "own" else None)
    return Local(folder), Plain(folder)


@pytest.mark.parametrize("name", CASES)
def test_it_fits_the_window_and_its_labels_are_single_tokens(engines, name):
    """Two answers of 512 tokens, an image of 576, and room for the reply; both engines say the same of the labels."""
    local, plain = engines
    made, (values, _) = prompt(name), CASES[name]
    text = long_text(local.prompts.tokenizer.hf)
    slots = values(made, text, text[: text.rindex(" ")])
    image = (picture(0),)
    asked = Request(key="t", messages=made.messages(1, **slots), images=image, decode=Decode(max_tokens=4))
    read = local.prompts.read(asked)
    assert 576 + 2 * ANSWER - 40 < read.slots <= WINDOW - ROOM, read.slots
    if name.startswith("critic"):
        assert len(read.ids) < 2600, "images and answers leave less than half a window"
    for engine in engines:
        (reply,) = engine.answer([asked])
        assert not reply.error and reply.tokens
    # As labels
    labels = tuple(made.wording.labels.values())
    if not labels:
        return
    asked = Request(key="l", messages=made.label_messages(1, **slots), images=image, n=0, labels=labels)
    read = local.prompts.read(asked)
    assert {label: len(ids) for label, ids in read.labels.items()} == dict.fromkeys(labels, 1)
    assert len({ids[0] for ids in read.labels.values()}) == len(labels)
    assert [local.prompts.tokenizer.hf.decode(read.labels[label]).strip() for label in labels] == list(labels)
    (ours,), (theirs,) = (list(engine.answer([asked])) for engine in (local, plain))
    assert not ours.error and ours.labels == pytest.approx(theirs.labels, abs=1e-4)


def long_text(tokenizer):
    """Of 512 tokens."""
    said = (
        "On the wooden table by the window there is a small white cup with a blue rim, next to it lies an open book, "
        "and behind both a man in a grey coat looks out at the street, where two bicycles lean against a wall. "
    )
    words, text = said.split(), ""
    while len(tokenizer(text, add_special_tokens=False).input_ids) < ANSWER:
        text = f"{text} {words[len(text.split()) % len(words)]}".strip()
    return text


# what a file may say

GOOD = """version = 1
about = "x"
parser = "verdict"
slots = ["question", "a", "b"]
optional = ["truth"]
labels = { a = "1", b = "2" }
text = "Q {question}\\n\\nT {truth}\\n\\n{a} or {b}, {c}?"
"""


def written(tmp_path, text, **options):
    (tmp_path / "mine.toml").write_text(text)
    return prompt(str(tmp_path / "mine.toml"), **options)


def test_slots_are_filled_once_and_empty_paragraphs_left_out(tmp_path):
    made = written(tmp_path, GOOD)
    given = {"question": "why {a}?", "a": "{b} {truth} \\1", "b": "B"}
    assert made.filled(given) == "Q why {a}?\n\n{b} {truth} \\1 or B, {c}?"
    assert made.filled(given | {"truth": "so"}).split("\n\n")[1] == "T so"
    assert made.filled(given | {"truth": ""}) == made.filled(given)
    (only,) = made.messages(2, **given)
    assert [part["type"] for part in only["content"]] == ["image", "image", "text"]


@settings(max_examples=200, deadline=None)
@given(*[st.text() | st.sampled_from(["{a}", "{b}", "{question}", "{truth}", "{low}", "\\1", "\n\n"])] * 3)
def test_whatever_fills_a_slot_stands_there_as_it_is(question, a, b):
    text = 'version = 1\nabout = "x"\nparser = "p"\nslots = ["question", "a", "b"]\ntext = "<{question}|{a}|{b}|{c}>"'
    made = Prompt("mine", "", Wording(**tomllib.loads(text)))
    assert made.filled({"question": question, "a": a, "b": b}) == f"<{question}|{a}|{b}|{{c}}>"


def test_images_may_stand_last_or_nowhere(tmp_path):
    last = written(tmp_path, GOOD + 'image = "last"\n').messages(1, question="q", a="a", b="b")[0]["content"]
    assert [part["type"] for part in last] == ["text", "image"]
    none = written(tmp_path, GOOD + 'image = "none"\n').messages(1, question="q", a="a", b="b")[0]["content"]
    assert [part["type"] for part in none] == ["text"]


def test_line_breaks_are_taken_out_where_the_prompt_is_flat(tmp_path):
    made = written(tmp_path, GOOD + "flat = true\n")
    assert made.filled({"question": "q\n\nq", "a": "a\n1", "b": "b"}) == "Q qq\n\na1 or b, {c}?"
    sima = prompt("critic_sima").filled({"question": "Why\nso?", "a": "one\ntwo", "b": "x", "truth": "t"})
    assert "Question: [Whyso?]" in sima and "Answer 1: [onetwo]" in sima
    assert (
        "describes the stall, the fruit, the scale and both people as the true answer does.\nBetter answer: [[2]]"
        in sima
    )


def test_demonstrations_are_turns_or_stand_in_the_text():
    turns = prompt("critic").messages(1, question="q", a="a", b="b")
    assert [m["role"] for m in turns] == ["system", *["user", "assistant"] * 2, "user"]
    assert not any(isinstance(m["content"], list) for m in turns[:-1])  # their images are not shown
    (one,) = prompt("critic_sima").messages(1, question="q", a="a", b="b")
    assert one["role"] == "user" and one["content"][0] == {"type": "image"}
    assert one["content"][1]["text"].count("ASSISTANT:") == 3 and one["content"][1]["text"].endswith("ASSISTANT:")


def test_labels_continue_an_opening_of_their_own():
    made = prompt("critic")
    asked, labelled = (f(1, question="q", a="a", b="b") for f in (made.messages, made.label_messages))
    assert labelled[:-1] == asked and labelled[-1] == {"role": "assistant", "content": "Verdict: [["}


def test_answers_are_numbered_and_never_taken_for_slots():
    made = prompt("judge_five")
    assert made.listed(["{number} {answer}", "b"]) == "Answer 1:\n{number} {answer}\n\nAnswer 2:\nb"
    text = made.messages(1, question="{answers}", count="2", answers=made.listed(["{question}", "b"]))[-1]["content"][1]
    assert "Question: {answers}" in text["text"] and "Answer 1:\n{question}" in text["text"]
    system = made.messages(1, question="q", count="1", answers="x")[0]["content"]
    assert "from 0 (" in system and "to 4 (" in system and "\nCorrectness: how far" in system


def test_the_digest_is_of_the_file(tmp_path):
    assert prompt("critic").digest != prompt("critic_sima").digest
    first, again = written(tmp_path, GOOD), written(tmp_path, GOOD)
    assert first.digest == again.digest != written(tmp_path, GOOD + "# another line\n").digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("version = 1", ""), "version: Field required"),
        (("version = 1", "version = "), "no TOML file"),
        (('parser = "verdict"', 'parser = "none"'), "there is no parser 'none' here"),
        (("{a} or {b}", "{a}"), r"its text has no \{b\}, which is one of its slots"),
        (('"question", "a", "b"', '"question", "a"'), "it has no slot b, which this stage needs"),
        (('["truth"]', '["truth", "c"]'), "this stage cannot fill its slot c"),
        (('"question", "a", "b"', '"question", "a", "b", "low"'), "its text has no {low}"),
        (("labels", "label"), "label: Extra inputs are not permitted"),
        (('about = "x"', 'about = "x"\ndemonstration = "{a} {reply}"'), "it needs both, or none"),
        (('about = "x"', 'about = "x"\nlow = 3\nhigh = 3\nmetrics = { m = "m" }'), "raise high"),
        (('about = "x"', 'about = "x"\neach = "{answer}"'), "it needs {number} and {answer}"),
        (('about = "x"', 'about = "x"\ndemonstrations = [{ a = "a" }]'), "demonstration 1 has no reply"),
        (('about = "x"', 'about = "x"\ndemonstrations = [{ a = "a", reply = "r" }]'), "its slot question was given no"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_before_anything_is_asked(tmp_path, change, told):
    assert change[0] in GOOD
    with pytest.raises(ValueError, match=told):
        written(
            tmp_path, GOOD.replace(*change), parsers=verdicts.PARSERS, needs=("a", "b"), offers=("question", "truth")
        )


def test_an_unknown_name_is_told_with_a_near_one():
    with pytest.raises(ValueError, match="no prompt critik: did you mean critic"):
        prompt("critik")
    with pytest.raises(ValueError, match=r"there are claim_questions, .*judge_five"):
        prompt("zzz")


def test_prompts_are_listed_shown_and_copied_out_to_be_edited(tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, ["feedback", "prompts", *map(str, arguments)])
        return str(result.exception) if isinstance(result.exception, ValueError) else result.output

    listed = run().splitlines()
    assert [line.split()[0] for line in listed] == known() and all(len(line.split()) > 3 for line in listed)
    assert run("critic") == (FOLDER / "critic.toml").read_text()
    mine = tmp_path / "new" / "mine.toml"
    assert run("critic", "-o", mine).startswith(f"{mine}: edit it")
    mine.write_text(mine.read_text().replace("version = 1", "version = 2", 1) + "\n# mine\n")
    made = prompt(str(mine))
    assert made.digest != prompt("critic").digest and made.wording.text == prompt("critic").wording.text
    for arguments, said in (
        (("critic", "-o", mine), f"{mine} is there already"),
        (("critic", "-o", tmp_path / "mine.txt"), "mine.txt: a prompt is a .toml file"),
        (("critik",), "there is no prompt critik: did you mean critic?"),
        (("-o", mine), "--out copies one prompt"),
    ):
        assert run(*arguments).startswith(said)
