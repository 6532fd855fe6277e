"""decompose: what models write, refuse, cut and leave out; nothing of an answer is dropped unseen."""

import json
import os
import re
import signal

import pytest
from transformers import AutoTokenizer

from mmfast.engines.base import Reply
from mmfast.engines.local import Local
from mmfast.engines.stage import rows
from mmfast.feedback.answers import read_answers
from mmfast.feedback.decompose import PRESETS, planned
from mmfast.feedback.items import read_items
from mmfast.feedback.prompts import FOLDER, known, prompt
from tests.make.engine_cases import Fake
from tests.make.feedback_cases import decomposed, write_answers
from tests.make.local_cases import model_folder
from tests.make.rank_processes import CONTEXT

DGPREF = {
    "every thing, animal": "(dog, bucket)",
    "in it are like": "(brown, dog); (red, bucket)",
    "how many of": "(two, buckets)",
    "stand to each other": "(dog, beside, bucket); (dog, left of, image)",
}
ANSWER = 'A brown dog lies beside two red buckets that say "OPEN", at the left of the image.'


class Model(Fake):
    """Answers by a part of the prompt; `first` is what it says at the first attempt."""

    def __init__(self, told, *, first=None, cut=(), **options):
        super().__init__(**options)
        self.told, self.first, self.cut, self.requests = told, first or {}, cut, []

    def reply(self, request, sample):
        self.requests.append(request)
        said = request.messages[-1]["content"][-1]["text"]
        if self.wrong and self.wrong in said:
            return Reply(key=request.key, finish="error", error="the prompt is longer than the window")
        for part, text in {**self.told, **(self.first if request.decode.seed == 0 else {})}.items():
            if part in said:
                return Reply(key=request.key, text=text, tokens=3, finish="length" if part in self.cut else "stop")
        raise AssertionError(said)


@pytest.fixture
def one(tmp_path, picture):
    return write_answers(tmp_path / "answers", [(picture("a.png"), ANSWER)])


def test_dgprefs_aspects_as_items(one, tmp_path):
    engine = Model(DGPREF)
    tally = decomposed(one, tmp_path / "items", engine)
    (found,) = read_items(tmp_path / "items")
    told = [(i.kind, *i.args, ANSWER[slice(*i.span)] if i.span else None) for i in found.items]
    assert told == [
        ("object", "dog", "dog"),
        ("object", "bucket", "buckets"),
        ("attribute", "brown", "dog", "brown dog"),
        ("attribute", "red", "bucket", "red buckets"),
        ("count", "two", "buckets", "two red buckets"),
        ("relation", "dog", "beside", "bucket", "dog lies beside two red buckets"),
        ("spatial", "dog", "left", "image", ANSWER[8:-14]),
        ("text", "OPEN", "OPEN"),
    ]
    assert len(engine.requests) == 4 and tally.also["items of the kind object"] == 2
    assert {request.decode.temperature for request in engine.requests} == {0.0}
    raw = json.loads(next(rows(tmp_path / "items"))["raw"])
    assert raw["entity"] == "(dog, bucket)" and raw["cut"] == []


def test_what_cannot_be_read_is_asked_again_and_the_rest_is_not(one, tmp_path):
    engine = Model(DGPREF, first={"in it are like": "I cannot help with that.", "how many of": ""})
    decomposed(one, tmp_path / "items", engine)
    (row,) = rows(tmp_path / "items")
    assert row["problem"] == "" and row["attempts"] == 2 and len(row["items"]) == 8
    assert len(engine.requests) == 6 and [request.decode.seed for request in engine.requests] == [0] * 4 + [1] * 2


def test_what_never_can_be_read_is_kept_with_its_reason(one, tmp_path):
    engine = Model(DGPREF | {"in it are like": "Sorry.", "how many of": " "})
    tally = decomposed(one, tmp_path / "items", engine, retries=1)
    (row,) = rows(tmp_path / "items")
    assert row["problem"] == "attribute: the reply holds no item and no NONE; count: the reply is empty"
    assert {item["kind"] for item in row["items"]} == {"object", "relation", "spatial", "text"}
    assert tally.also["answers: attribute: the reply holds no item and no NONE"] == 1
    assert tally.also["not readable"] == 1 and tally.failed == 0


def test_cut_replies_lose_their_last_piece_alone(one, tmp_path):
    told = DGPREF | {"stand to each other": "(dog, beside, bucket); (dog, left of, ima"}
    tally = decomposed(one, tmp_path / "items", Model(told, cut=("stand to each other",)))
    (row,) = rows(tmp_path / "items")
    assert [i["args"] for i in row["items"] if i["kind"] == "relation"] == [["dog", "beside", "bucket"]]
    assert (row["finish"], row["malformed"], tally.cut) == ("length", 1, 1)


