"""A desk: who gets which card, what an undo is, and a journal that any kill leaves whole."""

import json
import random
import shutil

import pytest

from mmfast.engines.people_desk import HELD, JOURNAL, Card, Conflict, Desk


def card(name, people=1):
    def checked(work):
        if "bad" in work:
            raise ValueError("this is bad")
        return work

    return Card(id=name, task="text", shown={}, checked=checked, people=people)


def desk(folder, cards=4, people=1, names=(), **options):
    made = Desk(folder, names, **options)
    for n in range(cards):
        made.add(card(f"c{n}", people))
    return made


def act(desk, name, do, view=None, **more):
    front = (view or desk.view(name))["card"] or {}
    return desk.act({"name": name, "do": do, "card": front.get("id"), "step": front.get("step"), "seconds": 2} | more)


def front(view):
    return view["card"] and view["card"]["id"]


def test_cards_come_in_order_and_two_people_never_have_the_same_one(tmp_path):
    one = desk(tmp_path)
    assert front(act(one, "anna", "look")) == "c0" and front(act(one, "bo", "look")) == "c1"
    assert front(act(one, "anna", "done", work={"n": 1})) == "c2"
    assert front(act(one, "bo", "done", work={})) == "c3"
    view = act(one, "anna", "done", work={})
    assert front(view) is None and view["progress"]["others"] == 1 and not view["finish"]
    view = act(one, "bo", "done", work={})
    counts = {"done": 2, "skipped": 0, "left": 0, "cards": 4, "others": 0}
    assert view["progress"] == counts | {"each": 2.0, "remaining": 0}


def test_a_card_that_somebody_left_lying_is_given_to_another(tmp_path):
    now = [1000.0]
    one = desk(tmp_path, cards=1, clock=lambda: now[0])
    assert front(act(one, "anna", "look")) == "c0" and front(act(one, "bo", "look")) is None
    now[0] += HELD + 1
    assert front(act(one, "bo", "look")) == "c0"


def test_overlap_gives_a_card_to_as_many_and_to_nobody_twice(tmp_path):
    one = desk(tmp_path, cards=2, people=2)
    for name in ("anna", "bo"):
        assert front(act(one, name, "look")) == "c0"
    assert front(act(one, "eve", "look")) == "c1"
    for name in ("anna", "bo"):
        act(one, name, "done", work={"by": name})
    assert [name for name, _ in one.finished("c0")] == ["anna", "bo"] and one.complete("c0")
    assert front(act(one, "anna", "look")) == "c1" and front(act(one, "bo", "look")) is None


def test_undo_goes_back_draft_by_draft_and_then_takes_the_last_card_back(tmp_path):
    one = desk(tmp_path)
    for n in (1, 2):
        act(one, "anna", "draft", work={"n": n}, push=True)
    act(one, "anna", "draft", work={"n": 3}, push=False)  # typed over
    assert one.view("anna")["work"] == {"n": 3}
    assert act(one, "anna", "undo")["work"] == {"n": 1} and act(one, "anna", "undo")["work"] == {}
    with pytest.raises(ValueError, match="nothing to take back"):
        act(one, "anna", "undo")
    act(one, "anna", "done", work={"n": 4})
    act(one, "anna", "skip", reason="unclear")
    assert front(one.view("anna")) == "c2"
    assert front(act(one, "anna", "undo")) == "c1" and front(act(one, "anna", "undo")) == "c0"
    assert one.view("anna")["work"] == {"n": 4} and one.view("anna")["progress"]["done"] == 0
    act(one, "anna", "done", work={"n": 5})
    assert one.works["c0"]["anna"].result == {"n": 5} and front(one.view("anna")) == "c1"


def test_an_action_on_a_card_as_it_was_is_a_conflict(tmp_path):
    one = desk(tmp_path)
    old = one.view("anna")
    act(one, "anna", "draft", work={"n": 1}, push=True)
    with pytest.raises(Conflict):
        act(one, "anna", "done", old, work={})
    with pytest.raises(Conflict):
        act(one, "anna", "done", work={}, card="nowhere")
    assert one.works["c0"]["anna"].drafts == [{"n": 1}]


