"""As much of the hub's protocol as huggingface_hub asks for, on this machine: one model of one commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "someone/tiny"
COMMIT = "c0ffee00" * 5


@contextmanager
def hub(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve the files of `folder` as NAME; gives (environment, requests so far)."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{NAME}/tree/"):
                self.give(json.dumps([self.entry(name) for name in files]).encode())
            elif path.startswith(f"/api/models/{NAME}"):
                self.give(json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith(f"/{NAME}/resolve/") and (data := files.get(path.rpartition("/")[2])) is not None:
                self.give(data)
            else:
                self.give(b'{"error": "not found"}', 404)

        do_HEAD = do_GET

        def entry(self, name: str) -> dict[str, object]:
            data = files[name]
            return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def give(self, data: bytes, status: int = 200) -> None:
            self.send_response(status)
            named = {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
            if status == 404:
                named["X-Error-Code"] = "RepoNotFound"
            for key, value in (named | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
