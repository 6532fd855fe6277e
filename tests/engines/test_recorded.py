"""Recorded replies: the engine is asked once, whatever is killed; without an engine nothing is asked."""

import json
from dataclasses import replace

import pytest

from mmfast.engines.base import Constraint, Decode, Picture, Reply, Request
from mmfast.engines.recorded import TOGETHER, Recorded
from mmfast.engines.stage import rows
from tests.make.engine_cases import Fake, answers, write_prompts

DRAWN = Decode(temperature=1.0)


def ask(text, *, key="", n=2, **settings):
    content = [{"type": "image"}, {"type": "text", "text": text}]
    given = {"decode": DRAWN, "images": (Picture("a.png", b"picture"),)} | settings
    return Request(key=key or text, messages=({"role": "user", "content": content},), n=n, **given)


def replies(recorded, *requests):
    return sorted(recorded.answer(requests), key=lambda reply: (reply.key, reply.sample))


@pytest.fixture
def recorded(tmp_path):
    made = Recorded(tmp_path / "replies.jsonl", Fake())
    yield made
    made.close()


def test_a_reply_is_asked_for_once(recorded, tmp_path):
    asked = [ask("a"), ask("b"), ask("c", n=0, labels=("yes", "no"))]
    first = replies(recorded, *asked)
    assert recorded.engine.asks == 3 and len(first) == 5
    assert replies(recorded, *asked) == first and recorded.engine.asks == 3
    recorded.close()
    engine = Fake()
    again = Recorded(tmp_path / "replies.jsonl", engine)
    assert replies(again, *asked, ask("d")) == sorted(
        [*first, *Fake().answer([ask("d")])], key=lambda r: (r.key, r.sample)
    )
    assert engine.asks == 1
    again.close()


def test_all_that_makes_a_reply_names_it(recorded):
    one = ask("a")
    others = [
        ask("b"),
        replace(one, images=(Picture("a.png", b"another"),)),
        replace(one, decode=Decode(temperature=1.0, seed=1)),
        replace(one, labels=("yes",)),
        replace(one, constraint=Constraint(choice=("a", "b"))),
    ]
    replies(recorded, one)
    for number, other in enumerate(others, 2):
        replies(recorded, replace(other, key=f"k{number}"))
        assert recorded.engine.asks == number
    # Neither the key nor where the picture lies
    same = replace(one, key="another", images=(Picture("moved.png", b"picture"),))
    assert [r.text for r in replies(recorded, same)] == [r.text for r in replies(recorded, one)]
    assert {r.key for r in replies(recorded, same)} == {"another"} and recorded.engine.asks == 6


def test_more_samples_keep_those_that_stand(recorded):
    first = replies(recorded, ask("a", n=2))
    more = replies(recorded, ask("a", n=5))
    assert more[:2] == first and len(more) == 5 and recorded.engine.asks == 2


def test_another_engine_is_asked_itself(recorded, tmp_path):
    replies(recorded, ask("a"))
    recorded.close()
    other = Recorded(tmp_path / "replies.jsonl", Fake(name="other"))
    replies(other, ask("a"))
    assert other.engine.asks == 1 and other.identity()["engine"] == "other"
    other.close()
    with pytest.raises(ValueError, match="replies of 2 engines: without an engine it must be one"):
        Recorded(tmp_path / "replies.jsonl")


def test_errors_are_asked_again(tmp_path):
    made = Recorded(tmp_path / "replies.jsonl", Fake(wrong="bad"))
    assert all(reply.finish == "error" for reply in replies(made, ask("bad")))
    replies(made, ask("bad"))
    assert made.engine.asks == 2
    made.close()


def test_alone_it_never_asks_and_says_what_is_missing(recorded, tmp_path):
    first = replies(recorded, ask("a"), ask("b"))
    recorded.close()
    alone = Recorded(tmp_path / "replies.jsonl")
    assert alone.can == Fake.can and alone.identity() == Fake().identity()
    assert replies(alone, ask("a"), ask("b")) == first
    missing = replies(alone, ask("a", n=3), ask("never asked"))
    assert missing[:2] == first[:2] and [r.finish for r in missing[2:]] == ["error"] * 3
    assert "'<image>never asked' (sample 1), and there is no engine" in missing[-1].error
    with pytest.raises(ValueError, match="no recorded replies, and no engine"):
        Recorded(tmp_path / "none.jsonl")


def test_killed_at_any_byte_what_was_whole_is_kept(recorded, tmp_path):
    first = replies(recorded, ask("a"), ask("b"))
    recorded.close()
    path = tmp_path / "replies.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        made = Recorded(path, Fake())
        assert replies(made, ask("a"), ask("b")) == first, cut
        made.close()
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_damaged_line_is_named_and_a_second_recorder_refused(recorded, tmp_path):
    replies(recorded, ask("a"))
    with pytest.raises(ValueError, match="in use by another process"):
        Recorded(tmp_path / "replies.jsonl", Fake())
    recorded.close()
    path = tmp_path / "replies.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damage, told in (
        ("{\n", "line 2 is damaged"),
        ('{"asked": "x", "reply": {"no": 1}}\n', "line 2 is no recorded"),
    ):
        path.write_text("".join([lines[0], damage, *lines[1:]]))
        with pytest.raises(ValueError, match=told):
            Recorded(path)
    (tmp_path / "a file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        Recorded(tmp_path / "a file" / "replies.jsonl", Fake())


def test_many_recorded_replies_do_not_wait_for_one_that_is_missing(recorded):
    many = [ask(f"q{n}", n=1) for n in range(3 * TOGETHER)]
    replies(recorded, *many)
    passed = []

    def requests():
        yield ask("new", n=1)
        for request in many:
            passed.append(request.key)
            yield request

    found = recorded.answer(requests())
    next(found)
    assert len(passed) <= TOGETHER + 1
    assert len([*found]) == 3 * TOGETHER
    assert all(isinstance(reply, Reply) for reply in replies(recorded, *many))


def test_a_stage_over_recorded_replies_asks_nothing(tmp_path):
    source, path = write_prompts(tmp_path), tmp_path / "replies.jsonl"
    made = Recorded(path, Fake())
    answers(source, tmp_path / "one", made)
    made.close()
    answers(source, tmp_path / "two", Recorded(path))
    assert list(rows(tmp_path / "one")) == list(rows(tmp_path / "two"))
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]
