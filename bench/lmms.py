"""An exported checkpoint in lmms-eval, beside our own answers: `make lmms-eval`.

python -m bench.lmms --venv build/lmms [--write]

A tiny LLaVA learns the embedded world's yes and no for some steps and is exported as a run exports; lmms-eval generates
and scores its answers to a task of four rows of our own, and must say what `mmfast eval` says, letter by letter and in
every figure. The venv takes 2.4 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.timing import machine, write_rows
from mmfast.config import build
from mmfast.engines.local import Local
from mmfast.evals.answering import ANSWERS, Asking, answer, asking
from mmfast.evals.layouts import read
from mmfast.evals.reading import SHORT
from mmfast.evals.scoring import score
from mmfast.job.runtime import join
from mmfast.train import train
from mmfast.world.models import tiny_model
from mmfast.world.scenes import COLOURS, SHAPES, render, scenes

PACKAGE, TORCH = "lmms-eval==0.7.3", "torch==2.13.0"
LEFT_OUT = ("torchvision", "timm", "qwen-vl-utils")  # of what it asks for: CUDA builds, or unread here
ADDED = ("decord", "filelock<4")
ROWS, STEPS = 4, 150
TASK, FIGURES = "mmfast_world", ("accuracy", "f1")
# A task is a file of settings and one of functions; the figures are POPE's of lmms-eval
SETTINGS = """dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
task: {task}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.shown
doc_to_text: !function functions.asked
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, num_beams: 1, do_sample: false}}
process_results: !function functions.marked
metric_list:
  - {{metric: pope_accuracy, aggregation: !function functions.accuracy, higher_is_better: true}}
  - {{metric: pope_f1_score, aggregation: !function functions.f1, higher_is_better: true}}
metadata: [{{version: 0.0}}]
"""
FUNCTIONS = """from lmms_eval.tasks.pope.utils import pope_aggregate_accuracy as accuracy
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score as f1
from lmms_eval.tasks.pope.utils import pope_process_results as marked
from PIL import Image


