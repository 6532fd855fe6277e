"""examples/: each file is under 60 lines, runs as it stands and does what it says; docs/packing.md quotes one."""

import json
import math
import re
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mmfast.families import family_of
from mmfast.packing import Pack

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example as `python examples/NAME.py` does; what it printed, and its globals."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    family_of.cache_clear()
    threads = torch.get_num_threads()

    def example(name: str) -> tuple[str, dict]:
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, names

    yield example
    torch.set_num_threads(threads)
    for name in [n for n in sys.modules if n.split(".")[0] == "mmfast_families"]:
        del sys.modules[name]
    family_of.cache_clear()


def numbers(text: str, name: str = "loss") -> list[float]:
    return [float(x) for x in re.findall(rf"{name} (-?[\d.]+\d)", text)]


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_is_short_and_run_here():
    there = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: lines for name, lines in there.items() if lines >= 60} == {}
    told = set(re.findall(r'run\("(\w+)"\)', Path(__file__).read_text()))
    assert told == set(there)


def test_the_ops_train_in_a_plain_loop(run):
    imported = re.findall(r"(?:from|import) (mmfast[\w.]*)", (EXAMPLES / "ops_in_a_trainer.py").read_text())
    assert imported == ["mmfast.ops"]
    out, _ = run("ops_in_a_trainer")
    losses = numbers(out)
    assert len(losses) == 10 and losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < 0.5 * losses[0]


def test_packs_train_in_a_plain_loop(run):
    """At zero margin the loss of a step is ln 2, in however many packs; later epochs are below it."""
    out, names = run("packing_loop")
    plan, losses = names["plan"], {}
    for epoch, step, loss in re.findall(r"epoch (\d) step (\d) micro-batch \d: loss ([\d.]+)", out):
        losses.setdefault(int(epoch), {}).setdefault(step, []).append(float(loss))
    assert set(losses) == {0, 1, 2} and plan.steps_per_epoch == len(losses[0]) > 1
    assert sum(losses[0]["0"]) == pytest.approx(math.log(2), abs=2e-4)
    assert sum(map(sum, losses[2].values())) < 0.8 * sum(map(sum, losses[0].values()))
    keys = {key for sides in names["examples"].symbols.named() for key in sides}
    assert set(names["reference"]) == keys, "each response was scored once"


def test_the_page_on_packing_quotes_its_example():
    file = (EXAMPLES / "packing_loop.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "packing.md").read_text(), re.S)
    assert blocks and [block for block in blocks if block not in file] == []


def test_an_objective_of_ones_own_trains(run):
    out, names = run("own_objective")
    first, *_, last = rows(out)
    assert last["loss"] < first["loss"] and set(first) > {"rewards/accuracies", "rewards/margins", "grad_norm"}
    assert not (names["folder"] / ".cache" / "reference").exists(), "no reference log-probs are made"
    empty = torch.zeros(0, dtype=torch.int64)
    bounds = torch.zeros(1, dtype=torch.int32)
    nothing = {name: empty for name in ("tokens", "features", "positions", "k_index", "k_copies", "rows", "targets")}
    pack = Pack(
        **nothing, index=empty, q_offsets=bounds, k_offsets=bounds, k_copy_offsets=bounds, max_q=0, max_k=0,
        responses=bounds, weights=torch.zeros(0), ref_logps=None, pairs=empty.reshape(0, 2), pair_weights=None,
        normaliser=4.0,
    )  # fmt: skip
    logps = torch.zeros(0, requires_grad=True)
    loss, sums = names["Ranking"](0.5)(logps, pack)
    loss.backward()
    assert loss.item() == 0 and sums.tolist() == [0.0] * 4, "a rank whose pack is empty takes part"


def test_a_family_of_ones_own_trains(run):
    out, names = run("own_family")
    first, *_, last = rows(out)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3) and last["loss"] < first["loss"]
    assert first["sharing"] > 0.3, "proven at load, so prefixes are shared"
    assert type(family_of("vipllava")).__name__ == "type" and family_of("vipllava").__name__ == "VipLlava"
    assert names["config"].model_type == "vipllava"
