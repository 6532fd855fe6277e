"""Qwen-VL's own model: its decoder beside Qwen2's with the same weights, its tower beside one written out in float64,
its names and sizes beside the released files', and the originals' outputs where MMFAST_BASES names a folder that holds
them."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmfast.data.images.processor import ImageProcessor
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.families import adapter_for, drawn_config, model_class
from mmfast.families.qwen.model import Tower, resized, sines
from mmfast.models import Lora, Scorer, load
from mmfast.models.estimate import Setting, vision_bytes
from mmfast.packing import Plan, PlanSettings, build_pack
from mmfast.training.recipes import published
from tests.make.qwen_files import IMAGE_START, tiny

LORA = ("c_attn", "attn.c_proj", "w1", "w2")  # DGPref's


def golden(*names: str) -> list[Path]:
    """Files of what the originals compute; skips where they are not here."""
    folder = Path(os.environ.get("MMFAST_BASES", "")) / "golden" / "qwen_vl"
    if "MMFAST_BASES" not in os.environ or not all((folder / name).exists() for name in names):
        pytest.skip("MMFAST_BASES names no folder with golden/qwen_vl")
    return [folder / name for name in names]


# the decoder


def twin(model, base: float = 10000.0):
    """Qwen2ForCausalLM with the same weights."""
    c = model.config
    config = hf.Qwen2Config(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size // 2,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_attention_heads, rms_norm_eps=c.layer_norm_epsilon, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": base}, tie_word_embeddings=False,
    )  # fmt: skip
    own, out = model.state_dict(), hf.Qwen2ForCausalLM(config)
    names = {"wte.weight": "embed_tokens.weight", "ln_f.weight": "norm.weight"}
    state = {f"model.{theirs}": own[f"transformer.{ours}"] for ours, theirs in names.items()}
    parts = {
        "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
        "mlp.w2": "mlp.gate_proj", "mlp.w1": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
    }  # fmt: skip
    for n in range(c.num_hidden_layers):
        for ours, theirs in parts.items():
            state[f"model.layers.{n}.{theirs}.weight"] = own[f"transformer.h.{n}.{ours}.weight"]
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", own[f"transformer.h.{n}.attn.c_attn.{kind}"].chunk(3), strict=True):
                state[f"model.layers.{n}.self_attn.{letter}_proj.{kind}"] = part
    out.load_state_dict(state | {"lm_head.weight": own["lm_head.weight"]})
    return out.eval()


def words(length: int, rows: int = 2) -> Tensor:
    return torch.randint(20, 290, (rows, length), generator=torch.Generator().manual_seed(length))


def test_the_decoder_is_qwen2s_with_one_layer_for_q_k_and_v():
    model, ids = tiny(), words(24)
    other = twin(model)
    found, expected = (m(input_ids=ids, labels=ids) for m in (model, other))
    assert (found.logits - expected.logits).abs().max() < 1e-5
    found.loss.backward()
    expected.loss.backward()
    for n in range(2):
        attention = other.model.layers[n].self_attn
        for kind in ("weight", "bias"):
            want = torch.cat([getattr(attention, f"{x}_proj").get_parameter(kind).grad for x in "qkv"])
            got = model.transformer.h[n].attn.c_attn.get_parameter(kind).grad
            assert (got - want).norm() < 1e-4 * want.norm(), kind
        want = other.model.layers[n].mlp.gate_proj.weight.grad
        assert (model.transformer.h[n].mlp.w2.weight.grad - want).norm() < 1e-4 * want.norm()


def longer(length: int, trained: int) -> int:
    """By what the rotary base grows, in the paper's words: doubled length by doubled length."""
    alpha = 1
    while trained < length:
        trained, alpha = trained * 2, alpha * 2 + 1
    return alpha


def scaled_queries(module, query, key, value, mask, **more):
    """sdpa, each query times log(its place) to the base of 8."""
    first = key.shape[2] - query.shape[2]
    places = torch.arange(first + 1, key.shape[2] + 1)
    return sdpa_attention_forward(
        module, query * (places.log() / math.log(8)).clamp(min=1)[:, None], key, value, mask, **more
    )


