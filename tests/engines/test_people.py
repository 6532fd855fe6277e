"""The engine of people: every kind of request is a form, and what several people say is one reply."""

import json
import math
import threading

import pytest

from mmfast.cli.engine import Chosen, kind_of
from mmfast.engines.base import Constraint, Decode, Picture, Request
from mmfast.engines.people import People
from mmfast.engines.people_forms import form_of
from mmfast.engines.presets import planned
from mmfast.engines.recorded import Recorded
from mmfast.engines.stage import rows
from tests.make.engine_cases import answers, write_prompts
from tests.make.people_cases import Client

RATED = {
    "type": "object",
    "properties": {
        "answers": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"$ref": "#/$defs/one"},
        },
        "better": {"enum": ["1", "2", None]},
        "sure": {"type": "boolean"},
        "reason": {"type": "string"},
    },
    "required": ["answers", "better"],
    "$defs": {
        "one": {
            "type": "object",
            "properties": {
                "Helpfulness": {"type": "integer", "minimum": 0, "maximum": 4},
                "length": {"type": "number", "minimum": 0},
            },
            "required": ["Helpfulness"],
        }
    },
}


def ask(key, text="What is here?", **settings):
    content = [{"type": "image"}, {"type": "text", "text": text}]
    given = {"images": (Picture("a.png", b"picture"),), "messages": ({"role": "user", "content": content},)}
    return Request(key=key, **(given | settings))


class Asking:
    """An engine that is asked in a thread, as a stage would; `person` gives what each of them sees."""

    def __init__(self, folder, *requests, **options):
        self.engine = People(folder, tell=lambda url: None, **options)
        self.replies, self.error = [], None
        self.thread = threading.Thread(target=self.run, args=(requests,), daemon=True)
        self.thread.start()

    def run(self, requests):
        try:
            for reply in self.engine.answer(iter(requests)):
                self.replies.append(reply)
        except BaseException as error:
            self.error = error

    def person(self, name):
        one = Client(self.engine.page.url, name)
        while not one.act("look")["card"] and one.view["more"]:
            pass
        return one

    def end(self):
        """All replies, by key and sample."""
        self.thread.join(20)
        assert not self.thread.is_alive() and self.error is None
        self.engine.close()
        return sorted(self.replies, key=lambda reply: (reply.key, reply.sample))


def say(person, *values):
    """Hand in, and when all is answered, all of it."""
    view = person.act("done", work={"values": list(values)})
    return person.act("finish") if view["finish"] else view


# forms


def test_a_schema_becomes_fields_and_the_fields_its_json():
    form = form_of(Constraint(schema=json.dumps(RATED)))
    told = [(f["of"], f["label"], f["kind"], f["required"]) for f in form.fields]
    assert told == [
        ("answers 1", "Helpfulness", "choice", True),
        ("answers 1", "length", "number", False),
        ("answers 2", "Helpfulness", "choice", True),
        ("answers 2", "length", "number", False),
        ("", "better", "choice", True),
        ("", "sure", "choice", False),
        ("", "reason", "text", False),
    ]
    assert [o["key"] for o in form.fields[0]["options"]] == list("01234")
    work = form.checked({"values": [4, None, 0, 2.5, "2", True, 'it is: "longer" 🎉']})
    assert json.loads(form.told(work["values"])) == {
        "answers": [{"Helpfulness": 4}, {"Helpfulness": 0, "length": 2.5}],
        "better": "2",
        "sure": True,
        "reason": 'it is: "longer" 🎉',
    }


def test_a_required_text_may_say_nothing_unless_it_has_a_form():
    """A judge's schema wants a reason of each answer; a person may give none."""
    texts = {"reason": {"type": "string"}, "name": {"type": "string", "minLength": 1}, "a": {"enum": [0, 1, 2]}}
    schema = {"type": "object", "properties": texts, "required": [*texts], "additionalProperties": False}
    form = form_of(Constraint(schema=json.dumps(schema)))
    assert [f["required"] for f in form.fields] == [False, True, True]
    assert [o["key"] for o in form.fields[2]["options"]] == ["0", "1", "2"]
    assert json.loads(form.told([None, "x", 2])) == {"reason": "", "name": "x", "a": 2}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, None, 0, None, "1", None, None], "answers 1, Helpfulness is not filled in"),
        ([5, None, 0, None, "1", None, None], "no choice 5"),
        ([True, None, 0, None, "1", None, None], "no choice True"),
        ([1, -1, 0, None, "1", None, None], "from 0 to None"),
        ([1, "1", 0, None, "1", None, None], "length is a number"),
        ([1, None, 0, None, "1", None, 7], "reason is a text"),
        ([1], "not filled in"),
        ("1", "not filled in"),
    ],
)
def test_a_form_that_is_not_filled_in_is_told(values, said):
    with pytest.raises(ValueError, match=said):
        form_of(Constraint(schema=json.dumps(RATED))).checked({"values": values})


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}},
        {"$ref": "#"},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "object"},
    ],
)
def test_a_schema_without_fields_is_written_by_hand(schema):
    form = form_of(Constraint(schema=json.dumps(schema)))
    assert [f["label"] for f in form.fields] == ["Answer, as JSON"]
    assert form.told(form.checked({"values": ['{"a": 1}']})["values"]) == '{"a": 1}'
    with pytest.raises(ValueError, match="no JSON"):
        form.checked({"values": ["{a"]})


