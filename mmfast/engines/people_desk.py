"""A desk: cards that people work on, and a journal of what they did. It knows nothing of pages or of HTTP.

Each action (a draft, an undo, a card handed in, skipped, taken back) is one row of the journal, on disk before the
person is told. A desk that starts plays the journal again, so a kill at any instant loses nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mmfast.engines.base import Picture
from mmfast.engines.shards import Appender, cut_torn, read

JOURNAL = "actions.jsonl"
HELD = 900.0  # seconds without an action after which a card that somebody looks at is given to others too
RECENT = 30  # cards that a person's pace is taken from
LONGEST_NAME = 40


class Conflict(ValueError):
    """The action is of a card as it no longer is: another window, or one that was answered before a restart."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One thing to be done. `shown`: what the page is told. `checked`: what was handed in, as it is kept; raises a
    ValueError that tells the person what is missing."""

    id: str
    task: str  # how the page shows it: correct, mark, choose, form or text
    shown: dict[str, Any]
    checked: Callable[[dict[str, Any]], dict[str, Any]]
    pictures: tuple[Picture, ...] = ()
    people: int = 1  # who are to do it, each for themselves


@dataclass
class Work:
    """One person's work on one card."""

    state: str = "open"  # done, skipped
    steps: int = 0  # rows of the journal
    drafts: list[dict[str, Any]] = field(default_factory=list)  # an undo goes back by one
    result: dict[str, Any] = field(default_factory=dict)  # what was handed in
    reason: str = ""
    seconds: float = 0.0
    at: float = 0.0  # when, by the clock

    def play(self, action: dict[str, Any]) -> None:
        """The journal's meaning: the same for what happens now and what happened before a restart."""
        done, work = action["do"], action.get("work", {})
        self.steps += 1
        self.seconds, self.at = action["seconds"], action["at"]
        self.state = {"done": "done", "skip": "skipped"}.get(done, "open")
        if done == "draft":
            if action["push"] or not self.drafts:
                self.drafts.append(work)
            else:
                self.drafts[-1] = work
        elif done == "undo" and self.drafts:
            self.drafts.pop()
        elif done == "done":
            self.result = work
            if self.drafts[-1:] != [work]:
                self.drafts.append(work)
        self.reason = action.get("reason", "") if done == "skip" else ""


