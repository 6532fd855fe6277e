"""Measures the fused ops beside their peers: python -m bench.ops SUITE... [--quick] [--write]

A suite is a function that yields rows; it is registered by its name in SUITES. With --write rows go to
bench/results/ops-cpu.jsonl (ops-cuda.jsonl on a GPU), one JSON object a line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench import attention, linear_preference, logprob, preference, segments, selective, splice
from bench.timing import machine, write_rows
from mmfast.job.runtime import keep_freed_memory

Row = dict[str, Any]
SUITES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "linear_logprob": logprob.rows,
    "linear_preference_loss": linear_preference.rows,
    "selective_logprob": selective.rows,
    "preference_loss": preference.rows,
    "splice_embeddings": splice.rows,
    "tree_attention": attention.rows,
    "changed_segments": segments.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats: does it run?")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: both")
    parser.add_argument("--shape", help="U,D,V of the heads")
    parser.add_argument("--peers", default="", help="of the ops of log-probs, comma-separated; default: all")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--as-in-training", action="store_true", help="freed memory is kept, as a run on CPU does")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.as_in_training:
        keep_freed_memory()
    results = Path(__file__).parent / "results" / f"ops-{'cuda' if torch.cuda.is_available() else 'cpu'}.jsonl"
    for name in options.suites or SUITES:
        for row in SUITES[name](options):
            print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
            if options.write:  # row by row: a run that is cut short keeps what it measured
                write_rows(results, [{**row, **machine()}])


if __name__ == "__main__":
    main()
