"""As much of the hub's protocol as huggingface_hub asks for, on this machine: one model, or data set, of one commit
that can move."""

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
def hub(
    folder: Path, kind: str = "models", commits: list[str] | None = None, cut: set[str] | None = None
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve the files of `folder` as NAME; gives (environment, requests so far). `kind`: models or datasets.
    `commits`: the last one is main's, all have the files that lie there now. `cut`: files whose first answer breaks
    off in the middle."""
    home = f"/{NAME}" if kind == "models" else f"/{kind}/{NAME}"
    commits = [COMMIT] if commits is None else commits
    cut = set() if cut is None else cut
    asked: list[str] = []

    def files() -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            api, resolve = f"/api/{kind}/{NAME}", f"{home}/resolve/"
            if path.startswith(f"{api}/tree/"):
                self.give(json.dumps([self.entry(name) for name in files()]).encode())
            elif path in (api, f"{api}/revision/main", *(f"{api}/revision/{commit}" for commit in commits)):
                commit = path.rpartition("/")[2] if path.rpartition("/")[2] in commits else commits[-1]
                listed = [{"rfilename": name} for name in files()]
                self.give(json.dumps({"id": NAME, "sha": commit, "siblings": listed}).encode(), commit=commit)
            elif path.startswith(f"{api}/revision/"):
                self.give(b'{"error": "no revision"}', 404, told="RevisionNotFound")
            elif path.startswith(resolve) and (data := files().get(path[len(resolve) :].partition("/")[2])) is not None:
                self.give(data, commit=path[len(resolve) :].partition("/")[0], name=path.rpartition("/")[2])
            else:
                self.give(b'{"error": "not found"}', 404)

        do_HEAD = do_GET

        def entry(self, name: str) -> dict[str, object]:
            data = files()[name]
            return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def give(
            self, data: bytes, status: int = 200, commit: str = "", told: str = "RepoNotFound", name: str = ""
        ) -> None:
            whole, begin = data, self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            if begin and self.command == "GET" and int(begin):
                data, status = data[int(begin) :], 206
                asked.append(f"from {begin} {self.path}")
            self.send_response(status)
            named = {"Content-Length": str(len(data)), "X-Repo-Commit": commit or COMMIT}
            named |= {"Content-Type": "application/json", "ETag": f'"{hashlib.sha1(whole).hexdigest()}"'}
            if status == 404:
                named["X-Error-Code"] = told
            if status == 206:
                named["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
            for key, value in named.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET" and name in cut:
                cut.remove(name)
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.close()
            elif self.command == "GET":
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