class Desk:
    """Cards by their ids, in the order in which they are given out. All methods may be called by many threads."""

    def __init__(self, folder: Path, names: Iterable[str] = (), clock: Callable[[], float] = time.time) -> None:
        """`names`: who may work here; empty: whoever gives a name."""
        self.folder, self.clock = folder, clock
        self.names = tuple(dict.fromkeys(map(named, names)))
        self.cards: dict[str, Card] = {}
        self.works: dict[str, dict[str, Work]] = {}  # card -> name -> work, also of cards that are not here today
        self.order: dict[str, list[str]] = {}  # name -> cards handed in or skipped, in the order of the acts
        self.current: dict[str, str] = {}  # name -> card in front of them
        self.seen: dict[str, float] = {}  # name -> when they last acted
        self.pictures: dict[str, Picture] = {}  # of cards that were shown, by their ids: nothing else is served
        self.progress: dict[str, dict[str, Any]] = {}  # name -> as it was told last
        self.sealed: set[str] = set()  # cards whose results were taken: not to be taken back
        self.more = False  # cards may still come
        self.hands_in, self.handed_in = False, False  # somebody waits for all of it; and has got it
        self.changed = threading.Condition(threading.RLock())
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JOURNAL
        if path.exists():
            cut_torn(path)
        for action in actions(folder):
            self._play(action)
            if action["do"] not in ("done", "skip"):
                self.current[action["name"]] = action["card"]
        self.journal = Appender(path, durable=True)

    def add(self, card: Card) -> None:
        with self.changed:
            self.cards[card.id] = card
            self.changed.notify_all()

    def close(self) -> None:
        self.journal.close()

    # what a person does

    def act(self, given: dict[str, Any]) -> dict[str, Any]:
        """Do what a page asks for, and say what it shall show. ValueError: what the person is to be told."""
        with self.changed:
            name = self._admitted(given.get("name"))
            done = given.get("do")
            if done not in ("look", "draft", "undo", "back", "done", "skip", "finish"):
                raise ValueError(f"there is no action {done!r}")
            self.seen[name] = self.clock()
            if done == "finish":
                self.handed_in = self.handed_in or self._may_finish()
                self.changed.notify_all()
            elif done != "look":
                self._work(name, done, given)
            return self.view(name, counted=done != "draft")

    def hand_in(self, name: str, card: str, *, work: dict[str, Any] | None = None, skip: str = "") -> None:
        """What a program says of a card in a person's place, or why it skips it."""
        with self.changed:
            given = {"card": card, "step": self._of(card, name).steps, "work": work, "reason": skip}
            self._work(self._admitted(name), "skip" if skip else "done", given)

    def _work(self, name: str, done: str, given: dict[str, Any]) -> None:
        """One action on a card becomes one row of the journal."""
        # The card as the page knows it, or the last one, taken back
        back = done == "back" or (done == "undo" and not given.get("card"))
        card = self._last(name) if back else self._as_seen(name, given)
        work = self._of(card, name)
        if done == "undo" and not back and not work.drafts:
            back, card = True, self._last(name)
            work = self._of(card, name)
        # What it is
        action: dict[str, Any] = {"do": "reopen" if back else done}
        if back:
            pass
        elif done == "draft":
            action |= {"push": bool(given.get("push")), "work": _mapping(given.get("work"))}
        elif done == "done":
            action["work"] = self.cards[card].checked(_mapping(given.get("work")))
        elif done == "skip":
            action["reason"] = _line(given.get("reason"), "say in a word why it is skipped")
        seconds = work.seconds if back else _seconds(given.get("seconds"), work.seconds)
        action |= {"card": card, "name": name, "step": work.steps, "seconds": seconds, "at": round(self.clock(), 3)}
        # On disk, then in memory
        try:
            self.journal.write([action])
        except UnicodeEncodeError:
            raise ValueError("the text has half a character in it (a lone surrogate): write it anew") from None
        except ValueError:
            cut_torn(self.journal.path)  # half a line must not stand before the next
            raise
        self._play(action)
        if action["do"] in ("done", "skip"):
            self.current.pop(name, None)
        else:
            self.current[name] = card
        self.changed.notify_all()

    def _as_seen(self, name: str, given: dict[str, Any]) -> str:
        card = given.get("card")
        if not isinstance(card, str) or card not in self.cards:
            raise Conflict("this card is not here any more")
        work = self._of(card, name)
        if given.get("step") != work.steps or work.state != "open" or card in self.sealed:
            raise Conflict("this card was changed elsewhere: here it is as it is now")
        return card

    def _last(self, name: str) -> str:
        """The last card that a person handed in or skipped, and may take back."""
        left = [card for card in self.order.get(name, ()) if card in self.cards and card not in self.sealed]
        if not left:
            raise ValueError("there is nothing to take back")
        return left[-1]

    def _play(self, action: dict[str, Any]) -> None:
        card, name = action["card"], action["name"]
        self.works.setdefault(card, {}).setdefault(name, Work()).play(action)
        order = self.order.setdefault(name, [])
        if card in order:
            order.remove(card)
        if action["do"] in ("done", "skip"):
            order.append(card)

    def _of(self, card: str, name: str) -> Work:
        return self.works.get(card, {}).get(name) or Work()

    def _admitted(self, name: Any) -> str:
        name = named(name)
        if self.names and name not in self.names:
            raise ValueError(f"{name} is not one of those who work here: {', '.join(self.names)}")
        return name

    # who gets what

    def _given(self, name: str) -> str | None:
        """The card that a person has in front of them, or the next one."""
        card = self.current.get(name)
        if card is not None and card in self.cards and self._is_open(card, name):
            return card
        begun = (c for c, who in self.works.items() if name in who and c in self.cards and self._is_open(c, name))
        card = next(begun, None) or next((c for c in self.cards if self._free(c, name)), None)
        if card is not None:
            self.current[name] = card
        return card

    def _is_open(self, card: str, name: str) -> bool:
        return self._of(card, name).state == "open" and card not in self.sealed

    def _free(self, card: str, name: str) -> bool:
        """Whether a person may begin it: not everybody who is wanted for it has it or has done it."""
        works = self.works.get(card, {})
        if name in works or card in self.sealed:
            return False
        return self.cards[card].people > self._settled(card) + self._holders(card, name)

    def _settled(self, card: str) -> int:
        """How many have done it, or said why they cannot."""
        return sum(work.state != "open" for work in self.works.get(card, {}).values())

    def _holders(self, card: str, name: str) -> int:
        """Others who have it in front of them, and were here lately (perhaps before a restart)."""
        since = self.clock() - HELD
        others = [other for other, held in self.current.items() if held == card and other != name]
        return sum(
            self._is_open(card, other) and max(self.seen.get(other, 0.0), self._of(card, other).at) > since
            for other in others
        )

    def finished(self, card: str, state: str = "done") -> list[tuple[str, Work]]:
        """Who did a card (or skipped it), in the order in which they handed it in."""
        done = [(name, work) for name, work in self.works.get(card, {}).items() if work.state == state]
        return sorted(done, key=lambda one: one[1].at)

    def complete(self, card: str) -> bool:
        return self._settled(card) >= self.cards[card].people

    def _may_finish(self) -> bool:
        return self.hands_in and not self.more and all(self.complete(card) for card in self.cards)

    # what the page shows

    def view(self, name: str, *, counted: bool = True) -> dict[str, Any]:
        """`counted`: the progress anew, for which all cards are looked at; else as it was told last."""
        card = self._given(name)
        mine = self._of(card, name) if card is not None else Work()
        if counted or name not in self.progress:
            self.progress[name] = self._progress(name, card)
        taken = any(c in self.cards and c not in self.sealed for c in reversed(self.order.get(name, ())))
        shown: dict[str, Any] = {"name": name, "names": self.names, "card": None, "undo": bool(mine.drafts or taken)}
        if card is not None:
            one = self.cards[card]
            shown["card"] = {"id": card, "task": one.task, "step": mine.steps, "seconds": mine.seconds} | one.shown
            shown["card"]["images"] = [self._shown(picture) for picture in one.pictures]
            shown["work"] = mine.drafts[-1] if mine.drafts else {}
        finish = card is None and self._may_finish()
        shown |= {"more": self.more, "finish": finish, "handed_in": self.handed_in}
        return shown | {"progress": self.progress[name]}

    def _progress(self, name: str, card: str | None) -> dict[str, Any]:
        """Of one person: what is done, what is left for them, and what others have or are waited for."""
        own = [who[name] for c, who in self.works.items() if name in who and c in self.cards]
        states = Counter(work.state for work in own)
        free = sum(self._free(c, name) for c in self.cards if c != card) + (card is not None)
        left = sum(not self.complete(c) for c in self.cards)
        told = {"done": states["done"], "skipped": states["skipped"], "left": free, "cards": len(self.cards)}
        return told | {"others": max(left - free, 0)} | pace(own, free)

    def _shown(self, picture: Picture) -> dict[str, str]:
        source = Path(picture.source).name
        try:
            self.pictures[picture.id] = picture
        except OSError as error:
            return {"id": "", "source": source, "problem": error.strerror or str(error)}
        return {"id": picture.id, "source": source}


