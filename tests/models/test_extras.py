"""What training adds: empty packs, torch.compile, fp32 masters, what is frozen, what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter

from mmfast.models import Lora, Parallel, Scorer, adapter_for, load, make_mesh, parallelize
from mmfast.packing import build_pack
from mmfast.world import models as world
from tests.make.model_cases import Case, everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for family in ("llava", "qwen2_5_vl", "qwen3_vl"):
        world.tiny_model(family, path / family)
    return path


def one_pack(scorer: Scorer, seed: int = 0, empty: bool = False):
    case = everything(scorer.adapter.config.model_type, scorer.adapter, seed)
    examples = [] if empty else case.examples
    return build_pack(examples, case.infos, scorer.adapter.layout(), load_images=case.load_images)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_an_empty_pack_gives_a_gradient_of_zero_to_all_that_a_full_one_trains(folder, family):
    scorer = load(str(folder / family), dtype="float32", freeze=())
    scorer(one_pack(scorer)).sum().backward()
    trained = [n for n, p in scorer.named_parameters() if p.grad is not None]  # LLaVA leaves its last tower block out
    scorer.zero_grad()
    logps = scorer(one_pack(scorer, empty=True))
    assert logps.shape == (0,)
    logps.sum().backward()
    assert trained == [n for n, p in scorer.named_parameters() if p.grad is not None]
    assert not any(p.grad.any() for p in scorer.parameters() if p.grad is not None)


def test_entropy_is_that_of_the_same_rows(folder):
    scorer = load(str(folder / "llava"), dtype="float32")
    pack = one_pack(scorer)
    logps, entropy = scorer(pack, return_entropy=True)
    with torch.no_grad():
        head = scorer.model.get_output_embeddings()
        expected = torch.distributions.Categorical(logits=head(scorer.hidden_states(pack)[pack.rows]))
    assert torch.allclose(entropy, expected.entropy(), atol=1e-4)
    assert torch.allclose(logps, expected.log_prob(pack.targets), atol=1e-5)


def test_compiled_blocks_agree_and_are_compiled_once(folder, monkeypatch):
    counter = CompileCounter()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend=counter, **options))
    scorer = load(str(folder / "qwen3_vl"), dtype="float32")
    plain = load(str(folder / "qwen3_vl"), dtype="float32")
    parallelize(scorer, Parallel(compile=True), None, torch.float32)
    torch._dynamo.reset()
    seen = []
    for seed in range(3):
        pack = one_pack(scorer, seed, empty=seed == 1)
        got, want = scorer(pack), plain(pack)
        assert torch.allclose(got, want, atol=1e-5)
        got.sum().backward()
        seen.append(counter.frame_count)
    assert seen[0] > 0 and seen[-1] == seen[0], f"compiled again from step to step: {seen}"


def test_masters_are_fp32_and_the_forward_bf16(folder):
    scorer = load(str(folder / "llava"), dtype="bfloat16")
    exact = load(str(folder / "llava"), dtype="float32")
    with pytest.raises(ValueError, match="needs a process group"):
        parallelize(scorer, Parallel(), None, torch.bfloat16)
    scorer = load(str(folder / "llava"), dtype="bfloat16")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallelize(scorer, Parallel(), make_mesh(Parallel(), "cpu", local=1), torch.bfloat16)
        pack = one_pack(scorer)
        dtypes = []
        scorer.decoder.norm.register_forward_hook(lambda m, a, out: dtypes.append(out.dtype))
        logps, expected = scorer(pack), exact(pack)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        (expected * torch.linspace(-1, 1, len(logps))).sum().backward()
        assert dtypes == [torch.bfloat16] and logps.dtype == torch.float32
        assert 1e-6 < (logps - expected).abs().max() < 0.3
        want = {n: p.grad for n, p in exact.named_parameters() if p.requires_grad}
        for name, p in scorer.named_parameters():
            if p.requires_grad:
                assert p.dtype == p.grad.dtype == torch.float32, name
                grad, other = p.grad.full_tensor(), want[name.replace("_checkpoint_wrapped_module.", "")]
                assert torch.cosine_similarity(grad.flatten(), other.flatten(), dim=0) > 0.98, name
            else:
                assert p.dtype == torch.bfloat16, name
    finally:
        dist.destroy_process_group()


def test_masters_are_the_checkpoints_own_values(tmp_path):
    path = str(world.tiny_model("llava", tmp_path))  # written in fp32
    scorer, exact = load(path, dtype="bfloat16"), load(path, dtype="float32")
    for (name, p), q in zip(scorer.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(p, q if p.requires_grad else q.bfloat16()), name


def names_that_train(scorer: Scorer) -> list[str]:
    return [
        n.replace("_checkpoint_wrapped_module.", "").removeprefix("model.")
        for n, p in scorer.named_parameters()
        if p.requires_grad
    ]


def test_what_trains_is_what_is_not_frozen(folder):
    for family, merger in (("llava", "multi_modal_projector"), ("qwen3_vl", "merger")):
        path = str(folder / family)
        names = names_that_train(load(path))
        assert not any("vis" in n and merger not in n for n in names)
        assert any(merger in n for n in names) and "lm_head.weight" in names
        assert not any(merger in n for n in names_that_train(load(path, freeze=("vision", "projector"))))
        only = names_that_train(load(path, freeze=("vision", "language")))
        assert only and all(merger in n for n in only)
        lora = names_that_train(load(path, lora=Lora(r=4)))
        assert all("lora_" in n or merger in n for n in lora) and any(merger in n for n in lora)
        assert not any("vis" in n and "lora_" in n for n in lora)
        both = names_that_train(load(path, lora=Lora(r=4, targets=("q_proj", "v_proj"), vision=True)))
        assert not any("k_proj" in n for n in both)
        lora = names_that_train(load(path, lora=Lora(r=4), freeze=("vision", "projector")))
        assert all("lora_" in n for n in lora)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": ("eyes",)}, "'eyes' is not a part"),
        ({"quantize": "nf4"}, "needs \\[model.lora\\]"),
        ({"quantize": "int3", "lora": Lora()}, "'int3' is unknown"),
        ({"attention": "flash9"}, "'flash9' is unknown; choose auto"),
        ({"freeze": (), "cached_vision": True}, "needs a frozen tower"),
        ({"lora": Lora(targets=("qq_proj",))}, "no linear layer 'qq_proj'; this model has down_proj"),
    ],
)
def test_mistakes_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load(str(folder / "llava"), **changes)


def test_a_trained_adapter_is_loaded_and_trains_on(folder, tmp_path):
    first = load(str(folder / "llava"), dtype="float32", lora=Lora(r=4))
    for name, p in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, 0, 0.1)
    first.peft[0].save_pretrained(tmp_path)
    second = load(str(folder / "llava"), dtype="float32", adapter=str(tmp_path))
    assert names_that_train(first) == names_that_train(second)
    pack = one_pack(first)
    assert torch.equal(first(pack), second(pack))


def test_images_are_prepared_in_the_worker_and_only_there():
    model = world.build("qwen2_5_vl")[0]
    adapter = adapter_for(model.config)
    case = Case("qwen2_5_vl", adapter)
    images = case.load_images([case.picture(), case.picture()])
    assert adapter.prepare(images) is images and images["max_seqlen"].numel() == 0


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_4_bit_base_takes_steps(folder, family):
    scorer = load(str(folder / family), dtype="float32", lora=Lora(r=4, alpha=8), quantize="nf4")
    whole = load(str(folder / family), dtype="float32", lora=Lora(r=4, alpha=8))
    layer = scorer.adapter.layers(scorer.model)[0]
    assert layer.mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert scorer.model.get_output_embeddings().weight.dtype == torch.float32
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallelize(scorer, Parallel(), make_mesh(Parallel(), "cpu", local=1), torch.float32)
        pack = one_pack(scorer)
        logps = scorer(pack)
        assert 1e-4 < (logps - whole(pack)).abs().mean() < 1.0
        logps.sum().backward()
        assert names_that_train(scorer) == names_that_train(whole)
        assert all(p.grad is not None for p in scorer.parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()