hf.AttentionInterface.register("scaled_queries", scaled_queries)
hf.AttentionMaskInterface.register("scaled_queries", hf.masking_utils.sdpa_mask)


@pytest.mark.parametrize("length", [8, 9, 16, 20])
def test_past_the_trained_length_the_base_grows_and_queries_are_scaled_outside_training_alone(length):
    model, ids = tiny(seq_length=8), words(length)
    alpha = longer(length, 8)
    other = twin(model, 10000.0 * alpha ** (32 / 30))
    other.config._attn_implementation = "scaled_queries"
    with torch.no_grad():
        assert (model(ids).logits - other(ids).logits).abs().max() < 1e-5
        found = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert torch.equal(found, other.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0))
        assert (model.train()(ids).logits - twin(model)(ids).logits).abs().max() < 1e-5
    assert alpha == {8: 1, 9: 3, 16: 3, 20: 7}[length]


# the tower


def plain_tower(state: dict[str, Tensor], pixels: Tensor, heads: int, pool_heads: int) -> Tensor:
    """One image, in float64, patch by patch and head by head."""
    w = {key: t.double() for key, t in state.items()}
    (wide, _, patch, _), side = w["conv1.weight"].shape, pixels.shape[-1] // w["conv1.weight"].shape[-1]

    def norm(x: Tensor, name: str) -> Tensor:
        spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def grown(table: Tensor) -> Tensor:
        edge = math.isqrt(len(table))
        square = table.T.reshape(1, -1, edge, edge)
        square = F.interpolate(square.float(), (side, side), mode="bicubic", align_corners=False).double()
        return torch.stack([square[0, :, y, x] for y in range(side) for x in range(side)])

    def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T * q.shape[1] ** -0.5).softmax(-1) @ v

    cut = [
        pixels[:, y : y + patch, x : x + patch]
        for y in range(0, side * patch, patch)
        for x in range(0, side * patch, patch)
    ]
    rows = torch.stack([(w["conv1.weight"] * c.double()).sum((1, 2, 3)) for c in cut])
    rows = norm(rows + grown(w["positional_embedding"]), "ln_pre")
    number = 0
    while (name := f"transformer.resblocks.{number}") + ".ln_1.weight" in w:
        both = norm(rows, f"{name}.ln_1") @ w[f"{name}.attn.in_proj.weight"].T + w[f"{name}.attn.in_proj.bias"]
        size = wide // heads
        each = [both[:, 3 * size * h : 3 * size * (h + 1)] for h in range(heads)]
        seen = torch.cat([look(e[:, :size], e[:, size : 2 * size], e[:, 2 * size :]) for e in each], 1)
        rows = rows + seen @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
        inner = norm(rows, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        rows = rows + inner @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
        number += 1
    values = norm(rows @ w["attn_pool.kv_proj.weight"].T, "attn_pool.ln_kv")
    queries = norm(w["attn_pool.query"], "attn_pool.ln_q") + w["attn_pool.pos_embed"]
    keys = values + grown(w["attn_pool.pos_embed"])
    parts = zip(w["attn_pool.attn.in_proj_weight"].chunk(3), w["attn_pool.attn.in_proj_bias"].chunk(3), strict=True)
    q, k, v = (x @ weight.T + bias for x, (weight, bias) in zip((queries, keys, values), parts, strict=True))
    each = zip(*(t.chunk(pool_heads, 1) for t in (q, k, v)), strict=True)
    pooled = torch.cat([look(*head) for head in each], 1)
    pooled = pooled @ w["attn_pool.attn.out_proj.weight"].T + w["attn_pool.attn.out_proj.bias"]
    return norm(pooled, "ln_post") @ w["proj"]


def test_the_tower_is_what_it_says():
    model = tiny()
    visual = model.transformer.visual
    visual.attn_pool.pos_embed.normal_(0, 0.3)  # a table of sines would hide a swap of its halves
    pixels = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    found = visual(pixels)
    for image, rows in zip(pixels, found, strict=True):
        assert (rows - plain_tower(visual.state_dict(), image, 2, 1)).abs().max() < 1e-5
    two = tiny(hidden_size=256, kv_channels=64, visual={**model.config.visual, "output_dim": 256}).transformer.visual
    assert two.attn_pool.attn.num_heads == 2, "a head of the pool is 128 wide"
    assert (two(pixels)[0] - plain_tower(two.state_dict(), pixels[0], 2, 2)).abs().max() < 1e-5


def test_the_pools_table_is_no_parameter_and_survives_saving(tmp_path):
    model = tiny()
    pool = model.transformer.visual.attn_pool
    assert torch.equal(pool.pos_embed, sines(16, 128)) and "pos_embed" not in dict(pool.named_parameters())
    assert pool.pos_embed[0, :64].eq(torch.cat([torch.zeros(32), torch.ones(32)])).all()
    assert torch.equal(pool.pos_embed[1, 64:], pool.pos_embed[0, 64:]), "x runs first"
    pool.pos_embed += 1
    model.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype="float32")
    assert torch.equal(again.model.transformer.visual.attn_pool.pos_embed, pool.pos_embed), "the file's, not drawn anew"