def test_what_is_refused_leaves_no_trace(tmp_path):
    one = desk(tmp_path, names=["anna"])
    for given, said in (
        ({"do": "done", "work": {"bad": 1}}, "this is bad"),
        ({"do": "done"}, "the work is missing"),
        ({"do": "skip", "reason": "  "}, "why it is skipped"),
        ({"do": "dance"}, "no action 'dance'"),
        ({"do": "look", "name": "eve"}, "not one of those who work here: anna"),
        ({"do": "look", "name": "a" * 41}, "1 to 40 printable"),
        ({"do": "look", "name": "\x07"}, "1 to 40 printable"),
        ({"do": "draft", "push": True, "work": {"to": "\ud83d"}}, "half a character"),
    ):
        with pytest.raises(ValueError, match=said):
            one.act({"name": "anna", "card": "c0", "step": 0, "seconds": 1} | given)
    assert not (tmp_path / JOURNAL).exists() or (tmp_path / JOURNAL).read_bytes() == b""


def wander(one, names, steps, seed):
    """Random people do random things."""
    drawn = random.Random(seed)
    for n in range(steps):
        name = drawn.choice(names)
        do = drawn.choice(["look", "draft", "draft", "undo", "done", "done", "skip", "back"])
        try:
            act(one, name, do, work={"n": n, "told": "ö🎉"}, push=drawn.random() < 0.5, reason="why", seconds=n)
        except ValueError:
            assert do in ("undo", "back") or front(one.view(name)) is None


def state(one):
    return {c: {n: vars(w) for n, w in who.items()} for c, who in one.works.items()}


def test_killed_at_any_byte_the_journal_plays_to_what_was_told(tmp_path):
    one = desk(tmp_path / "one", cards=8, people=2)
    told = []  # (bytes of the journal, the state that people had been told)
    for seed in range(60):
        wander(one, ["anna", "bo", "eve"], 1, seed)
        path = tmp_path / "one" / JOURNAL
        told.append((path.stat().st_size if path.exists() else 0, json.dumps(state(one), sort_keys=True)))
    whole = (tmp_path / "one" / JOURNAL).read_bytes()
    assert whole.count(b"\n") > 25
    for size, seen in told:
        for torn in {0, min(7, len(whole) - size)}:  # half of the next line came too
            shutil.rmtree(tmp_path / "two", ignore_errors=True)
            (tmp_path / "two").mkdir()
            (tmp_path / "two" / JOURNAL).write_bytes(whole[: size + torn])
            again = desk(tmp_path / "two", cards=8, people=2)
            assert json.dumps(state(again), sort_keys=True) == seen
            assert (tmp_path / "two" / JOURNAL).read_bytes() == whole[:size]


def test_a_restart_goes_on_with_the_card_that_was_begun(tmp_path):
    one = desk(tmp_path)
    act(one, "anna", "done", work={})
    act(one, "bo", "look")
    act(one, "anna", "draft", work={"n": 1}, push=True)
    begun = front(one.view("anna"))
    one.close()
    again = desk(tmp_path)
    assert front(act(again, "bo", "look")) not in (begun, "c0")  # though anna has not come back yet
    view = again.view("anna")
    assert front(view) == begun and view["work"] == {"n": 1} and view["undo"] and view["progress"]["done"] == 1


def test_a_line_that_is_no_action_is_named(tmp_path):
    (tmp_path / JOURNAL).write_text('{"do": "done"}\n')
    with pytest.raises(ValueError, match=r"actions.jsonl line 1 is no action"):
        Desk(tmp_path)


def test_a_full_disk_loses_nothing_that_was_told(tmp_path, monkeypatch):
    one = desk(tmp_path)
    act(one, "anna", "draft", work={"n": 1}, push=True)
    before = (tmp_path / JOURNAL).read_bytes()
    real = one.journal.file

    class Full:
        def write(self, data):
            real.write(data[:9])
            raise OSError(28, "No space left on device")

        def close(self):
            real.close()

    one.journal.file = Full()
    with pytest.raises(ValueError, match="No space left"):
        act(one, "anna", "done", work={})
    assert (tmp_path / JOURNAL).read_bytes() == before and one.works["c0"]["anna"].state == "open"
    act(one, "anna", "done", work={})
    assert desk(tmp_path).works["c0"]["anna"].state == "done"
