"""Serves a desk as one local page, by the standard library: to this machine alone, under a secret path.

Refused: another Host (a foreign name that resolves to this machine), a path without the token, posts from another
origin or in another form than JSON. What is served is files of ours and the pictures of cards that were shown, by
their ids: no path of a request is ever a path of the disk. Texts go out as JSON, and the page shows them as text.
"""

from __future__ import annotations

import hmac
import io
import json
import os
import re
import secrets
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mmfast.engines.people_desk import Conflict, Desk

HOST = "127.0.0.1"
FILES = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PLAIN = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
LARGEST = 8 << 20  # bytes of an action
REMEMBERED = "page.json"  # token and port, so that an open page finds a restarted server again
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page:
    """A desk's page, from now until `close`. `title`: what stands above the cards; `port` 0: the last one, else any."""

    def __init__(self, desk: Desk, *, title: str, port: int = 0) -> None:
        self.desk, self.title = desk, title
        self.token, last = _remembered(desk.folder)
        self.server = _listening(port, last)
        self.server.page = self  # type: ignore[attr-defined]  # the handler's way to it
        self.port = self.server.server_address[1]
        _remember(desk.folder, self.token, self.port)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed in the middle of an answer is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version, sys_version = "mmfast", ""

    @property
    def page(self) -> Page:
        return self.server.page  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        path = self._admitted()
        if path is None:
            return
        if (name := path or "people.html") in _files():
            self._send(200, (FILES / name).read_bytes(), f"{KINDS[Path(name).suffix]}; charset=utf-8")
        elif found := re.fullmatch("image/([0-9a-f]{64})", path):
            self._picture(found[1])
        else:
            self._refuse(404, "there is nothing of this name")

    def do_POST(self) -> None:
        path = self._admitted()
        if path is None:
            return
        # Only from our own page
        if path != "act":
            return self._refuse(404, "there is nothing of this name")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if origin not in (None, f"http://{self.headers['Host']}") or site != "same-origin":
            return self._refuse(403, "this comes from another page")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "an action is JSON")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST:
            return self._refuse(413, f"an action has at most {LARGEST >> 20} MiB, and says how many bytes it has")
        # Do it
        try:
            given = json.loads(self.rfile.read(int(length)), parse_constant=_no_number)
            if not isinstance(given, dict):
                raise ValueError("an action is a JSON object")
        except (ValueError, RecursionError):
            return self._refuse(400, "this action is no JSON object")
        self._json(*self._acted(given))

    def _acted(self, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        desk, title = self.page.desk, {"title": self.page.title}
        try:
            return 200, desk.act(given) | title
        except Conflict as error:
            return 409, {"error": str(error)} | desk.act({"name": given["name"], "do": "look"}) | title
        except ValueError as error:
            return 400, {"error": str(error), "names": desk.names} | title
        except Exception:  # a fault of ours: the page must not take it for a server that is gone, and ask for ever
            traceback.print_exc()
            return 500, {"error": "the server failed at this; its terminal says why"}

    def _admitted(self) -> str | None:
        """What is asked for, below the token; None where it was refused."""
        hosts = {f"{name}:{self.page.port}" for name in (HOST, "localhost")}
        path, _, _ = self.path.partition("?")
        token, slash, rest = path.removeprefix("/").partition("/")
        if self.headers.get("Host", "") not in hosts:
            self._refuse(403, f"this page is {HOST}:{self.page.port}, and no other host's")
        elif not slash or not hmac.compare_digest(token.encode(), self.page.token.encode()):
            self._refuse(403, "the address has not the token: open the one that mmfast printed")
        else:
            return rest
        return None

    def _picture(self, name: str) -> None:
        from PIL import Image

        picture = self.page.desk.pictures.get(name)
        if picture is None:
            return self._refuse(404, "no card that was shown has this picture")
        try:
            data = picture.data if picture.content is not None else Path(picture.source).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                kind = PLAIN.get(image.format or "")
                if kind is None:  # a browser may not know it
                    file = io.BytesIO()
                    image.convert("RGB").save(file, "PNG")
                    data, kind = file.getvalue(), PLAIN["PNG"]
        except (OSError, ValueError) as error:
            return self._refuse(404, f"the picture cannot be read ({error})")
        self._send(200, data, kind, {"Cache-Control": "private, max-age=86400"})

    def _refuse(self, status: int, problem: str) -> None:
        self.close_connection = True  # what else was sent is not read
        self._json(status, {"error": problem})

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": "no-store"}
        for name, value in {**sent, **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Addresses hold the token: nothing of them is printed."""


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _files() -> set[str]:
    return {path.name for path in FILES.iterdir() if path.suffix in KINDS}


def _listening(port: int, last: int) -> _Server:
    """On the port that was asked for; else on the last one where that is free, else on any."""
    for one in [port] if port else [last, 0] if last else [0]:
        try:
            return _Server((HOST, one), _Handler)
        except OSError as error:
            if port:
                raise ValueError(f"--port {port}: {error.strerror}; leave it out, and any free one is taken") from None
    raise ValueError(f"no port of {HOST} is free")


def _remembered(folder: Path) -> tuple[str, int]:
    try:
        found = json.loads((folder / REMEMBERED).read_text())
        if re.fullmatch(r"[\w-]{40,}", found["token"]):
            return found["token"], int(found["port"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged: a new one
    return secrets.token_urlsafe(32), 0


def _remember(folder: Path, token: str, port: int) -> None:
    """For this user's eyes alone."""
    path = folder / REMEMBERED
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"token": token, "port": port}, file)