def test_choices_patterns_and_plain_values():
    choice = form_of(Constraint(choice=("yes", "no")))
    assert [o["key"] for o in choice.fields[0]["options"]] == ["1", "2"] and choice.told(["no"]) == "no"
    pattern = form_of(Constraint(regex="[0-9]+"))
    assert pattern.checked({"values": ["12"]}) == {"values": ["12"]}
    with pytest.raises(ValueError, match="form"):
        pattern.checked({"values": ["12a"]})
    assert form_of(Constraint(schema='{"type": "integer"}')).told([3]) == "3"
    with pytest.raises(ValueError, match="not filled in"):
        form_of(None).checked({"values": [""]})


# replies


def test_a_person_answers_texts_labels_and_choices(tmp_path):
    asking = Asking(
        tmp_path / "team",
        ask("a"),
        ask("b", n=0, labels=("yes", "no")),
        ask("c", constraint=Constraint(choice=("1", "2", "tie"))),
        ask("d", labels=("yes", "no")),
    )
    anna = asking.person("anna")
    shown = anna.view["card"]
    assert shown["messages"] == [{"role": "user", "parts": [{"image": 1}, {"text": "What is here?"}]}]
    assert [f["kind"] for f in shown["fields"]] == ["text"] and len(shown["images"]) == 1
    say(anna, "A <b>cat</b> 🐈‍⬛")
    say(anna, "no")
    say(anna, "tie")
    assert [f["kind"] for f in anna.view["card"]["fields"]] == ["choice", "text"]
    say(anna, "yes", "It is.")
    a, b, c, d = asking.end()
    assert (a.text, a.finish, a.tokens, a.labels) == ("A <b>cat</b> 🐈‍⬛", "stop", 3, {})
    assert b.labels == {"yes": -math.inf, "no": 0.0} and b.text == ""
    assert c.text == "tie" and (d.text, d.labels["yes"]) == ("It is.", 0.0)


def test_several_people_are_one_reply(tmp_path):
    schema = {"type": "object", "properties": {"m": {"type": "integer", "minimum": 0, "maximum": 4}}, "required": ["m"]}
    asking = Asking(
        tmp_path / "team",
        ask("a", n=0, labels=("yes", "no")),
        ask("b", constraint=Constraint(schema=json.dumps(schema))),
        ask("c", constraint=Constraint(choice=("x", "y"))),
        ask("d"),
        overlap=3,
    )
    for name, said in (("anna", "yes 4 x first"), ("bo", "no 1 y second"), ("eve", "yes 0 y third")):
        person = asking.person(name)
        label, score, choice, text = said.split()
        for value in (label, int(score), choice, text):
            say(person, value)
    a, b, c, d = asking.end()
    assert a.labels == {"yes": pytest.approx(math.log(2 / 3)), "no": pytest.approx(math.log(1 / 3))}
    assert json.loads(b.text) == {"m": 1} and c.text == "y" and d.text == "first"


def test_samples_are_different_people(tmp_path):
    asking = Asking(tmp_path / "team", ask("a", n=2, decode=Decode(temperature=1.0)))
    anna = asking.person("anna")
    say(anna, "one")
    assert anna.view["card"] is None and anna.view["progress"]["others"] == 1
    say(asking.person("bo"), "two")
    assert [(r.sample, r.text) for r in asking.end()] == [(0, "one"), (1, "two")]


def test_the_last_answer_can_be_taken_back_until_the_next_one(tmp_path):
    asking = Asking(tmp_path / "team", *(ask(name) for name in "abc"))
    anna = asking.person("anna")
    say(anna, "A")
    say(anna, "B")
    anna.act("back")
    assert anna.view["card"]["id"] == "b" and anna.view["work"] == {"values": ["B"]}
    say(anna, "B again")
    for _ in range(200):
        if any(reply.key == "a" for reply in asking.replies):
            break
        threading.Event().wait(0.02)
    assert [reply.key for reply in asking.replies] == ["a"]  # b may still be taken back, a has left
    view = anna.act("done", work={"values": ["C"]})
    assert view["finish"] and not view["card"]
    anna.view["card"] = None
    anna.act("back")
    say(anna, "C again")
    assert [r.text for r in asking.end()] == ["A", "B again", "C again"]