CLAIMS = {
    "as a list of short sentences": "- There is a dog.\n- There is no cat.\n- A unicorn is near.",
    "Below are claims": "- Is there a dog?\n- Is there a cat? (no)\n- Is a unicorn near?",
}


def test_claims_get_their_questions(one, tmp_path):
    engine = Model(CLAIMS)
    tally = decomposed(one, tmp_path / "items", engine, "rlaifv")
    (found,) = read_items(tmp_path / "items")
    assert [(i.claim, i.question, i.negated) for i in found.items] == [
        ("There is a dog.", "Is there a dog?", False),
        ("There is no cat.", "Is there a cat?", True),
        ("A unicorn is near.", "Is a unicorn near?", False),
    ]
    assert found.items[0].span and found.items[2].span is None
    assert tally.also["items without words of their own in the answer (span null)"] == 2
    asked = engine.requests[1].messages[-1]["content"][-1]["text"]
    assert asked.endswith("- There is a dog.\n- There is no cat.\n- A unicorn is near.")


def test_too_few_questions_are_asked_for_again_and_then_left_out(one, tmp_path):
    engine = Model(CLAIMS | {"Below are claims": "- Is there a dog?"})
    tally = decomposed(one, tmp_path / "items", engine, "rlaifv", retries=1)
    (row,) = rows(tmp_path / "items")
    assert row["problem"] == "questions: 1 questions for 3 claims" and [i["question"] for i in row["items"]] == [""] * 3
    assert tally.also["claims without a question"] == 3
    assert len(engine.requests) == 3  # the claims were good and are not asked for again
    decomposed(one, tmp_path / "compat", engine, "rlaifv_compat")
    (row,) = rows(tmp_path / "compat")
    assert [i["claim"] for i in row["items"]] == ["There is a dog."]  # RLAIF-V pairs up to the shorter list


def test_an_answer_of_no_claims_has_no_second_request(one, tmp_path):
    engine = Model(CLAIMS | {"as a list of short sentences": "NONE"})
    tally = decomposed(one, tmp_path / "items", engine, "rlaifv")
    assert len(engine.requests) == 1 and tally.also["answers without items"] == 1
    assert next(rows(tmp_path / "items"))["problem"] == ""


def test_long_answers_are_read_whole_but_by_the_compat_preset(tmp_path, picture):
    text = " ".join(f"word{n}" for n in range(400))
    source = write_answers(tmp_path / "answers", [(picture("a.png"), text)])
    engine = Model(CLAIMS)
    decomposed(source, tmp_path / "items", engine, "rlaifv")
    assert "word399" in engine.requests[0].messages[-1]["content"][-1]["text"]
    tally = decomposed(source, tmp_path / "compat", engine, "rlaifv_compat")
    cut = engine.requests[2].messages[-1]["content"][-1]["text"]
    assert "word226" in cut and "word227" not in cut  # 300, less 70 of instruction and 3 of the question
    assert tally.also["answers whose end was not read"] == 1
    assert engine.requests[2].decode.temperature == 0.2


def test_dgpref_to_the_letter(one, tmp_path):
    told = DGPREF | {"every thing, animal": "NONE", "stand to each other": "Sure: (sign, stopped by, car)"}
    decomposed(one, tmp_path / "items", Model(told), "dgpref_compat")
    (found,) = read_items(tmp_path / "items")
    assert [i.args for i in found.items if i.kind == "object"] == [("NONE",)]
    assert [i.args for i in found.items if i.kind == "spatial"] == [("sign", "top", "car")]


def test_an_engine_that_fails_is_tried_again_by_the_next_start(one, tmp_path):
    tally = decomposed(one, tmp_path / "items", Model(DGPREF, wrong="in it are like"))
    assert (tally.failed, tally.rows) == (1, 0)
    assert "attribute: the prompt is longer" in (tmp_path / "items" / "failed.jsonl").read_text()
    assert decomposed(one, tmp_path / "items", Model(DGPREF)).rows == 1


def _killed(folder, dies):
    decomposed(folder / "answers", folder / "items", Model(DGPREF, dies=dies, batch=1))


def test_killed_at_any_reply_it_ends_the_same(tmp_path, picture):
    source = write_answers(tmp_path / "answers", [(picture("a.png"), f"{ANSWER} {n}") for n in range(3)])
    decomposed(source, tmp_path / "whole", Model(DGPREF))
    for dies in (1, 11):
        process = CONTEXT.Process(target=_killed, args=(tmp_path, dies))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    decomposed(source, tmp_path / "items", Model(DGPREF))
    assert list(rows(tmp_path / "items")) == list(rows(tmp_path / "whole"))