def shown(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def asked(doc, settings=None):
    return doc["question"]
"""


def set_up(venv: Path) -> None:
    """lmms-eval without its dependencies, then those of its own list that can be had and are read."""
    if (venv / ".done").exists():
        return
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--no-deps", PACKAGE], check=True)
    listed = subprocess.run(
        [str(python), "-c", "from importlib.metadata import requires; print('\\n'.join(requires('lmms-eval')))"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    wanted = [line for line in listed if line and "extra ==" not in line and not line.startswith(LEFT_OUT)]
    subprocess.run([*pip, TORCH, *wanted, *ADDED], check=True)
    (venv / ".done").touch()


def looked_at(folder: Path, split: str, number: int) -> Iterator[tuple[str, str, str]]:
    """(picture, question, yes or no), two of each picture, which is drawn here."""
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for place, scene in enumerate(scenes(0, split, number)):
        render(scene).save(folder / f"{scene.name}.png")
        absent = next(kind for kind in kinds[place % len(kinds) :] + kinds if kind not in scene.kinds)
        for (colour, shape), said in ((scene.things[0].kind, "yes"), (absent, "no")):
            article = "an" if colour[0] in "aeiou" else "a"
            yield f"{scene.name}.png", f"Is there {article} {colour} {shape} in the image?", said


def exported(folder: Path) -> Path:
    """A checkpoint as a run exports it, after some steps of such questions."""
    rows = []
    for picture, question, said in looked_at(folder, "train", 40):
        content = [{"type": "image"}, {"type": "text", "text": question + SHORT}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
        rows.append({"images": [picture], "messages": messages})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(tiny_model("llava", folder / "model", seed=3, size="world")), "dtype": "float32"},
        "data": {"path": str(folder / "rows.jsonl"), "cache": str(folder / "cache"), "workers": 0},
        "objective": {"kind": "sft"},
        "reference": {"kind": "none"},
        "optim": {"lr": 1e-3},
        "train": {"steps": STEPS, "pairs_per_step": 8, "checkpoint_every": 0},
        "export": {"formats": ["hf"]},
        "log": {"progress": False},
    }
    settings["model"]["freeze"] = []
    train(build(settings))
    return folder / "run" / "export" / "hf"


def task_of(folder: Path) -> Asking:
    """Four rows of POPE's layout, about pictures that the checkpoint has not seen."""
    folder.mkdir()
    names = ("image", "text", "label")
    rows = [dict(zip(names, row, strict=True)) for row in looked_at(folder, "test", ROWS // 2)]
    told = [{"question_id": n, "category": "random", **row} for n, row in enumerate(rows)]
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return asking("pope", folder)


def theirs(venv: Path, model: Path, asked: Asking, folder: Path) -> tuple[list[str], dict[str, float], float]:
    """(texts in the order of the rows, figures, seconds) of lmms-eval."""
    truths = {True: "yes", False: "no"}
    rows = [
        {"question_id": q.id, "image": q.images[0].source, "question": q.turns[0], "answer": truths[q.truth["yes"]]}
        for q in asked.questions
    ]
    home = folder / "task"
    home.mkdir()
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    filled = {"rows": home / "rows.jsonl", "task": TASK, "tokens": asked.decode.max_tokens}
    (home / f"{TASK}.yaml").write_text(SETTINGS.format(**filled))
    (home / "functions.py").write_text(FUNCTIONS)
    out, log = folder / "lmms", venv / "run.log"
    command = [str(venv / "bin" / "python"), "-m", "lmms_eval", "--model", "llava_hf", "--tasks", TASK]
    command += [
        "--model_args",
        f"pretrained={model},device=cpu,device_map=cpu,dtype=float32",
        "--include_path",
        str(home),
    ]
    command += ["--batch_size", "1", "--log_samples", "--output_path", str(out)]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
    }
    began = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | quiet)
    samples = sorted(out.rglob(f"*_samples_{TASK}.jsonl"))
    if done.returncode or not samples:
        sys.exit(f"lmms-eval did not finish:\n{log.read_text()[-6000:]}")
    told = sorted(map(json.loads, samples[-1].read_text().splitlines()), key=lambda row: row["doc_id"])
    (results,) = sorted(out.rglob("*_results.json"))[-1:]
    found = json.loads(results.read_text())["results"][TASK]
    figures = {name: found[f"pope_{name}_score,none" if name == "f1" else f"pope_{name},none"] for name in FIGURES}
    texts = [one if isinstance(one := row["filtered_resps"], str) else one[0] for row in told]
    return [text.strip() for text in texts], figures, time.perf_counter() - began  # ours have no blanks at their ends


def ours(model: Path, asked: Asking, folder: Path) -> tuple[list[str], dict[str, float]]:
    """The same of `mmfast eval`."""
    runtime = join()
    try:
        tally = answer(asked, folder / "ours", Local(str(model)), runtime, show=False)
    finally:
        runtime.close()
    assert not tally.failed, tally.lines()
    found = read(folder / "ours" / ANSWERS, asked.bench, asked.questions).answers
    metrics = score(asked.bench, folder / "ours", data=asked.data.folder).metrics
    return [found[q.id].text for q in asked.questions], metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path("build/lmms"))
    parser.add_argument("--write", action="store_true", help="append the row to bench/results/lmms.jsonl")
    given = parser.parse_args()
    set_up(given.venv)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = exported(folder)
        asked = task_of(folder / "pope")
        texts, metrics = ours(model, asked, folder)
        said, figures, seconds = theirs(given.venv, model, asked, folder)
    for q, mine, other in zip(asked.questions, texts, said, strict=True):
        print(f"{q.turns[0].splitlines()[0]:32} mmfast {mine!r:12} lmms-eval {other!r}")
    row: dict[str, Any] = {
        "op": "exported checkpoint",
        "peer": PACKAGE,
        "shape": f"pope: {ROWS} rows",
        "seconds": seconds,
    }
    row |= {"answers_equal": sum(a == b for a, b in zip(texts, said, strict=True)), "of": ROWS}
    row |= {name: [metrics[f"random.{name}"], figures[name]] for name in FIGURES}  # ours, theirs
    print(row)
    if given.write:
        write_rows(Path(__file__).parent / "results" / "lmms.jsonl", [row | machine()])
    if texts != said or any(abs(mine - other) > 1e-9 for mine, other in (row[name] for name in FIGURES)):
        sys.exit("the exported checkpoint answers otherwise in lmms-eval")


if __name__ == "__main__":
    main()