# names and sizes


def released():
    with torch.device("meta"):
        config = published()["Qwen/Qwen-VL-Chat"]
        return model_class(config).from_config(config, dtype=torch.bfloat16)


def test_names_and_sizes_are_the_released_files():
    model = released()
    state = model.state_dict()
    assert len(state) == 853 and sum(t.numel() * 2 for t in state.values()) == 19_313_870_336
    (file,) = golden("released_key_shapes.json")
    patterns = json.loads(file.read_text())
    numbers = {"transformer.h.": 32, "transformer.visual.transformer.resblocks.": 48}
    expected = {}
    for key, shape in patterns.items():
        count = next((n for start, n in numbers.items() if key.startswith(start)), 1)
        expected |= {key.format(i=i): shape for i in range(count)}
    assert {key: list(t.shape) for key, t in state.items()} == expected


def test_dgprefs_lora_has_its_number_of_parameters():
    options = {"freeze": ("vision", "projector"), "device": "meta", "random_weights": True}
    scorer = load(published()["Qwen/Qwen-VL-Chat"], lora=Lora(r=32, alpha=32, targets=LORA), **options)
    trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 56_098_816
    assert not [name for name in trained if "visual" in name or "mlp.c_proj" in name]
    every = load(published()["Qwen/Qwen-VL-Chat"], lora=Lora(r=32, targets="c_proj"), **options)
    assert [n for n, p in every.named_parameters() if p.requires_grad and "mlp.c_proj" in n]
    with pytest.raises(ValueError, match=r"no linear layer 'mlp.c_attn'; this model has c_attn, c_proj"):
        load(published()["Qwen/Qwen-VL-Chat"], lora=Lora(targets="mlp.c_attn"), **options)


def test_memory_counts_patches_not_slots():
    with torch.device("meta"):
        scorer = Scorer(released(), adapter_for(published()["Qwen/Qwen-VL-Chat"]))
    assert scorer.adapter.rows_a_slot() == 4 and scorer.adapter.slots == 256
    sizes = scorer.adapter.tower_sizes()
    assert sizes == (1664, 48, 8192, 588)
    info = {"a": ImageInfo(id="a", source="", width=9, height=9, tokens=256, grid=None)}
    branch = Branch(ids=torch.tensor([7, 151859, 8, 9]).numpy(), images=("a",), spans=((3, 4),))
    pack = build_pack([Example(id="1", source="", chosen=branch, rejected=None)], info, scorer.adapter.layout())
    for p in scorer.parameters():
        p.requires_grad_(False)
    runs, _ = vision_bytes(scorer, pack, Setting(dtype=torch.bfloat16))
    assert runs > 1024 * 49 * 1664 * 2, "the outputs of all blocks, of 1024 patches"


