"""What a run writes to its terminal, from the first line to the last: nothing of other packages."""

import re
import subprocess
import sys

import pytest

from mmfast.cli import main
from mmfast.config import dump
from mmfast.job.rows import read
from mmfast.train import train
from mmfast.training.collapse import signs_of
from mmfast.training.following import Following
from tests.make.tiny_run import make_config, write_pairs

OWN = (
    r"\d+ examples from \d+ rows",
    r"reference: \d+ examples to score into \S+",
    r"step 0: loss [\d.]+, at zero margin [\d.]+; the largest margin of a pair is \S+ nat",
    r"\d+ pairs, 4 pairs a step: 2 steps, 0.333 epochs",
    r"step \d/2(, about \d+ s left)?  loss \S+  acc \S+  margin \S+  tok/s \S+",
    r"step 2, held out: loss \S+, accuracy \S+, margin \S+",
    r"finished: step 2, 2 of them in this start, \d+ s",
    r"  (training|held out|exported|checkpoint|report|next) +\S.*",
)


def test_a_run_without_a_terminal_writes_plain_lines_of_its_own_alone(tiny, tmp_path):
    """With what calls for noise: LoRA (peft and transformers), bf16 (FSDP2), checkpoints, generation, an export."""
    more = {
        "model.dtype": "bfloat16",
        "model.lora": {"r": 4, "alpha": 8.0},
        "data.eval_path": str(write_pairs(tmp_path, 4, name="held.jsonl", split="test")),
        "train.eval_samples": 2,
        "train.eval_tokens": 4,
        "train.steps": 2,
        "export.formats": ["peft"],
        "log.progress": True,
    }
    (tmp_path / "my.toml").write_text(dump(make_config(tmp_path, *tiny, **more)))
    done = subprocess.run(
        [sys.executable, "-m", "mmfast.cli", "train", str(tmp_path / "my.toml")], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line for line in lines if not any(re.fullmatch(one, line) for one in OWN)] == []
    assert [line.split()[0] for line in lines[-7:]] == [
        *("finished:", "training", "held", "exported", "checkpoint", "report", "next")
    ]


@pytest.mark.parametrize("rate", [1e-3, 0.3])
def test_a_run_that_goes_wrong_says_so_and_a_good_one_does_not(rate, tiny, tmp_path, capsys):
    train(make_config(tmp_path, *tiny, **{"train.steps": 6, "optim.lr": rate, "optim.clip": 0.0}))
    said, bad = capsys.readouterr().err, rate > 0.1
    warned = re.findall(r"^warning: step (\d): the chosen answers lose probability: their log-prob fell", said, re.M)
    assert [int(step) for step in warned] == [sign.step for sign in signs_of(tmp_path / "run")]
    assert len(warned) == bad and ("  warnings   chosen (step" in said) == bad
    chosen = [row["logps/chosen"] for row in read(tmp_path / "run" / "metrics.jsonl")]
    assert (chosen[-1] < 2 * chosen[0]) == bad
    assert ("the chosen answers lose probability" in (tmp_path / "run" / "report.html").read_text()) == bad


def test_a_run_that_cannot_go_on_ends_its_bar_and_says_why_in_one_line(tiny, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Following, "close", lambda self: closed.append(self))
    more = {"train.steps": 6, "optim.lr": 1e4, "optim.clip": 0.0, "log.progress": True, "train.nonfinite_limit": 2}
    (tmp_path / "my.toml").write_text(dump(make_config(tmp_path, *tiny, **more)))
    monkeypatch.setattr(sys, "argv", ["mmfast", "train", str(tmp_path / "my.toml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith("mmfast: 2 steps in a row turned non-finite (train.nonfinite_limit), the last")
    assert "\n" not in str(ended.value) and len(closed) == 1
