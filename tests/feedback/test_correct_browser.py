"""The page of `mmfast correct` in a real browser: what a person sees and presses, and what then lies on disk."""

import os
import signal

import pytest

from mmfast.engines.people_desk import actions
from mmfast.feedback.corrected import Folder
from tests.make.browser import Tab, browser
from tests.make.people_cases import TEXTS, start, url_of, write_answers


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def office(tmp_path, chromium):
    """Starts servers and opens tabs; at the end nobody may have complained."""
    made = _Office(tmp_path, chromium)
    yield made
    made.close()


class _Office:
    def __init__(self, folder, chromium):
        self.folder, self.chromium, self.out = folder, chromium, folder / "out"
        self.processes, self.tabs, self.forgiven = [], [], ()
        self.answers = None

    def start(self, *texts, group=1, **options):
        self.answers = self.answers or write_answers(self.folder, texts or TEXTS, group=group)
        self.processes.append(start(self.answers, self.out, **options))
        self.url = url_of(self.out)
        return self.processes[-1]

    def tab(self, name="anna", **options):
        self.tabs.append(Tab(self.chromium, self.url, name, **options))
        return self.tabs[-1]

    def close(self):
        for tab in self.tabs:
            complaints = [c for c in tab.complaints if not any(f in c for f in self.forgiven)]
            assert complaints == []
            tab.close()
        for process in self.processes:
            if process.is_alive():
                process.terminate()
                process.join(30)
                assert process.exitcode == 0

    def rows(self):
        return [one.row for one in Folder(self.out).done]


def segments(row):
    return [(s["from"], s["kind"], s["to"]) for s in row["segments"]]


def test_mark_rewrite_undo_and_hand_in_by_keys(office):
    office.start()
    tab = office.tab()
    assert tab.text(".answer") == TEXTS[0] and tab.text("#pace") == "0 done · 4 left"
    # "red cats": the corrected answer appears as it is typed
    tab.keys("ArrowRight", "Shift+ArrowRight", "1")
    tab.type("three blue 🐈")
    assert tab.text(".preview") == "Two three blue 🐈 sit left of a dog."
    assert tab.text(".segments .words") == "red cats → three blue 🐈"
    tab.keys("Enter", "ArrowRight", "2")  # "left", whose words go
    tab.keys("Backspace", "Enter")
    tab.keys("ArrowRight", "ArrowRight", "4", "Escape")  # only just marked: as if nothing had been
    assert tab.page.locator(".segments li").count() == 2
    # Undo is one step each; then mark it anew
    tab.keys("u")
    tab.wait("document.querySelectorAll('.segments li').length === 1")
    assert tab.text(".preview") == "Two three blue 🐈 sit left of a dog."
    tab.keys("ArrowRight", "5")
    tab.type("horse")
    tab.keys("Alt+2", "Enter")
    tab.done()
    # A card that was handed in is taken back as it was
    assert tab.text("#pace b") == "1"
    tab.keys("b")
    tab.wait("document.querySelectorAll('.segments li').length === 2")
    assert tab.text("#pace b") == "0"
    tab.done()
    (row,) = office.rows()
    assert segments(row) == [("red cats", "object", "three blue 🐈"), ("dog", "position", "horse")]
    assert row["corrected"] == "Two three blue 🐈 sit left of a horse."


def test_words_are_added_where_there_were_none(office):
    """Behind a word and before it with their blank, at both ends, in Japanese without one; a place is one addition."""
    office.start(TEXTS[0], TEXTS[1])
    tab = office.tab()
    tab.keys("a")  # behind "Two"
    tab.type("or three 🐈")
    assert tab.text(".preview") == "Two or three 🐈 red cats sit left of a dog." and tab.text(".answer") == TEXTS[0]
    assert tab.text(".segments .words") == "+ or three 🐈"
    tab.keys("Alt+3", "Enter", "ArrowRight", "a", "Enter")  # nothing is written: no addition
    assert tab.page.locator(".segments li").count() == 1 and tab.page.locator(".answer .added").count() == 1
    tab.keys("a", "Escape", "ArrowLeft", "ArrowLeft", "Shift+A")  # before "cats"
    tab.type("fat")
    assert tab.text(".preview").startswith("Two or three 🐈 red fat cats sit")
    tab.keys("Enter", "u")
    tab.wait("document.querySelectorAll('.segments li').length === 1")
    tab.page.click(".answer .added")  # its sign is pressed: it is written again
    tab.wait("document.querySelector('.editor textarea')?.value === ' or three 🐈'")
    tab.type(" and a half")
    tab.keys("Enter")
    tab.saved()
    tab.page.reload()
    tab.page.wait_for_selector(".segments .kind")
    assert tab.text(".preview") == "Two and a half red cats sit left of a dog."
    # A marked stretch that holds the place takes it with it
    tab.keys("Shift+ArrowRight", "1")
    tab.wait("document.querySelector('.editor textarea')?.value === 'Two and a half red'")
    tab.keys("Escape", "u")
    tab.wait("document.querySelectorAll('.answer .added').length === 1")
    tab.page.click(".answer span:text-is('dog')")
    tab.wait("document.querySelector('.cursor').textContent === 'dog'")
    tab.keys("a")
    tab.type("house")
    tab.keys("Enter")
    tab.done()
    tab.keys("a")
    tab.type("黒い")
    tab.keys("Enter")
    tab.done()
    one, two = office.rows()
    assert segments(one) == [("", "count", " and a half"), ("", "other", " house")]
    assert one["corrected"] == "Two and a half red cats sit left of a dog house."
    assert segments(two) == [("", "other", "黒い")] and two["corrected"] == "猫黒い" + TEXTS[1][1:]


