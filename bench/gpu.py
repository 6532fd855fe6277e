"""Proves and measures every GPU backend in one run: python -m bench.gpu [--dry] [--minutes 7.5] [--only PART ...]

First correctness: the device tests (`make gpu`), through pytest; one that fails ends the run, so that nothing wrong is
timed. Then the peers (device_rows of the ops' own files), interleaved, medians of at least 20. Rows go to
bench/results/gpu.jsonl.
--dry goes the same way on a CPU with tiny shapes and writes nothing: it shows that the script runs, no more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench import attention, linear_preference, logprob, logprob_host, preference, selective, splice
from bench.device import Row, Setup, roof, versions
from bench.timing import machine, write_rows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
MEASURED: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "splice": splice.device_rows, "preference": preference.device_rows, "selective": selective.device_rows,
    "attention": attention.device_rows, "linear_preference": linear_preference.device_rows,
    "host": logprob_host.device_rows, "logprob": logprob.device_rows,
}  # fmt: skip
PARTS = ("tests", "sanitizer", "roof", *MEASURED)
WORKERS = min(8, os.cpu_count() or 1)  # most of a test's time is the host's: compilers and oracles
SMALL = ("tests/ops/test_device.py", "-k", "waits_for_nothing")  # every op once, in its smallest sizes
NO_DEVICE = 2


def tested(mode: str, command: list[str], seconds: float) -> Row:
    """One run of pytest as a row; the outcome is "ok", or how it ended."""
    start = time.monotonic()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
        outcome = "ok" if run.returncode == 0 else f"exit {run.returncode}: {(run.stdout + run.stderr)[-2000:]}"
    except subprocess.TimeoutExpired:
        outcome = f"not finished in {seconds:.0f} s"
    return {"op": "all", "mode": mode, "outcome": outcome, "s": time.monotonic() - start}


def proofs(parts: tuple[str, ...], dry: bool, seconds: float) -> Iterator[Row]:
    """The device tests; then every op once more under compute-sanitizer, where it is installed."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu" if dry else "gpu"]
    if "tests" in parts:
        parallel = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
        yield tested("tests", [*pytest, *(SMALL if dry else parallel)], seconds)
    tool = shutil.which("compute-sanitizer")
    if "sanitizer" not in parts or dry:
        return
    if tool is None:
        print("# compute-sanitizer is not installed: not run")
        return
    for name in ("memcheck", "racecheck"):
        yield tested(f"compute-sanitizer {name}", [tool, f"--tool={name}", "--error-exitcode=99", *pytest, *SMALL], 60)


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    deadline = time.monotonic() + 60 * options.minutes
    parts = tuple(options.only) or PARTS
    yield from proofs(parts, options.dry, seconds=60 * options.minutes)
    setup = Setup(device, 2 if options.dry else options.repeats, options.dry, deadline)
    measured = [name for name in parts if name in MEASURED]
    if "roof" in parts or set(measured) - {"preference", "host"}:
        yield from roof(setup)
    for name in measured:
        yield from MEASURED[name](setup)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, nothing written")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=[], help="these parts alone")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="rows that would start later are left out, and named"
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("bench.gpu: there is no CUDA device here, so nothing was measured (--dry runs the script on a CPU)")
        return NO_DEVICE
    about = machine() | {"peer_versions": versions()}
    failed = False
    for row in rows(options, torch.device("cpu" if options.dry else "cuda")):
        if not options.dry:  # row by row: a run that is cut short keeps what it measured
            write_rows(RESULTS, [{**row, **about}])
        print(json.dumps(row), flush=True)
        outcome = str(row.get("outcome", "ok"))
        failed |= outcome != "ok" and not outcome.startswith("not finished")
        if failed and row["mode"] == "tests":
            break
    if failed:
        print("bench.gpu: a test failed, see the rows with an outcome; after a wrong result nothing is timed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
