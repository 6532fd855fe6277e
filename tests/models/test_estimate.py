"""The memory estimate against the bytes that are alive in a real step, and the plan report of a real config."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from mmfast.models import Lora, adapter_for, load
from mmfast.models.estimate import Live, Setting, estimate, training_cost
from mmfast.models.parallelize import checkpoint_blocks
from mmfast.packing import build_pack
from mmfast.training.forecast import plan, show
from mmfast.world import models as world
from tests.make.model_cases import everything
from tests.make.tiny_run import make_config, make_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def real_peak(scorer, pack) -> int:
    """Most bytes alive in the second step, optimiser state and pixels included."""
    trained = [p for p in scorer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    live = Live()
    for _ in range(2):
        live = Live()
        state = [v for values in optimizer.state.values() for v in values.values() if torch.is_tensor(v)]
        for t in (*scorer.parameters(), *state, *pack.images.values()):
            live.note(t)
        with live:
            scorer(pack).sum().backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return live.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8)])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_estimate_is_what_is_alive(family: str, lora: Lora | None, checkpointing: bool, folder: Path) -> None:
    path = folder / family
    if not path.exists():
        world.tiny_model(family, path, layers=4)
    case = everything(family, adapter_for(AutoConfig.from_pretrained(path)))
    layout = case.adapter.layout()
    sketch = load(str(path), dtype="float32", lora=lora, device="meta", random_weights=True)
    real = load(str(path), dtype="float32", lora=lora)
    if checkpointing:
        checkpoint_blocks(sketch)
        checkpoint_blocks(real)
    found = estimate(sketch, build_pack(case.examples, case.infos, layout), Setting())
    peak = real_peak(real, build_pack(case.examples, case.infos, layout, load_images=case.load_images))
    assert found.total - found.unreturned == pytest.approx(peak, rel=0.1)


def test_sharding_shrinks_what_is_sharded(folder: Path) -> None:
    path = folder / "llava"
    if not path.exists():
        world.tiny_model("llava", path, layers=4)
    scorer = load(str(path), dtype="float32", device="meta", random_weights=True)
    case = everything("llava", scorer.adapter)
    pack = build_pack(case.examples, case.infos, scorer.adapter.layout())
    whole = estimate(scorer, pack, Setting(wrapped=True))
    split = estimate(scorer, pack, Setting(wrapped=True, shards=8))
    assert split.optimiser == whole.optimiser // 8
    assert whole.gradients - split.gradients == whole.optimiser // 2 * 7 // 8  # the root's own stay whole for a while
    assert whole.weights // 8 < split.weights < whole.weights
    tower = sum(p.numel() for p in scorer.tower_parameters()) * 4  # frozen: every rank has it whole
    assert split.weights > tower + (whole.weights - tower) // 8
    assert split.activations == whole.activations
    gpu = estimate(scorer, pack, Setting(device="cuda", dtype=torch.bfloat16, wrapped=True))
    assert gpu.unreturned == 0 and gpu.activations < whole.activations
    offloaded = estimate(scorer, pack, Setting(wrapped=True, offload=True))
    assert offloaded.optimiser == 0 and offloaded.gradients < split.gradients  # what is gathered is on the device


def test_costs_follow_what_trains(folder: Path) -> None:
    path = folder / "llava"
    if not path.exists():
        world.tiny_model("llava", path, layers=4)
    full = training_cost(
        load(str(path), dtype="float32", device="meta", random_weights=True), checkpointing=False, cached_vision=False
    )
    lora = training_cost(
        load(str(path), dtype="float32", lora=Lora(r=4, alpha=8), device="meta", random_weights=True),
        checkpointing=False,
        cached_vision=True,
    )
    assert full.vision > 0 == lora.vision
    assert lora.attention > full.attention  # its linear layers skip the weight gradient
    # 2 against 3 passes of the head, and 2 against 3 of the layers, of which LoRA adds a little
    assert 0.8 < lora.head / full.head < 1


def test_the_report_of_a_config(folder: Path, capsys: pytest.CaptureFixture) -> None:
    model = make_model(folder, "llava") if not (folder / "llava").exists() else folder / "llava"
    config = make_config(folder, model, write_pairs(folder, 24))
    one, four = plan(config), plan(config, ranks=4)
    assert one.examples == 24 and one.steps_per_epoch == one.steps_planned == 6
    assert one.padding == 0 and one.balance == 1.0 and one.empty_packs == 0
    assert one.tokens < one.tokens_one_by_one == four.tokens_one_by_one
    assert one.largest_pack <= 400 and one.packs == round(one.micro_batches * 6)
    assert four.tokens > one.tokens and 0.5 < four.balance <= 1 and four.packs % 4 == 0
    assert sum(one.time_share.values()) == pytest.approx(1) and min(one.time_share.values()) > 0
    assert four.memory.optimiser < one.memory.optimiser
    assert one.as_dict()["memory"]["total"] == one.memory.total
    show(one)
    text = capsys.readouterr().out
    assert f"{one.tokens:,}" in text and "balance" in text and "activations" in text


@pytest.mark.slow
def test_the_estimate_is_near_resident_memory() -> None:
    """A 64M LLaVA trains in a process of its own; two minutes on one core."""
    command = [sys.executable, "-m", "bench.memory", "--only", "4 pairs, checkpointing"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[2])
    row = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 0.8 <= row["ratio"] <= 1.2
