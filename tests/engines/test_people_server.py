"""The local page: whom it answers, and what it never serves."""

import http.client
import json
import socket
import stat
import threading

import pytest
from PIL import Image

from mmfast.engines.base import Picture
from mmfast.engines.people_desk import JOURNAL, Card, Desk
from mmfast.engines.people_server import FILES, HOST, LARGEST, REMEMBERED, Page
from tests.make.people_cases import Client

OUTSIDE = f"""../secret.txt ..%2fsecret.txt %2e%2e/%2e%2e/secret.txt ../people.py image/../people.css people.css/
{REMEMBERED} ../out/{JOURNAL} image//etc/passwd image/{"0" * 64} image/1 people.css\\.. ./people.css
people.html%00.css"""
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def page(tmp_path, picture):
    desk = Desk(tmp_path / "out")
    for n in range(2):
        shown = (Picture(str(picture(f"{n}.png", n))),)
        desk.add(Card(id=f"c{n}", task="text", shown={"answer": EVIL}, checked=lambda work: work, pictures=shown))
    made = Page(desk, title="test")
    yield made
    made.close()
    desk.close()


@pytest.fixture
def anna(page):
    return Client(page.url, "anna")


def test_the_page_and_its_parts_are_served(page, anna):
    for name in ("", *(path.name for path in FILES.iterdir())):
        status, body, headers = anna.ask("GET", anna.path + name)
        assert (status, body) == (200, (FILES / (name or "people.html")).read_bytes())
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert page.server.server_address[0] == HOST == "127.0.0.1"


def test_without_the_token_nothing_is_told(page, anna):
    wrong = "x" + page.token[1:]
    for (
        path
    ) in f"/ /{wrong}/ /{page.token} /{page.token[:-1]}/ //{page.token}/x /act /people.js /../{page.token}/".split():
        status, body, _ = anna.ask("GET", path)
        assert status in (403, 404) and b"<" not in body, path
    with socket.create_connection((HOST, page.port), timeout=5) as raw:
        raw.sendall(b"GET /\xf6\xff/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % page.port)
        assert raw.recv(1000).split()[1] == b"403"
    anna.path = f"/{wrong}/"
    assert anna.post({"name": "anna", "do": "look"})[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", ""]
)
def test_another_host_is_refused(page, anna, host):
    """A foreign name that was made to resolve to this machine (DNS rebinding)."""
    status, body, _ = anna.ask("GET", anna.path, Host=host.format(port=page.port))
    assert status == 403 and b"no other host" in body


def test_localhost_is_this_machine(page, anna):
    assert anna.ask("GET", anna.path, Host=f"localhost:{page.port}")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),  # what another page's form could send
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}, 200),
    ],
)
def test_a_post_from_another_page_does_nothing(page, anna, headers, status):
    anna.act("look")
    card = anna.view["card"]
    body = json.dumps({"name": "anna", "do": "skip", "reason": "x", "card": card["id"], "step": 0}).encode()
    given = {k: v.format(port=page.port) for k, v in ({"Content_Type": "application/json"} | headers).items()}
    assert anna.ask("POST", f"{anna.path}act", body, **given)[0] == status
    assert (page.desk.folder / JOURNAL).exists() == (status == 200)


