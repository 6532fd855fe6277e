"""Checks and measures every GPU backend in one run: python -m bench.gpu [--dry] [--minutes 7.5] [--only PART]

First correctness against fp64 (bench/gpu_checks.py), then the peers (the ops' own files), interleaved, medians of at
least 20. Rows go to bench/results/gpu.jsonl. A wrong result ends the run: nothing wrong is timed.
--dry goes the same way on a CPU with tiny shapes and writes nothing: it shows that the script runs, no more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import device as devices
from bench import gpu_checks, linear_preference, logprob, preference, selective, splice
from bench.timing import machine, write_rows

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
PARTS = ("checks", "sanitizer", "roof", "splice", "preference", "selective", "head", "dpo")
NO_DEVICE = 2


def sanitizer_rows(seconds: float) -> Iterator[dict[str, Any]]:
    """The checks on small shapes again under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("# compute-sanitizer is not installed: not run")
        return
    for name in ("memcheck", "racecheck"):
        command = [tool, f"--tool={name}", "--error-exitcode=99", sys.executable, "-m", "bench.gpu", "--only", "checks"]
        start = time.monotonic()
        try:
            run = subprocess.run([*command, "--small"], capture_output=True, text=True, timeout=seconds)
            outcome = "clean" if run.returncode == 0 else f"exit {run.returncode}: {run.stdout[-2000:]}"
        except subprocess.TimeoutExpired:
            outcome = f"not finished in {seconds:.0f} s"
        yield {"op": "all", "mode": f"compute-sanitizer {name}", "outcome": outcome, "s": time.monotonic() - start}


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + 60 * options.minutes
    parts = [options.only] if options.only else PARTS
    setup = devices.Setup(device, 2 if options.dry else options.repeats, options.dry, deadline)
    if "checks" in parts:
        yield from gpu_checks.run(device, options.small or options.dry)
    if "sanitizer" in parts and not options.dry:
        yield from sanitizer_rows(seconds=60)
    if set(parts) & {"roof", "head", "splice", "selective", "dpo"}:
        yield from devices.roof(setup)
    if "splice" in parts:
        yield from splice.device_rows(setup)
    if "preference" in parts:
        yield from preference.device_rows(setup)
    if "selective" in parts:
        yield from selective.device_rows(setup)
    if "head" in parts:
        yield from logprob.device_rows(setup)
    if "dpo" in parts:
        yield from linear_preference.device_rows(setup)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, nothing written")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--small", action="store_true", help="checks on few, small shapes")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="rows that would start later are left out, and named"
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("bench.gpu: there is no CUDA device here, so nothing was measured (--dry runs the script on a CPU)")
        return NO_DEVICE
    device = torch.device("cpu" if options.dry else "cuda")
    about = machine() | {"peer_versions": devices.versions()}
    found, failed = [], False
    for row in rows(options, device):
        found.append({**row, **about})
        print(json.dumps(row), flush=True)
        outcome = str(row.get("outcome", "ok"))
        failed |= outcome not in ("ok", "clean") and not outcome.startswith("not finished")
        if failed and row["mode"].startswith("check"):
            break
    if not options.dry and not options.small:
        write_rows(RESULTS, found)
    if failed:
        print("bench.gpu: a check failed, see the rows with an outcome; after a wrong result nothing is timed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
