"""Models that are not on the list prove themselves; those that cannot share say why and run one sequence at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

from mmfast.families.generic import Generic
from mmfast.models import Lora, Scorer, adapter_for, load, prove
from mmfast.models.attention import attention
from mmfast.models.proof import refused_by_config
from mmfast.packing import build_pack
from mmfast.world import models as world
from tests.make.model_cases import Case, everything, image_processor
from tests.models.test_exact import compare


def tiny_text(kind: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(hf, kind)(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.1, pad_token_id=0, **changes,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


TEXT = {
    "sliding window": ("MistralConfig", {"sliding_window": 5}),
    "sliding and full layers, scaled embeddings, two rotary bases": (
        "Gemma3TextConfig",
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "biases": ("Qwen2Config", {}),
}


@pytest.mark.parametrize("name", TEXT)
def test_an_unlisted_text_model_shares(name):
    kind, changes = TEXT[name]
    model = tiny_text(kind, **changes)
    plain = copy.deepcopy(model)
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("text", scorer.adapter)
    assert prove(scorer, case.examples, case.infos, case.load_images) == ""
    compare(case, scorer, plain, losses=("averaged ddpo",))


def test_gemma_3s_mask_over_images_refuses_sharing_and_runs_unshared():
    model = world.build("gemma3")[0]
    plain = copy.deepcopy(model)
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("gemma3", scorer.adapter)
    why = prove(scorer, case.examples, case.infos, case.load_images)
    assert "mask is not causal" in why and not scorer.shared
    compare(case, scorer, plain, losses=("averaged ddpo",))


def test_the_comparison_alone_finds_it_too(monkeypatch):
    monkeypatch.setattr("mmfast.models.proof.refused_by_mask", lambda *_: "")
    model = world.build("gemma3")[0]
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("gemma3", scorer.adapter)
    assert "log-prob differs by" in prove(scorer, case.examples, case.infos, case.load_images)


def test_attention_with_a_softcap_refuses_sharing_and_says_so():
    model = tiny_text("Gemma2Config", sliding_window=5, query_pre_attn_scalar=16)
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("text", scorer.adapter)
    assert "softcap" in prove(scorer, case.examples, case.infos, case.load_images)
    pack = build_pack(case.examples, case.infos, scorer.adapter.layout(share=False))
    assert scorer(pack).shape == pack.targets.shape


def test_linear_attention_layers_refuse_sharing_by_their_config():
    model = tiny_text("Qwen2Config")
    scorer = Scorer(model, adapter_for(model.config))
    assert refused_by_config(scorer) == ""
    scorer.adapter.text_config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in refused_by_config(scorer)


def test_a_model_that_is_wrong_even_alone_is_refused_altogether():
    model = tiny_text("Qwen2Config")
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("text", scorer.adapter)
    norm = scorer.decoder.norm
    calls = []

    def lie(module, args, output):
        calls.append(1)
        return output * (1 + 0.5 * len(calls))

    norm.register_forward_hook(lie)
    with pytest.raises(ValueError, match="cannot be trained"):
        prove(scorer, case.examples, case.infos, case.load_images)


def test_log_probs_that_are_no_numbers_prove_nothing():
    model = tiny_text("Qwen2Config")
    scorer = Scorer(model, adapter_for(model.config))
    case = everything("text", scorer.adapter)
    scorer.decoder.norm.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(ValueError, match=r"cannot be trained: .* differs by nan"):
        prove(scorer, case.examples, case.infos, case.load_images)


def test_tree_attention_without_a_tree_raises_and_generation_is_plain():
    model = world.build("llava")[0]
    scorer = Scorer(model, adapter_for(model.config))
    ids = torch.tensor([[1, 50, 60, 70]])
    with pytest.raises(ValueError, match="without a tree"):
        model(input_ids=ids)
    with attention(scorer.decoder.config, scorer.own_attention):
        out = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > 4
    with pytest.raises(ValueError, match="without a tree"):
        model(input_ids=ids)


def test_the_proof_wants_an_image_of_a_model_that_sees():
    model = world.build("gemma3")[0]
    scorer = Scorer(model, adapter_for(model.config))
    case = Case("gemma3", scorer.adapter)
    case.pair(case.prompt(), [30, 31], [32])
    with pytest.raises(ValueError, match="needs an example with an image"):
        prove(scorer, case.examples, case.infos, case.load_images)


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_the_proof_runs_in_bf16_before_the_masters_are_cast(lora, tmp_path):
    scorer = load(str(world.tiny_model("gemma3", tmp_path)), dtype="bfloat16", lora=lora)
    dtypes = [p.dtype for p in scorer.parameters()]
    assert {torch.float32, torch.bfloat16} == set(dtypes)
    case = everything("gemma3", scorer.adapter)
    assert "mask is not causal" in prove(scorer, case.examples, case.infos, case.load_images)
    assert dtypes == [p.dtype for p in scorer.parameters()] and scorer.training


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_vlm_through_the_generic_adapter_shares(family):
    model = world.build(family)[0]
    plain = copy.deepcopy(model)
    scorer = Scorer(model, Generic(model.config))
    case = everything(family, adapter_for(model.config))
    case.load_images = lambda names: raw_images(case, names)  # nothing is prepared for a tower that is not known
    assert prove(scorer, case.examples, case.infos, case.load_images) == ""
    compare(case, scorer, plain, losses=("averaged ddpo",))


def test_deepstack_is_too_much_for_the_generic_adapter():
    model = world.build("qwen3_vl")[0]
    scorer = Scorer(model, Generic(model.config))
    case = everything("qwen3_vl", adapter_for(model.config))
    with pytest.raises(ValueError, match="cannot be trained"):
        prove(scorer, case.examples, case.infos, lambda names: raw_images(case, names))


def raw_images(case: Case, names: list[str]) -> dict[str, torch.Tensor]:
    inputs = image_processor(case.family)([case.pictures[n] for n in names], return_tensors="pt")
    return {n: inputs[n] for n in ("pixel_values", "image_sizes", "image_grid_thw") if n in inputs}