def pace(works: list[Work], left: int) -> dict[str, Any]:
    """Seconds a card (the median of the last ones), and how long what is left takes at that."""
    done = sorted((work for work in works if work.state == "done"), key=lambda work: work.at)[-RECENT:]
    if not done:
        return {"each": None, "remaining": None}
    each = median(work.seconds for work in done)
    return {"each": round(each, 1), "remaining": round(each * left)}


def actions(folder: Path) -> list[dict[str, Any]]:
    """The journal's rows; what is no action is named."""
    path = folder / JOURNAL
    out = []
    for number, (_, row) in enumerate(read(path) if path.exists() else (), 1):
        needed = {"do": str, "card": str, "name": str, "seconds": int | float, "at": int | float}
        if any(not isinstance(row.get(key), kind) for key, kind in needed.items()):
            raise ValueError(f"{path} line {number} is no action of a person: remove this line")
        out.append(row)
    return out


def named(name: Any) -> str:
    """A name as it is kept: one line of printable characters."""
    text = " ".join(str(name or "").split())
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(f"a name is a line of 1 to {LONGEST_NAME} printable characters, not {text[:60]!r}")
    return text


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the work is missing")
    return value


def _line(value: Any, problem: str) -> str:
    text = " ".join(str(value or "").split())
    if not text:
        raise ValueError(problem)
    return text[:500]


def _seconds(value: Any, before: float) -> float:
    """Time on a card only grows."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e7
    return round(max(float(value) if good else 0.0, before), 1)
