"""A constrained answer fits, is drawn once, and keeps the model's own odds among what fits."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import pytest

from mmfast.engines.base import Constraint, Decode, Request
from mmfast.engines.local import Local
from tests.make.local_cases import answered, model_folder, picture, request

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def engine(request, tmp_path_factory):
    return Local(str(model_folder(tmp_path_factory.mktemp("models"), request.param)))


def asked(constraint: Constraint, n: int = 1, **decode) -> list[Request]:
    settings = Decode(**{"max_tokens": 60, **decode})
    return [request(f"{k}", "is it red", picture(k), n=n, constraint=constraint, decode=settings) for k in range(3)]


def test_a_choice_is_one_of_the_texts(engine):
    choices = ("yes", "no", "no idea", "two red circles")
    for decode in ({}, {"temperature": 1.5}):
        replies = list(engine.answer(asked(Constraint(choice=choices), n=8 if decode else 1, **decode)))
        assert {reply.text for reply in replies} <= set(choices) and all(r.finish == "stop" for r in replies)
    assert len({reply.text for reply in replies}) > 1


def test_a_greedy_choice_of_single_tokens_is_the_likelier_label(engine):
    words = ("red", "blue", "two", "there", "is", "the", "no", "picture", "a", "s")
    probe = request("probe", "is it red", n=0, labels=words)
    single = tuple(word for word, ids in engine.prompts.read(probe).labels.items() if len(ids) == 1)[:3]
    rows = asked(Constraint(choice=single))
    texts = {reply.key: reply.text for reply in engine.answer(rows)}
    for reply in engine.answer([replace(one, n=0, labels=single, constraint=None) for one in rows]):
        assert texts[reply.key] == max(reply.labels, key=reply.labels.get)
    assert len(single) > 1 and all(len(tokens) == 1 for tokens, _, _ in answered(engine, rows).values())


def test_a_constraint_decodes_once(engine):
    rows = asked(Constraint(choice=("two red circles", "two blue stars")))
    found = answered(engine, rows)
    assert engine.counts["rows"] == sum(len(tokens) - 1 for tokens, _, _ in found.values())


@pytest.mark.parametrize("regex", [r"[0-9]{3}-[a-c]+", r"(left|right)/[xy]", r"\d\.\d"])
def test_a_regular_expression_is_followed(engine, regex):
    pytest.importorskip("llguidance")
    for reply in engine.answer(asked(Constraint(regex=regex), n=4, temperature=1.0, max_tokens=200)):
        whole = re.fullmatch(regex, reply.text)
        assert whole if reply.finish == "stop" else True, reply
        assert reply.finish == "stop" or "+" in regex


def test_a_json_schema_is_followed(engine):
    pytest.importorskip("llguidance")
    constraint = Constraint(schema=json.dumps(SCHEMA))
    replies = list(engine.answer(asked(constraint, n=4, temperature=0.7, max_tokens=400)))
    whole = [json.loads(reply.text) for reply in replies if reply.finish == "stop"]
    assert len(whole) > len(replies) / 2
    assert all(w["color"] in ("red", "blue") and 0 <= w["count"] <= 9 and len(w) == 2 for w in whole)


def test_what_cannot_be_followed_is_refused(engine, monkeypatch):
    if importlib.util.find_spec("llguidance"):
        assert all("cannot be followed" in r.error for r in engine.answer(asked(Constraint(regex="(a"))))
        assert all("no JSON" in r.error for r in engine.answer(asked(Constraint(schema="{"))))
    replies = list(engine.answer(asked(Constraint(choice=("a very long choice of words",)), max_tokens=2)))
    assert all("max_tokens is 2" in reply.error for reply in replies)
    assert all("not by beams" in reply.error for reply in engine.answer(asked(Constraint(choice=("a",)), beams=3)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = [reply.error for reply in engine.answer(asked(Constraint(regex="a")))]
    assert all("need llguidance" in error for error in told)