def test_a_changed_wording_makes_new_rows_and_old_ones_are_not_read(one, tmp_path):
    decomposed(one, tmp_path / "items", Model(DGPREF))
    mine = tmp_path / "mine.toml"
    mine.write_text((FOLDER / "decompose_entity.toml").read_text().replace("version = 1", "version = 2"))
    decomposed(one, tmp_path / "items", Model(DGPREF | {"every thing, animal": "(dog)"}), prompts={"entity": str(mine)})
    assert len(list(rows(tmp_path / "items"))) == 2
    (found,) = read_items(tmp_path / "items")
    assert [i.args for i in found.items if i.kind == "object"] == [("dog",)]


def test_text_can_be_asked_for_instead_of_quoted(one, tmp_path):
    engine = Model(DGPREF | {"every word, name or number": "(OPEN, 24 hours)"})
    decomposed(one, tmp_path / "items", engine, aspects=["text"], prompts={"text": "decompose_written"})
    (found,) = read_items(tmp_path / "items")
    assert [i.args for i in found.items] == [("OPEN",), ("24 hours",)] and len(engine.requests) == 1


def test_mistakes_in_a_plan_are_told():
    for arguments, told in (
        ({"preset": "dgpreff"}, "there is no 'dgpreff'"),
        ({"preset": "dgpref", "aspects": ["entities"]}, "there is no 'entities'"),
        ({"preset": "dgpref", "prompts": {"claims": "x"}}, "asks for entity"),
        ({"preset": "dgpref", "prompts": {"entity": "critic_none"}}, "there is no prompt"),
        ({"preset": "dgpref", "prompts": {"entity": "yes_no"}}, "no parser 'labels' here"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            planned(**arguments)
    assert all(planned(name).prompts for name in PRESETS)


ROOM = 4096 - 1024  # a window of 4,096 tokens, less those of a reply
OWN = [name for name in known() if name.startswith(("decompose", "split", "claim"))]


def words_of(made, text):
    """All that is said with every slot filled so."""
    said = made.messages(0, **dict.fromkeys(made.wording.slots, text))
    return [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in said]


@pytest.mark.parametrize("name", OWN)
def test_prompts_leave_room_for_long_answers(name):
    """A word is two tokens at most here, and of two slots both may hold 512."""
    assert 2 * sum(len(text.split()) for text in words_of(prompt(name), "")) + 2 * 512 < ROOM


@pytest.mark.parametrize("name", OWN)
def test_prompts_fit_the_window_of_a_real_tokenizer(name):
    home = os.environ.get("MMFAST_TOKENIZERS", "")
    if not home:
        pytest.skip("MMFAST_TOKENIZERS names no folder with llava15's tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(f"{home}/llava15")
    ids = tokenizer(f"{ANSWER} " * 40, add_special_tokens=False).input_ids[:512]
    said = words_of(prompt(name), tokenizer.decode(ids))
    assert sum(len(tokenizer(text).input_ids) for text in said) < ROOM


def test_local_replies_can_be_held_to_the_form(tmp_path, picture):
    """A random model can write nothing else than what the parsers read."""
    pytest.importorskip("llguidance")
    folder = model_folder(tmp_path, "llava")
    source = write_answers(tmp_path / "answers", [(picture("a.png"), "A dog.")])
    short = tmp_path / "short.toml"
    short.write_text(
        'version = 1\nabout = "x"\nparser = "brackets"\nslots = ["answer"]\nimage = "none"\ntext = "List: {answer}"\n'
    )
    options = {"aspects": ["attribute"], "prompts": {"attribute": str(short)}, "retries": 0, "max_tokens": 48}
    decomposed(source, tmp_path / "items", Local(str(folder)), **options)
    (row,) = rows(tmp_path / "items")
    said = json.loads(row["raw"])["attribute"]
    assert said.startswith("(") or said == "NONE"
    manifest = json.loads((tmp_path / "items" / "manifest.json").read_text())
    assert manifest["constrained"] is True


def test_spans_are_of_the_answer_as_it_stands(tmp_path, picture):
    text = "🐶🐶 図。A brown dog lies beside two red buckets, open 24 hours."
    source = write_answers(tmp_path / "answers", [(picture("a.png"), text)])
    decomposed(source, tmp_path / "items", Model(DGPREF))
    (answer,), (found,) = read_answers(source), read_items(tmp_path / "items")
    assert [answer.text[slice(*i.span)] for i in found.items if i.kind == "attribute"] == ["brown dog", "red buckets"]
    assert prompt("decompose_entity").messages(0, answer=text)[-1]["content"][0]["text"].endswith(text)
