"""output_dir: one run at a time, nothing in it changes before a run truly begins, all in it is of one line of starts.

Going back (train.resume = "never", or a named checkpoint) sets what lay beyond aside, in set-aside-TIME/. It is one
rename of a journal (checkpoint_files.py) that decides it; whatever is killed after that, the next start finishes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import IO, Any

from mmfast.files import sync_folder, write_json, write_text
from mmfast.job.checkpoint_files import (
    JOURNAL,
    number,
    pending,
    present,
    read_info,
    steps,
)
from mmfast.job.rows import FILES, cut_back

LOCK = ".lock"
STOPPED, FINISHED, STARTED = "stopped", "finished.json", "started.json"
BELONGINGS = ("export", "report.html", "report.png", "plan.json", "trackers.json", "config.toml", FINISHED, STOPPED)
# (of the line of starts that wrote them; report.png is of earlier versions)
EVALUATED = "eval"  # step-N of it: answers and results of benchmarks (training/benchmarks.py)
_held: set[IO[str]] = set()


def _let_go_in_child() -> None:
    """A forked worker must not keep a lock alive after the run that forked it was killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class Lock:
    """An flock on output_dir/.lock, for the life of a run; the file says who holds it, and goes with the lock.
    `named`: the option that gave the folder, for messages."""

    def __init__(self, folder: Path, named: str = "output_dir") -> None:
        self.folder, self.named, self.file = folder, named, None
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self._take()
        except OSError as error:
            flock = error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
            how = "lock (its file system has no flock)" if flock else "write to"
            raise ValueError(f"{named}: cannot {how} {folder}: {error.strerror}") from None
        finally:
            self.made = made  # given back on closing while they are empty: a refused start leaves nothing
            if self.file is None:
                self._remove_empty()
        _held.add(self.file)

    def _take(self) -> IO[str]:
        path = self.folder / LOCK
        while True:
            file = path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "another process"
                file.close()
                raise ValueError(
                    f"{self.named}: {self.folder} is in use by {who}: wait for its end, stop it, or name another "
                    f"{self.named}"
                ) from None
            except OSError:
                file.close()
                raise
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # its holder removed it between our opening and locking: take the new one
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        return file

    def close(self) -> None:
        if self.file is None or self.file.closed:
            return
        (self.folder / LOCK).unlink(missing_ok=True)  # before letting go, so that nobody else's is removed
        _held.discard(self.file)
        self.file.close()
        self._remove_empty()

    def _remove_empty(self) -> None:
        for path in self.made:
            try:
                path.rmdir()
            except OSError:
                return


# what a start does to the folder


def agent() -> str:
    """Names the torchrun agent above this process, which may start it again; "" without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return run if run not in ("", "none") else f"{socket.gethostname()}:{os.getppid()}" if run else ""


def meant(folder: Path, resume: str) -> str:
    """`train.resume` as it is meant: where torchrun starts a run again by itself, "never" or a named checkpoint was
    obeyed when that run began, and what it has written since is to be gone on from."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0 or not agent():
        return resume
    try:
        return "auto" if json.loads((folder / STARTED).read_text())["agent"] == agent() else resume
    except (OSError, ValueError, KeyError):
        return resume


def begin(
    folder: Path, step: int, settings: str, *, resume: str, source: Path | None = None, evaluated: bool = True
) -> Path | None:
    """A run begins, after `step`: what lies beyond is set aside (a named checkpoint or "never" has gone back), metrics
    are cut to it, config.toml is written. `source`: the checkpoint it goes on from. Returns the folder of what was set
    aside, if something was."""
    checkpoints, resume = folder / "checkpoints", meant(folder, resume)
    for name in (JOURNAL, STARTED, STOPPED, FINISHED, "config.toml", *FILES):  # half-written by a killed start
        for left in (*folder.glob(f".{name}.*.tmp"), *checkpoints.glob(f".{name}.*.tmp")):
            left.unlink(missing_ok=True)
    finish_rollback(folder)
    foreign = source is not None and source.resolve().parent != checkpoints.resolve() and source.is_dir()
    later = [path for path in present(checkpoints) if foreign or number(path) > step]
    aside = None
    leavings = resume == "never" and any((folder / name).exists() for name in (*FILES, *BELONGINGS))
    if later or foreign or leavings:
        aside = _roll_back(folder, 0 if foreign else step, source if foreign else None)
    cut_back(folder, step, evaluated=evaluated)
    for name in (STOPPED, FINISHED):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "config.toml", settings)
    write_json(folder / STARTED, {"agent": agent(), "resume": resume, "step": step})
    return aside


def _roll_back(folder: Path, keep: int, adopted: Path | None) -> Path | None:
    checkpoints = folder / "checkpoints"
    to = f"set-aside-{time.strftime('%Y%m%d-%H%M%S')}"
    while (folder / to).exists():
        to += "-2"
    adopt = ""
    if adopted is not None:
        adopt = f".adopted-{adopted.name}" if adopted.name[5:].isdigit() else f".adopted-step-{_step(adopted)}"
        shutil.rmtree(checkpoints / adopt, ignore_errors=True)
        shutil.copytree(adopted, checkpoints / adopt, copy_function=_link)
        sync_folder(checkpoints)
    write_json(checkpoints / JOURNAL, {"keep": keep, "to": to, "adopt": adopt})
    finish_rollback(folder)
    return folder / to if (folder / to).exists() else None


def finish_rollback(folder: Path) -> None:
    """Do what the journal says and was not done yet: it can be killed between any two lines, and called again."""
    checkpoints = folder / "checkpoints"
    rollback = pending(checkpoints)
    if rollback is None:
        return
    to, adopt = folder / rollback["to"], checkpoints / (rollback["adopt"] or "-")
    if not rollback["adopt"] or adopt.is_dir():
        for path in reversed(steps(checkpoints)):
            if number(path) > rollback["keep"]:
                to.mkdir(exist_ok=True)
                os.rename(path, to / path.name)
        for name in BELONGINGS:
            if (folder / name).exists():
                to.mkdir(exist_ok=True)
                os.rename(folder / name, to / name)
        for path in steps(folder / EVALUATED):
            if number(path) > rollback["keep"]:
                (to / EVALUATED).mkdir(parents=True, exist_ok=True)
                os.rename(path, to / EVALUATED / path.name)
        cut_back(folder, rollback["keep"], aside=to)
        if rollback["adopt"]:
            os.rename(adopt, checkpoints / adopt.name.removeprefix(".adopted-"))
    sync_folder(checkpoints)
    (checkpoints / JOURNAL).unlink()
    sync_folder(checkpoints)


def _step(path: Path) -> int:
    return int(read_info(path)["step"])


def _link(source: str, target: str) -> str:
    """No file of a checkpoint is ever written again in place, so two folders can share it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def write_stopped(folder: Path, step: int, by: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(folder / STOPPED, {"step": step, "signal": by, "time": now})


def write_finished(folder: Path, step: int, export: dict[str, Any]) -> None:
    """The last thing a run does: its checkpoint, export and report stand."""
    made = sorted(path.name for path in (folder / "export").glob("[!.]*"))
    write_json(folder / FINISHED, {"step": step, "export": export, "folders": made})


def finished(folder: Path, step: int, export: dict[str, Any]) -> bool:
    """Whether nothing is left to do for a run of so many steps and this export."""
    try:
        note = json.loads((folder / FINISHED).read_text())
        made = all((folder / "export" / name).is_dir() for name in note["folders"])
        return made and note["step"] == step and note["export"] == export
    except (OSError, ValueError, KeyError, TypeError):
        return False
