"""Shards read straight from the files are what the whole model has, bit for bit, for every listed family."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.models.names import plain_name
from mmfast.models.parallelize import Parallel, make_mesh
from mmfast.models.sharded import draw_lora, load_sharded
from tests.make.rank_processes import run_ranks
from tests.make.tiny_run import make_model

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen", "beit3_llava")


def compare_whole(paths):
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())  # nothing may depend on a rank's own generator
    parallel = Parallel(shard="full", activation_checkpointing=True)
    mesh = make_mesh(parallel, "cpu", 2)
    for path in paths:
        for lora in (None, Lora(r=4, alpha=8)):
            options = {"freeze": ("vision",), "lora": lora}
            shards = load_sharded(path, parallel, mesh, device=torch.device("cpu"), dtype="float32", seed=3, **options)
            whole = load(str(path), dtype="float32", **options)
            if lora:
                draw_lora(whole, 3)
            found = {plain_name(name): p for name, p in shards.named_parameters()}
            expected = dict(whole.named_parameters())
            assert found.keys() == expected.keys()
            assert any(isinstance(p, DTensor) for p in found.values())
            for name, p in expected.items():
                value = found[name].full_tensor() if isinstance(found[name], DTensor) else found[name]
                assert torch.equal(value, p), (path, name)
                assert found[name].requires_grad == p.requires_grad and value.dtype == p.dtype
            buffers = {plain_name(name): b for name, b in shards.named_buffers()}
            for name, b in whole.named_buffers():
                assert torch.equal(buffers[name], b), (path, name)
    dist.destroy_process_group()


def test_every_family(tmp_path):
    run_ranks(2, tmp_path, compare_whole, [make_model(tmp_path, family) for family in FAMILIES])


def test_a_fresh_adapter_follows_the_seed(tmp_path):
    path = make_model(tmp_path, "llava")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(drawn))
        scorer = load(str(path), dtype="float32", lora=Lora(r=4, alpha=8))
        draw_lora(scorer, seed)
        drawn.append({n: p.clone() for n, p in scorer.named_parameters() if "lora_" in n})
    assert all(torch.equal(drawn[0][n], drawn[1][n]) for n in drawn[0])
    pairs = [(drawn[0][n], drawn[2][n]) for n in drawn[0] if "lora_A" in n]
    assert not any(torch.equal(a, b) for a, b in pairs)
    spread = max(float(a.abs().max()) * a.shape[1] ** 0.5 for a, _ in pairs)
    assert spread == pytest.approx(1.0, abs=0.05)
    assert all(not p.any() for n, p in drawn[0].items() if "lora_B" in n)