def test_what_it_does_not_compute_is_refused():
    with pytest.raises(ValueError, match="reads text alone"):
        adapter_for(drawn_config("qwen"))
    with pytest.raises(ValueError, match=r"rotary_pct = 0\.5 is not supported"):
        adapter_for(tiny(rotary_pct=0.5).config)
    adapter = adapter_for(tiny(seq_length=20).config)
    info = {"a": ImageInfo(id="a", source="", width=9, height=9, tokens=16, grid=None)}

    def example(length: int) -> Example:
        ids = torch.tensor([*range(30, 30 + length - 1), adapter.image_token_id]).roll(2).numpy()
        return Example(
            id="1", source="row 7", chosen=Branch(ids=ids, images=("a",), spans=((4, length),)), rejected=None
        )

    settings = PlanSettings(pairs_per_step=1, tokens_per_pack=100)
    Plan([example(5)], info, adapter.layout(), settings)  # 20 tokens with the image's
    with pytest.raises(ValueError, match=r"row 7.* has 21 tokens, but the model is trained with 20 at most"):
        Plan([example(6)], info, adapter.layout(), settings)


# the originals' outputs


def pictures(count: int, edge: int) -> Tensor:
    n, c, y, x = torch.meshgrid(*(torch.arange(k).double() for k in (count, 3, edge, edge)), indexing="ij")
    return (1.5 * torch.sin(0.7 * n + 1.3 * c + 0.11 * y + 0.07 * x + 0.003 * x * y)).float()


def original():
    """(The tiny original's weights in our model, its outputs, its facts.)"""
    described, weights, outputs, extra = golden(
        "tiny.json", "tiny.safetensors", "tiny_outputs.safetensors", "tiny_extra.json"
    )
    config = json.loads(described.read_text())["config"]
    model = model_class(made := drawn_config(config.pop("model_type"), **config)).from_config(made)
    drawn = model.transformer.visual.attn_pool.pos_embed.clone()
    state = {key: t.float() for key, t in load_file(weights).items()}
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == json.loads(described.read_text())["keys"]
    assert (drawn - state["transformer.visual.attn_pool.pos_embed"]).abs().max() < 1e-6
    model.load_state_dict(state)
    return model.eval(), load_file(outputs), json.loads(extra.read_text())


def with_slots(ids: Tensor, start: int) -> Tensor:
    """The original writes the file's path between <img> and </img>; here stand slots."""
    out = ids.clone()
    for row in out:
        inside = False
        for i, token in enumerate(row.tolist()):
            inside &= token != start + 1
            row[i] = start + 2 if inside else token
            inside |= token == start
    return out


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-5)


def test_the_original_s_outputs():
    model, want, extra = original()
    visual, pixels = model.transformer.visual, pictures(2, 112)
    assert close(visual.patches(pixels), want["vis.blocks"]) and close(visual(pixels), want["vis.out"])
    assert close(visual.attn_pool(visual.patches(pixels)), want["vis.pool"])
    ids, seen = with_slots(want["input_ids"], 290), want["attention_mask"]
    inputs = {"input_ids": ids, "attention_mask": seen, "pixel_values": pixels[[0, 1, 0]]}
    for mode in ("train", "eval"):
        output = model.train(mode == "train")(**inputs, labels=want["labels"])
        assert close(output.logits[seen.bool()], want[f"logits.{mode}"][seen.bool()]), mode
    assert abs(output.loss - want["loss"]) < 1e-5
    output.loss.backward()
    for name, p in model.named_parameters():
        assert abs(p.grad.norm() / extra["grad_norms"][name] - 1) < 1e-5, name
    assert close(visual.conv1.weight.grad[:4], want["grad.conv1"])
    assert close(visual.attn_pool.query.grad[:4], want["grad.query"])
    with torch.no_grad():
        assert close(model(want["input_ids.text"]).logits, want["logits.text"])
        model.config.seq_length = 8
        for length in (8, 9, 16, 20):
            assert close(model(want["input_ids.long"][:, :length]).logits, want[f"long.eval.{length}"]), length
        assert close(model.train()(want["input_ids.long"]).logits, want["long.train.20"])