def test_places_are_code_points_and_html_is_text(office):
    office.start(TEXTS[1], TEXTS[2])
    tab = office.tab()
    # With the mouse, half a word: it is widened; then behind emoji of several characters
    box = tab.page.locator(".answer span:text-is('𝒃lue')").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.page.mouse.move(box["x"] + 4, middle)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] - 3, middle, steps=3)
    tab.page.mouse.up()
    tab.wait("document.querySelector('.cursor').textContent === '𝒃lue'")
    tab.keys("4")
    tab.type("red")
    tab.keys("Enter")
    tab.page.click(".answer span:text-is('猫')")
    tab.wait("document.querySelector('.cursor').textContent === '猫'")
    tab.keys("1")
    tab.type("犬🐕")
    tab.keys("Enter")
    assert tab.text(".preview") == TEXTS[1].replace("𝒃lue", "red").replace("猫", "犬🐕")
    tab.done()
    # Tags are characters
    assert tab.text(".answer") == TEXTS[2]
    assert tab.page.locator("#card b, #card img").count() == 0 and "owned" not in tab.page.title()
    tab.keys("ArrowRight", "1")
    tab.type("<script>document.title = 'owned'</script>")
    tab.keys("Enter")
    assert "<script>" in tab.text(".preview") and "owned" not in tab.page.title()
    tab.done()
    one, two = office.rows()
    assert segments(one) == [("猫", "object", "犬🐕"), ("𝒃lue", "attribute", "red")]
    assert one["corrected"] == TEXTS[1].replace("𝒃lue", "red").replace("猫", "犬🐕")
    (found,) = two["segments"]
    assert TEXTS[2][slice(*found["span"])] == found["from"] == "bold"


def test_a_reload_in_the_middle_goes_on(office):
    office.start()
    tab = office.tab()
    tab.keys("1")
    tab.type("Five")
    tab.keys("Enter", "ArrowRight", "ArrowRight", "3")
    tab.type("half a wor")
    tab.saved()
    tab.page.reload()
    tab.page.wait_for_selector(".segments .kind")
    assert tab.text(".preview") == "Five red cats half a wor left of a dog."
    tab.keys("u")
    tab.wait("document.querySelectorAll('.segments li').length === 1")
    # Everything that a key does a reader can press too
    tab.page.click(".segments button:text('rewrite')")
    tab.page.fill(".editor textarea", "Six")
    tab.page.click("#done")
    tab.wait("document.querySelector('#pace b').textContent === '1'")
    assert segments(office.rows()[0]) == [("Two", "object", "Six")]


def test_two_people_at_once(office):
    office.start(annotator=["anna", "bo"])
    anna, bo = office.tab("anna"), office.tab("bo")
    assert anna.text(".answer") == TEXTS[0] and bo.text(".answer") == TEXTS[1]
    for tab in (anna, bo):
        tab.keys("2")
        tab.type("X")
    for tab in (anna, bo):
        tab.keys("Enter")
        tab.done()
    anna.keys("s")
    anna.page.fill("#reason", "cannot tell")
    anna.keys("Enter")
    anna.wait("document.querySelector('#pace').textContent.includes('1 skipped')")
    bo.done()
    for tab in (anna, bo):
        tab.wait("(document.querySelector('.end') || {textContent: ''}).textContent.includes('All done')")
    assert [(r["annotator"], r["corrected"][0]) for r in office.rows()] == [("anna", "X"), ("bo", "X"), ("bo", "A")]
    # A third is not let in, and is told who may
    eve = office.tab("")
    eve.page.fill("#name", "eve")
    eve.keys("Enter")
    eve.page.click("#names button:text('anna')")
    eve.page.wait_for_selector(".end")
    office.forgiven = ("400",)


def test_kill_9_of_the_server_loses_nothing(office):
    process = office.start()
    tab = office.tab()
    tab.keys("1")
    tab.type("Five")
    tab.keys("Enter")
    tab.saved()
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert [a["work"]["segments"][0]["to"] for a in actions(office.out)][-1] == "Five"
    # The person goes on; what they do is kept on the page until the server is back at the same address
    tab.keys("ArrowRight", "3")
    tab.type("dogs")
    tab.page.wait_for_selector("#lost:not([hidden])")
    tab.keys("Enter", "Enter")
    url = office.url
    office.start()
    assert office.url == url
    tab.wait("document.querySelector('#pace b').textContent === '1'")
    assert tab.page.is_hidden("#lost")
    (row,) = office.rows()
    assert segments(row) == [("Two", "object", "Five"), ("cats", "count", "dogs")]
    office.forgiven = ("ERR_CONNECTION",)


def test_comparisons_and_ratings_by_keys(office, tmp_path):
    office.start("one", "two", "three", "four", group=2, task="compare")
    tab = office.tab()
    left = tab.text(".answers .panel:first-child .text")
    tab.keys("ArrowDown")
    tab.type("it is true")
    tab.keys("Escape", "ArrowUp", "1")
    tab.wait("document.querySelector('#pace b').textContent === '1'")
    tab.keys("3")
    tab.page.wait_for_selector(".end")
    one, two = office.rows()
    texts = {"a": "one", "b": "two"}
    assert texts[one["verdict"]] == left and two["verdict"] == "tie" and one["reason"] == "it is true"
    office.out = tmp_path / "rated"
    office.start(task="rate")
    tab = office.tab()
    tab.keys("4", "3", "0", "1")
    tab.keys("Enter")  # one is missing
    assert "Verbosity is not filled in" in tab.text("#note")
    tab.keys("2")
    tab.done()
    assert list(office.rows()[0]["scores"].values()) == [4, 3, 0, 1, 2]
