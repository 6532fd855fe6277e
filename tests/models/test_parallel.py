"""Two gloo ranks: the gradient of a step equals that of one process, whatever the ranks' packs hold."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmfast.models import Lora, Parallel, Scorer, load, make_mesh, parallelize
from mmfast.models.parallelize import mesh_shape
from mmfast.packing import Pack, build_pack
from mmfast.world import models as world
from tests.make.model_cases import Case

# family, parts frozen, LoRA, arrangement
SETUPS = {
    "full, frozen tower": ("llava", ("vision",), None, Parallel(shard="full")),
    "everything trains": ("qwen2_5_vl", (), None, Parallel(shard="full")),
    "a model of our own, all of it": ("qwen", (), None, Parallel(shard="full")),
    "replicas": ("qwen2_vl", ("vision",), None, Parallel(shard="none", activation_checkpointing=False)),
    "a trained branch in a frozen tower": ("beit3_llava", ("vision",), None, Parallel(shard="full")),
    "the same beside LoRA": ("beit3_llava", ("vision",), Lora(r=4, alpha=8), Parallel(shard="hybrid", shard_size=2)),
    "LoRA and a trained projector": (
        "qwen3_vl",
        ("vision",),
        Lora(r=4, alpha=8),
        Parallel(shard="hybrid", shard_size=2),
    ),
}


def packs(family: str, scorer: Scorer) -> list[list[Pack]]:
    """[step][rank]: with images beside text only, beside nothing, and nothing on both."""
    case = Case(family, scorer.adapter)
    case.pair(case.prompt(case.picture()), case.words(2, 4), case.words(2, 4))
    case.pair(case.prompt(), case.words(2, 4), case.words(2, 4))
    layout = scorer.adapter.layout()
    image, text = (build_pack([e], case.infos, layout, load_images=case.load_images) for e in case.examples)
    empty = build_pack([], case.infos, layout)
    return [[image, text], [empty, image], [text, empty], [empty, empty]]


def step(scorer: Scorer, pack: Pack) -> None:
    logps = scorer(pack)
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()


def gradients(scorer: Scorer) -> dict[str, torch.Tensor]:
    found = {}
    for name, p in scorer.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            found[name.replace("_checkpoint_wrapped_module.", "")] = grad.clone()
    return found


def fresh(path: str, freeze: tuple[str, ...], lora: Lora | None) -> Scorer:
    torch.manual_seed(0)
    scorer = load(path, dtype="float32", freeze=freeze, lora=lora)
    for key, p in scorer.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p.data, 0, 0.1)
    return scorer


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, (family, freeze, lora, parallel) in SETUPS.items():
        scorer, plain = (fresh(f"{folder}/{family}", freeze, lora) for _ in range(2))
        parallelize(scorer, parallel, make_mesh(parallel, "cpu", local=2), torch.float32)
        for number, pair in enumerate(packs(family, plain)):
            scorer.zero_grad()
            plain.zero_grad()
            step(scorer, pair[rank])
            for pack in pair:
                step(plain, pack)
            got, want = gradients(scorer), gradients(plain)
            assert got.keys() == want.keys()
            scale = max(g.norm() for g in want.values())
            for key in want:
                gap = (got[key] - want[key]).norm()
                assert gap <= 1e-4 * want[key].norm() + 1e-6 * scale, (name, number, key, gap, want[key].norm())
            assert number == 3 or scale > 1e-3
    dist.destroy_process_group()


def test_two_ranks_sum_to_one(tmp_path):
    for family in {setup[0] for setup in SETUPS.values()}:
        world.tiny_model(family, tmp_path / family)
    with tempfile.TemporaryDirectory() as folder:
        for family in {setup[0] for setup in SETUPS.values()}:
            os.symlink(tmp_path / family, f"{folder}/{family}")
        mp.spawn(rank_main, args=(folder,), nprocs=2)


def test_mesh_shapes_and_what_they_refuse():
    assert mesh_shape(Parallel(shard="full"), 8, 4) == (1, 8)
    assert mesh_shape(Parallel(shard="none"), 8, 4) == (8, 1)
    assert mesh_shape(Parallel(shard="hybrid"), 8, 4) == (2, 4)
    assert mesh_shape(Parallel(shard="hybrid", shard_size=2), 8, 4) == (4, 2)
    for parallel, message in (
        (Parallel(shard="hybrid", shard_size=3), "does not divide"),
        (Parallel(shard="full", shard_size=2), 'is for shard = "hybrid"'),
    ):
        with pytest.raises(ValueError, match=message):
            mesh_shape(parallel, 8, 4)
    with pytest.raises(ValueError, match="'full', 'hybrid' or 'none'"):
        Parallel(shard="zero")