def test_the_originals_log_probs_and_gradients_through_the_tree():
    model, want, extra = original()
    scorer = Scorer(copy.deepcopy(model), adapter_for(model.config))
    pixels, examples, expected = pictures(2, 112), [], []
    info = {name: ImageInfo(id=name, source="", width=9, height=9, tokens=16, grid=None) for name in "01"}
    for row, ids in enumerate(with_slots(want["input_ids"], 290).tolist()):
        length, labels = int(want["attention_mask"][row].sum()), want["labels"][row].tolist()
        short, at = [], []
        for i in range(length):
            at.append(len(short))
            if ids[i] != 292 or ids[i - 1] != 292:
                short.append(ids[i])
        scored = [i for i in range(1, length) if labels[i] >= 0]
        logps = want["logits.train"][row].log_softmax(-1)
        expected.append(torch.stack([logps[i - 1, labels[i]] for i in scored]))
        starts = [at[i] for i in scored if i - 1 not in scored]
        ends = [at[i] + 1 for i in scored if i + 1 not in scored]
        shown = tuple(str(n) for n in extra["images"][f"row{row}"])
        branch = Branch(ids=np.asarray(short, np.int32), images=shown, spans=tuple(zip(starts, ends, strict=True)))
        examples.append(Example(id=str(row), source="", chosen=branch, rejected=None))

    def load_images(names):
        return {"pixel_values": torch.stack([pixels[int(name)] for name in names])}

    pack = build_pack(examples, info, scorer.adapter.layout(), load_images=load_images)
    logps = scorer(pack)[pack.index]
    parts = [logps[a:b] for a, b in zip(pack.responses[:-1].tolist(), pack.responses[1:].tolist(), strict=True)]
    assert sorted(map(len, parts)) == sorted(map(len, expected))
    if len(parts[0]) != len(expected[0]):
        parts.reverse()
    assert all(close(a, b) for a, b in zip(parts, expected, strict=True))
    (-torch.cat(parts).mean()).backward()
    for name, p in scorer.model.named_parameters():
        assert abs(p.grad.norm() / extra["grad_norms"][name] - 1) < 1e-5, name


def test_the_original_geometry():
    (file,) = golden("geometry448.safetensors")
    held = load_file(file)
    visual = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 4.9231, "output_dim": 128, "image_size": 448}
    tower = Tower(visual | {"patch_size": 14})
    tower.load_state_dict({key[2:]: t.float() for key, t in held.items() if key.startswith("w.")})
    with torch.no_grad():
        positions = resized(tower.attn_pool.pos_embed, 1024)
        assert close(positions[::64], held["pool.pos_embed.interpolated"])
        assert close(resized(tower.positional_embedding, 1024)[::16], held["positional.interpolated"])
        assert close(tower(pictures(1, 448))[:, ::4], held["features"])


def test_the_original_s_pixels(tmp_path):
    picture, file = golden("image.png", "image_transform.safetensors")
    want = load_file(file)
    for edge in (112, 448):
        visual = {"image_size": edge, "patch_size": 14, "image_start_id": IMAGE_START}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": visual}))
        processor = ImageProcessor.from_model_dir(tmp_path)  # a published directory has no preprocessor_config.json
        found = torch.from_numpy(processor.load(picture.read_bytes())["pixel_values"])
        assert processor.geometry(70, 50) == (256, None)
        if edge == 112:
            assert (found - want["t112"].float()).abs().max() < 2e-3  # kept as fp16
        else:
            assert close(found[:, ::16, ::16], want["t448.sub16"])
            assert close(found.mean((1, 2)), want["t448.mean"]) and close(found.std((1, 2)), want["t448.std"])


def test_an_image_is_squashed_to_clips_square(tmp_path):
    """The same on a picture of our own, beside transformers' CLIP processor."""
    noise = torch.randint(0, 255, (50, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    visual = {"image_size": 84, "patch_size": 14, "image_start_id": IMAGE_START}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": visual}))
    found = ImageProcessor.from_model_dir(tmp_path).preprocess(noise)["pixel_values"]
    square = {"height": 84, "width": 84}
    other = hf.CLIPImageProcessorPil(size=square, do_center_crop=False)
    want = other(Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    assert (found == want).all()
