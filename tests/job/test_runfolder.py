"""One run at a time in an output_dir, and only where the processes know of each other."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mmfast.job.runfolder import LOCK, Lock
from mmfast.job.runtime import start
from mmfast.train import main, train
from tests.make.tiny_run import make_config


def test_a_second_holder_is_told_who_has_the_folder(tmp_path):
    lock = Lock(tmp_path / "runs" / "a")
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .* since 20.*: wait"):
        Lock(tmp_path / "runs" / "a")
    lock.close()
    assert not (tmp_path / "runs").exists()  # nothing was put there, so nothing stays
    (tmp_path / "kept").mkdir()
    lock = Lock(tmp_path / "kept")
    lock.close()
    Lock(tmp_path / "kept").close()
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_lock_ends_with_its_process_not_with_the_workers_it_forked(tmp_path):
    """SIGKILL of a run leaves its forked workers for a while: they must not keep the folder."""
    code = f"""
import os, time
from pathlib import Path
from mmfast.job.runfolder import Lock
lock = Lock(Path({str(tmp_path)!r}))
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"process {parent.pid} on"):
            Lock(tmp_path)
        parent.kill()
        parent.wait()
        os.kill(worker, 0)  # it lives
        Lock(tmp_path).close()
    finally:
        parent.kill()
        os.kill(worker, signal.SIGKILL)


def test_of_many_that_fight_one_holds_it_at_a_time(tmp_path):
    """The file goes with the lock: a start that opened the old file must not believe it holds the new one."""
    context = multiprocessing.get_context("fork")
    shared = context.Value("i", 0, lock=False)
    wins = context.Queue()

    def fight():
        won = 0
        for _ in range(300):
            try:
                lock = Lock(tmp_path)
            except ValueError:
                continue
            inside = shared.value  # two holders at once would lose counts
            time.sleep(0.0002)
            shared.value = inside + 1
            won += 1
            lock.close()
        wins.put(won)

    processes = [context.Process(target=fight) for _ in range(3)]
    for process in processes:
        process.start()
    total = sum(wins.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert total == shared.value > 0


def test_a_run_holds_its_folder_to_the_end_and_a_second_start_changes_nothing(tiny, tmp_path):
    config = make_config(tmp_path, *tiny)
    runtime = start(config)
    runtime.hold(tmp_path / "run")
    with pytest.raises(ValueError, match=f"output_dir: .*run is in use by process {os.getpid()} on"):
        train(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    runtime.close()


@pytest.mark.parametrize(
    ("environment", "who"),
    [
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, "Slurm started 8 tasks"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "8"}, "Slurm started 2 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun started 4 tasks"),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, "PMI started 3 tasks"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
    ],
)
def test_tasks_without_a_rank_are_refused_with_the_line_to_use(tiny, tmp_path, monkeypatch, environment, who):
    for name in list(os.environ):
        if re.match("SLURM|OMPI|PMI|RANK|WORLD_SIZE", name):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{who}.*torchrun") as told:
        train(make_config(tmp_path, *tiny))
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


def test_one_task_and_ranks_that_know_of_each_other_go_on(monkeypatch):
    from mmfast.job.runtime import check_launch

    for environment in (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "8"},
    ):  # the second: salloc's shell
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(name, value)
            check_launch()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("RANK", "1")
    check_launch()


def test_only_the_first_task_of_a_node_prints_a_mistake(tmp_path, monkeypatch, capfd):
    for number, expected in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", number)
        with pytest.raises(SystemExit):
            main([str(tmp_path / "nowhere.toml")])
        assert capfd.readouterr().err.count("does not exist") == expected


def test_two_ranks_print_one_line(tiny, tmp_path):
    """A mistake that each rank finds by itself, after the group was made."""
    from mmfast.config import dump

    path = tmp_path / "c.toml"
    path.write_text(dump(make_config(tmp_path, *tiny, **{"train.tokens_per_pack": 60})))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, "-m", "mmfast.train", str(path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
