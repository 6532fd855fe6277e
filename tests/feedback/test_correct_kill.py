"""kill -9 of `mmfast correct` at any instant: what a person was told is kept is kept, and the same command goes on."""

import http.client
import json
import os
import signal
import threading
import time

import pytest

from mmfast.cli.correct import correct
from mmfast.engines.people_desk import actions
from mmfast.feedback.corrected import Folder
from tests.make.people_cases import Client, start, url_of, write_answers


def busy(url, name, confirmed):
    """A person without rest, until the server is gone."""
    one = Client(url, name)
    try:
        one.act("look")
        while one.view["card"]:
            for n in range(3):
                work = {"segments": [{"span": [0, 1], "kind": "other", "to": f"{name} {n} 🎉"}]}
                before = one.view["card"]
                one.act("draft", work=work, push=True)
                confirmed.append(("draft", before["id"], name, before["step"]))
            before = one.view["card"]
            one.act("done", work=work)
            confirmed.append(("done", before["id"], name, before["step"]))
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        pass


def test_what_was_confirmed_is_on_disk_whenever_the_server_dies(tmp_path):
    answers, out = write_answers(tmp_path, tuple(f"answer {n}" for n in range(300))), tmp_path / "out"
    confirmed = {"anna": [], "bo": []}
    for wait in (0.05, 0.2, 0.6):
        process = start(answers, out, overlap=2)
        threads = [threading.Thread(target=busy, args=(url_of(out), name, confirmed[name])) for name in confirmed]
        for thread in threads:
            thread.start()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        process.join(10)
        found = [(a["do"], a["card"], a["name"], a["step"]) for a in actions(out)]
        for name, told in confirmed.items():
            own = [action for action in found if action[2] == name]
            # All that was told, in its order; at most the last one of a start was written and not told any more
            assert own[: len(told)] == told or [action for action in own if action in set(told)] == told
            assert len(own) - len(told) <= 3
    assert all(confirmed.values())
    done = [one for one in Folder(out).done if one.row["segments"]]
    assert len(done) >= sum(told[0] == "done" for some in confirmed.values() for told in some)


def test_a_folder_has_one_server(tmp_path):
    answers, out = write_answers(tmp_path), tmp_path / "out"
    process = start(answers, out)
    with pytest.raises(ValueError, match=r"--out: .*out is in use by process"):
        correct(answers, out)
    process.terminate()
    process.join(20)
    assert process.exitcode == 0 and (out / "rows-0.jsonl").exists() and not (out / ".lock").exists()