def test_what_was_answered_is_not_asked_again_and_what_was_skipped_is(tmp_path):
    asked = [ask("a"), ask("b")]
    asking = Asking(tmp_path / "team", *asked)
    anna = asking.person("anna")
    say(anna, "A")
    assert anna.act("skip", reason="too dark")["finish"]
    anna.act("finish")
    a, b = asking.end()
    assert a.text == "A" and b.finish == "error" and b.error == "anna skipped it: too dark"
    asking = Asking(tmp_path / "team", *asked)
    anna = asking.person("anna")
    assert anna.view["card"]["id"] == "b" and [r.key for r in asking.replies] == ["a"]
    say(anna, "B")
    assert [r.text for r in asking.end()] == ["A", "B"]


def test_what_people_cannot_do_is_an_error_of_that_request(tmp_path):
    drawn = Decode(temperature=1.0)
    asking = Asking(
        tmp_path / "team",
        ask("a", decode=Decode(stop=("x",))),
        ask("b", n=2, decode=drawn),
        ask("c", constraint=Constraint(schema="{")),
        overlap=2,
    )
    a, b, b2, c = asking.end()
    assert "no stop" in a.error and "2 samples are 2 people's answers" in b.error == b2.error
    assert "its constraint cannot be read" in c.error


def test_a_prefix_is_shown_and_continued(tmp_path):
    messages = ({"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Better:"})
    asking = Asking(tmp_path / "team", ask("a", messages=messages, images=(), n=0, labels=("1", "2")))
    anna = asking.person("anna")
    assert anna.view["card"]["messages"][-1] == {"role": "assistant", "parts": [{"text": "Better:"}]}
    say(anna, "2")
    assert asking.end()[0].labels["2"] == 0.0


def test_one_engine_has_a_folder_at_a_time(tmp_path):
    asking = Asking(tmp_path / "team")
    with pytest.raises(ValueError, match=r"--model: .*team is in use"):
        People(tmp_path / "team", tell=lambda url: None)
    asking.end()
    with pytest.raises(ValueError, match="--model: the engine people needs a folder"):
        People("")


# in a stage


def work_through(engine, name, text):
    """A person who answers all there is, and hands in."""
    person = Client(engine.page.url, name)
    while not person.act("look")["handed_in"]:
        if person.view["card"]:
            person.act("done", work={"values": [f"{text} {person.view['card']['id'][:6]}"]})
        elif person.view["finish"]:
            person.act("finish")
        threading.Event().wait(0.01)


def test_a_stage_is_answered_by_people(tmp_path):
    source = write_prompts(tmp_path, 6)
    engine = People(tmp_path / "team", tell=lambda url: None)
    assert engine.identity() == {"engine": "people", "version": 1, "people": "team", "overlap": 1}
    thread = threading.Thread(target=work_through, args=(engine, "anna", "I see"), daemon=True)
    thread.start()
    tally = answers(source, tmp_path / "out", engine, planned(max_tokens=64))
    thread.join(10)
    assert tally.rows == 6 and tally.failed == 0
    assert all(row["answer"].startswith("I see ") for row in rows(tmp_path / "out"))
    # Another stage folder of the same requests asks nobody
    again = answers(source, tmp_path / "out2", engine, planned(max_tokens=64))
    assert again.rows == 6 and list(rows(tmp_path / "out2")) == list(rows(tmp_path / "out"))
    engine.close()


def test_recorded_people_are_asked_once(tmp_path):
    engine = People(tmp_path / "team", tell=lambda url: None)
    recorded = Recorded(tmp_path / "replies.jsonl", engine)
    thread = threading.Thread(target=work_through, args=(engine, "anna", "seen"), daemon=True)
    thread.start()
    (first,) = recorded.answer([ask("k")])
    thread.join(10)
    assert list(recorded.answer([ask("k")])) == [first]
    recorded.close()
    engine.close()


def test_the_command_knows_them(tmp_path):
    assert kind_of("people") == kind_of("people:3") == "people"
    for wrong in ("people:", "people:x", "world:2", "persons", "server"):
        with pytest.raises(ValueError, match=f"unknown engine {wrong!r}.*people, people:K"):
            kind_of(wrong)
    chosen = Chosen.of("people:3", str(tmp_path / "team"))
    made = chosen.open(None, {"images", "constraint"})
    assert made.overlap == 3
    made.close()
    with pytest.raises(ValueError, match="--beams: the engine people:3 has no beams"):
        chosen.check({"beams"})
    with pytest.raises(ValueError, match="--noise has no effect on the engine people"):
        Chosen.of("people", "x", noise=0.5)
    with pytest.raises(ValueError, match="people:0: at least one person"):
        People(tmp_path / "none", overlap=0)