def test_no_path_leads_to_the_disk(page, anna, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    anna.act("look")
    for path in OUTSIDE.split():
        status, body, _ = anna.ask("GET", anna.path + path)
        assert status == 404 and b"secret" not in body and b"root:" not in body, path


def test_only_pictures_of_cards_that_were_shown_are_served(page, anna, tmp_path):
    anna.act("look")
    other = Picture(str(tmp_path / "1.png"))
    (shown,) = anna.view["card"]["images"]
    status, body, headers = anna.ask("GET", f"{anna.path}image/{shown['id']}")
    assert (status, body, headers["Content-Type"]) == (200, (tmp_path / "0.png").read_bytes(), "image/png")
    assert anna.ask("GET", f"{anna.path}image/{other.id}")[0] == 404


def test_a_picture_that_browsers_do_not_know_comes_as_png_and_a_broken_one_is_told(page, anna, tmp_path):
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.tiff")
    (tmp_path / "b.png").write_text("<svg onload='alert(1)'/>")
    for name in ("a.tiff", "b.png", "gone.png"):
        shown = (Picture(str(tmp_path / name)),)
        page.desk.add(Card(id=name, task="text", shown={}, checked=lambda work: work, pictures=shown))
    seen = {}
    for _ in range(5):
        anna.act("look")
        seen[anna.view["card"]["id"]] = anna.view["card"]["images"][0]
        anna.act("skip", reason="next")
    assert anna.ask("GET", f"{anna.path}image/{seen['a.tiff']['id']}")[1].startswith(b"\x89PNG")
    status, body, headers = anna.ask("GET", f"{anna.path}image/{seen['b.png']['id']}")
    assert status == 404 and headers["Content-Type"] == "application/json" and b"<svg" not in body
    assert seen["gone.png"]["problem"] == "No such file or directory"


def test_html_in_an_answer_leaves_as_json_alone(anna):
    assert anna.act("look")["card"]["answer"] == EVIL
    _, _, headers = anna.ask(
        "POST",
        f"{anna.path}act",
        json.dumps({"name": EVIL[:39], "do": "look"}).encode(),
        Content_Type="application/json",
    )
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'"text"'])
def test_what_is_no_action_is_told(anna, body):
    status, told, _ = anna.ask("POST", f"{anna.path}act", body, Content_Type="application/json")
    assert status == 400 and json.loads(told)["error"]


def test_a_fault_of_ours_is_told_and_not_asked_for_ever(page, anna, capfd):
    def fails(work):
        raise RuntimeError("a fault")

    page.desk.cards = {"c": Card(id="c", task="text", shown={}, checked=fails)}
    anna.act("look")
    with pytest.raises(ValueError, match="500: the server failed at this"):
        anna.act("done", work={})
    assert "a fault" in capfd.readouterr().err and anna.act("look")["card"]["step"] == 0


def test_an_action_without_end_is_not_read(page, anna):
    for length in (str(LARGEST + 1), "-1", "x", "99999999999999"):
        with socket.create_connection((HOST, page.port), timeout=5) as raw:
            head = f"POST {anna.path}act HTTP/1.1\r\nHost: {HOST}:{page.port}\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert raw.recv(1000).split()[1] == b"413"


def test_a_conflict_brings_the_card_as_it_is(anna):
    anna.act("look")
    anna.act("draft", work={"n": 1}, push=True)
    status, told = anna.post({"name": "anna", "do": "draft", "card": "c0", "step": 0, "work": {}, "push": True})
    assert (
        status == 409
        and told["card"]["step"] == 1
        and told["work"] == {"n": 1}
        and "changed elsewhere" in told["error"]
    )


def test_a_server_that_comes_back_has_the_same_address(page, anna, tmp_path):
    path = page.desk.folder / REMEMBERED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    url = page.url
    page.close()
    again = Page(page.desk, title="test")
    assert again.url == url
    # Two folders, two tokens; a port that is taken is not waited for; a damaged note is made anew
    desk = Desk(tmp_path / "other")
    (tmp_path / "other" / REMEMBERED).write_text(json.dumps({"token": "short", "port": again.port}))
    other = Page(desk, title="test")
    assert other.token != again.token and other.port != again.port
    with pytest.raises(ValueError, match=rf"--port {again.port}: Address already in use"):
        Page(desk, title="test", port=again.port)
    other.close()
    page.server, page.thread = again.server, again.thread


def test_many_at_once_lose_nothing(page):
    for n in range(2, 80):
        page.desk.add(Card(id=f"c{n}", task="text", shown={}, checked=lambda work: work))
    problems = []

    def work(name):
        try:
            one = Client(page.url, name)
            one.act("look")
            while one.view["card"]:
                one.act("draft", work={"by": name}, push=True)
                one.act("done", work={"by": name})
        except (ValueError, OSError, http.client.HTTPException) as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    done = {c: list(w) for c, w in Desk(page.desk.folder).works.items()}
    assert done.keys() == page.desk.cards.keys() and all(len(names) == 1 for names in done.values())
