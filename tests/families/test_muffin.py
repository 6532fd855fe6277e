"""Muffin as the original computes it: golden vectors where they are (MMFAST_BASES), and a plain twin everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mmfast.data.examples import ExampleBuilder
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.records import Branch, Example, ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.families import adapter_for, drawn_config, model_class
from mmfast.families.beit3_llava import MARKS, Muffin
from mmfast.models import Scorer, load
from mmfast.packing import build_pack
from mmfast.train import train
from mmfast.world import models as world
from tests.make.native_llava import sentencepiece_model, write_weights
from tests.make.questions import ask, picture
from tests.make.tiny_run import make_config, make_model, write_pairs

BASES = Path(os.environ.get("MMFAST_BASES", "")) / "golden" / "muffin"
golden = pytest.mark.skipif("MMFAST_BASES" not in os.environ, reason="golden vectors: MMFAST_BASES")
TOWER = "model.vision_tower.beit3."
CONFIG = (
    *("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id", "mm_vision_tower"),
    *("num_query", "mm_use_im_start_end", "use_mm_proj"),
)


# the original's own numbers


def pixels(count, edge):
    n, c, y, x = torch.meshgrid(*(torch.arange(k).double() for k in (count, 3, edge, edge)), indexing="ij")
    return (1.5 * torch.sin(0.7 * n + 1.3 * c + 0.11 * y + 0.07 * x + 0.003 * x * y)).float()


@pytest.fixture(scope="module")
def original():
    """(our model with the golden weights, golden outputs, norms of the gradients)"""
    said = json.loads((BASES / "tiny.json").read_text())
    tower = said["tower"]
    names = {
        "width": "embed",
        "layers": "layers",
        "heads": "heads",
        "inner": "ffn",
        "positions": "max_source_positions",
    }
    config = drawn_config(
        "beit3_llava",
        **{key: said["config"][key] for key in CONFIG},
        mm_vision_sizes={ours: tower[theirs] for ours, theirs in names.items()},
        image_token_id=said["special"]["im_patch"],
    )
    model = model_class(config).from_config(config)
    weights = {key: value.float() for key, value in load_file(BASES / "tiny.safetensors").items()}
    missing, more = model.load_state_dict(weights, strict=False)
    assert not missing and all(re.search(r"text_embed|mask_token", key) for key in more)
    assert model.state_dict().keys() == weights.keys() - set(more)
    norms = json.loads((BASES / "tiny_extra.json").read_text())["grad_norms"]
    return model.eval(), load_file(BASES / "tiny_outputs.safetensors"), norms


@golden
def test_golden_forward(original):
    model, out, _ = original
    tower, shown = model.model.vision_tower, pixels(2, 64)
    close = {"rtol": 0, "atol": 1e-5}
    rows = tower.beit3.vision_embed(shown)
    torch.testing.assert_close(rows, out["vis.embed"], **close)
    torch.testing.assert_close(tower(shown, model.model.query), out["vis.out"], **close)
    torch.testing.assert_close(model.model.image_rows(shown), out["vis.projected"], **close)
    torch.testing.assert_close(model.model.embedded(out["input_ids"], shown), out["embeds"], **close)
    logits = model(input_ids=out["input_ids"], pixel_values=shown, attention_mask=out["attention_mask"]).logits
    read = out["attention_mask"].bool()
    torch.testing.assert_close(logits[read], out["logits"][read], **close)
    torch.testing.assert_close(model(input_ids=out["input_ids.text"]).logits, out["logits.text"], **close)


def golden_examples(out, image):
    """The two rows of the golden batch, an image one symbol each."""
    infos = {str(n): ImageInfo(id=str(n), source="", width=64, height=64, tokens=6) for n in range(2)}
    examples = []
    for row in range(2):
        ids, labels = out["input_ids"][row], out["labels"][row]
        ids = ids[out["attention_mask"][row].bool()]
        first, scored = int((ids == image).nonzero()[0]), int((labels != -100).nonzero()[0])
        short = np.array([*ids[: first + 1].tolist(), *ids[first + 6 :].tolist()], np.int32)
        branch = Branch(ids=short, images=(str(row),), spans=((scored - 5, len(short)),))
        examples.append(Example(id=str(row), source="", chosen=branch))
    return examples, infos


@golden
def test_golden_through_the_tree_with_loss_and_gradients(original):
    model, out, norms = original
    family = adapter_for(model.config)
    examples, infos = golden_examples(out, model.config.image_token_id)
    shown = pixels(2, 64)

    def images(names):
        return {"pixel_values": shown[[int(name) for name in names]]}

    scorer = Scorer(model, family)
    pack = build_pack(examples, infos, family.layout(), load_images=images)
    logps = scorer(pack)[pack.index]
    expected = []
    for row in range(2):
        at = (out["labels"][row] != -100).nonzero()[:, 0]
        wanted = out["logits"][row, at - 1].log_softmax(-1)
        expected.append(wanted.gather(1, out["labels"][row, at, None])[:, 0])
    torch.testing.assert_close(logps, torch.cat(expected), rtol=0, atol=1e-5)
    loss = -logps.mean()
    torch.testing.assert_close(loss, out["loss"], rtol=0, atol=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, norm in norms.items():
        if re.search(r"text_embed|mask_token", name):
            continue
        grad = parameters[name].grad
        assert (0.0 if grad is None else float(grad.norm())) == pytest.approx(norm or 0.0, rel=1e-4, abs=1e-6), name
    layer = f"{TOWER}encoder.layers.0.self_attn.q_proj."
    for key, name in (("query", "model.query"), ("A.q", f"{layer}A.weight"), ("B.q", f"{layer}B.weight")):
        torch.testing.assert_close(parameters[name].grad, out[f"grad.{key}"], rtol=1e-4, atol=1e-6)


@golden
def test_golden_tokens_and_what_the_original_scores_beyond(tmp_path):
    shutil.copy(BASES / "tiny_sentencepiece.model", tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text('{"vocab_size": 704}')
    said = json.loads((BASES / "legacy_masking.json").read_text())
    template, image = published(tmp_path, 704)
    for side in ("chosen", "rejected"):
        ids, scored = rendered(template, said["sample"]["question"], said["sample"][side])
        at = ids.index(image)
        whole = [*ids[:at], *[image] * said["sample"]["image_token_len"], *ids[at + 1 :]]
        assert whole == said[side]["input_ids"]
        labels = said[side]["labels"]
        theirs = {i for i, label in enumerate(labels) if label != -100}
        ours = {i + 5 for i in scored}
        assert ours < theirs, "all that we score the original scores too"
        words = [template.tokenizer.special.id_to_token(whole[i]) for i in sorted(theirs - ours)]
        # marks of roles: the first two of the human turn, and the assistant's but for its first
        assert "".join(words) == "#####\u2581Assistant:", words
        # With muffin_compat neither more nor less is scored
        compat = side_of("muffin_compat", template.tokenizer, said["sample"]["question"], said["sample"][side])
        assert {n + 5 * (n > at) for span in compat.spans for n in range(*span)} == theirs
        assert np.array_equal(compat.ids, ids)


@golden
def test_the_released_towers_names(tmp_path):
    released = json.loads((BASES / "released_tower_key_shapes.json").read_text())
    config = drawn_config("beit3_llava", **Muffin.published["Yirany/RLHF-V-SFT"])
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    wanted = {}
    for key, shape in released.items():
        for number in range(24) if "{i}" in key else (0,):
            wanted[key.replace("{i}", str(number))] = tuple(shape)
    wanted = {key: shape for key, shape in wanted.items() if not re.search(r"text_embed|mask_token", key)}
    assert {k: tuple(p.shape) for k, p in model.named_parameters() if k.startswith(TOWER)} == wanted


# the twin, on weights of our own


def test_the_whole_is_thirteen_billion():
    config = drawn_config("beit3_llava", **Muffin.published["Yirany/RLHF-V-SFT"])
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    assert count["vision_tower"] == 607_757_312 and count["mm_projector"] == 1024 * 5120 + 5120
    assert sum(p.numel() for p in model.parameters()) == 13_628_976_128


def plain_tower(weights, shown, layers, heads, patch):
    """BEiT-3 with queries, a row and a head at a time, every row of every layer."""

    def of(name, side):
        return weights[f"{TOWER}encoder.{name}.{side}.weight"], weights[f"{TOWER}encoder.{name}.{side}.bias"]

    def applied(kind, name, rows, split):
        sides = ["A" if n < split else "B" for n in range(len(rows))]
        if kind == "norm":
            return torch.stack([F.layer_norm(r, r.shape, *of(name, s), 1e-5) for r, s in zip(rows, sides, strict=True)])
        return torch.stack([F.linear(r, *of(name, s)) for r, s in zip(rows, sides, strict=True)])

    def ffn(name, rows, split):
        out = []
        for n, row in enumerate(rows):
            start = f"{TOWER}encoder.{name}.{'A' if n < split else 'B'}."
            inner = F.gelu(F.linear(row, weights[f"{start}fc1.weight"], weights[f"{start}fc1.bias"]))
            mean, spread = inner.mean(), inner.var(unbiased=False)
            inner = (inner - mean) / (spread + 1e-5).sqrt()
            inner = inner * weights[f"{start}ffn_layernorm.weight"] + weights[f"{start}ffn_layernorm.bias"]
            out.append(F.linear(inner, weights[f"{start}fc2.weight"], weights[f"{start}fc2.bias"]))
        return torch.stack(out)

    results = []
    kernel = weights[f"{TOWER}vision_embed.proj.weight"]
    for image in shown:
        rows = [weights[f"{TOWER}vision_embed.cls_token"][0, 0]]
        side = image.shape[-1] // patch
        for y in range(side):
            for x in range(side):
                square = image[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                rows.append((kernel * square).sum((1, 2, 3)) + weights[f"{TOWER}vision_embed.proj.bias"])
        split = len(rows)
        query = weights["model.query"]
        x = torch.cat(
            [
                torch.stack(rows) + weights[f"{TOWER}encoder.embed_positions.A.weight"][2:],
                query + weights[f"{TOWER}encoder.embed_positions.B.weight"][2 : 2 + len(query)],
            ]
        )
        for n in range(layers):
            at = f"layers.{n}"
            h = applied("norm", f"{at}.self_attn_layer_norm", x, split)
            q, k, v = (applied("linear", f"{at}.self_attn.{p}_proj", h, split) for p in "qkv")
            width = x.shape[1] // heads
            parts = []
            for head in range(heads):
                cut = slice(head * width, (head + 1) * width)
                parts.append((q[:, cut] @ k[:, cut].T / width**0.5).softmax(-1) @ v[:, cut])
            h = applied("norm", f"{at}.self_attn.inner_attn_ln", torch.cat(parts, 1), split)
            x = x + applied("linear", f"{at}.self_attn.out_proj", h, split)
            x = x + ffn(f"{at}.ffn", applied("norm", f"{at}.final_layer_norm", x, split), split)
        last = applied("norm", "layer_norm", x, split)[split:]
        results.append(F.linear(last, weights["model.mm_projector.weight"], weights["model.mm_projector.bias"]))
    return torch.stack(results)


def drawn(**dials):
    """A tiny model in which no norm or bias is as it starts."""
    model = world.build("beit3_llava", **dials)[0]
    torch.manual_seed(3)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def test_the_tower_is_what_its_sheet_says_row_by_row():
    model = drawn(image_size=42, vision_layers=2)
    shown = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(0))
    weights = {name: p.double() for name, p in model.named_parameters()}
    expected = plain_tower(weights, shown.double(), layers=2, heads=2, patch=14)
    found = model.model.image_rows(shown)
    assert expected.std() > 0.05 and (found - expected).abs().max() < 1e-5
    both = torch.autograd.grad(found.square().sum(), list(model.model.vision_tower.parameters()), allow_unused=True)
    slow = {name: p.detach().double().requires_grad_() for name, p in weights.items()}
    loss = plain_tower(slow, shown.double(), layers=2, heads=2, patch=14).square().sum()
    names = [name for name, _ in model.named_parameters() if name.startswith(TOWER)]
    wanted = torch.autograd.grad(loss, [slow[name] for name in names], allow_unused=True)
    scale = max(float(w.norm()) for w in wanted if w is not None)
    for name, got, want in zip(names, both, wanted, strict=True):
        got = torch.zeros(1) if got is None else got
        want = torch.zeros_like(got).double() if want is None else want
        assert (got - want).norm() <= 1e-4 * want.norm() + 1e-6 * scale, name


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "projector"), ()])
def test_what_trains_is_what_rlhfv_trains(tmp_path, freeze):
    scorer = load(str(make_model(tmp_path, "beit3_llava")), dtype="float32", freeze=freeze)
    trains = {name for name, p in scorer.model.named_parameters() if p.requires_grad}
    every = {name for name, _ in scorer.model.named_parameters()}
    still = {n for n in every if "beit3" in n and (".A" in n or "beit3.vision_embed" in n)}  # of its optimiser: rate 0
    beside = {n for n in every if n.startswith(("model.mm_projector", "model.query", TOWER))} - still
    assert trains == {("vision",): every - still, ("vision", "projector"): every - still - beside, (): every}[freeze]


def test_answers_of_both_engines_are_the_same(tmp_path):
    path = make_model(tmp_path, "beit3_llava", seed=2)
    first = ask("Describe the picture.", picture(2), decode=Decode(max_tokens=10))
    text = ask("Describe it.", decode=Decode(max_tokens=10))
    for template in ("muffin", "muffin_ask", "auto"):
        packed = [*Local(str(path), template=template, dtype="float32").answer([first, text])]
        plain = [*Plain(path, template=template).answer([first, text])]
        assert [r.text for r in packed] == [r.text for r in plain] and all(r.tokens for r in plain)
        assert all(abs(a.logp - b.logp) < 1e-4 for a, b in zip(packed, plain, strict=True))
        beams = ask("Describe the picture.", picture(2), decode=Decode(max_tokens=6, beams=3, repetition_penalty=1.1))
        engines = (Local(str(path), template=template, dtype="float32"), Plain(path, template=template))
        assert len({next(iter(engine.answer([beams]))).text for engine in engines}) == 1


def test_its_images_are_squashed_and_centred_on_a_half(tmp_path):
    path = make_model(tmp_path, "beit3_llava")
    (path / "preprocessor_config.json").unlink()  # a published directory has none
    processor = ImageProcessor.from_model_dir(path)
    assert processor.aspect == "square" and processor.edge == 84 and processor.slots == 8
    white = processor.preprocess(np.full((30, 50, 3), 255, np.uint8))["pixel_values"]
    assert white.shape == (3, 84, 84) and np.allclose(white, 1.0)


def test_features_of_its_tower_are_not_cached(tmp_path):
    config = make_config(
        tmp_path, make_model(tmp_path, "beit3_llava"), write_pairs(tmp_path, 4), **{"model.cache_vision": True}
    )
    with pytest.raises(ValueError, match=r"^model\.cache_vision: nothing can be cached: Muffin's queries"):
        train(config)


# a directory as it was published, and its templates


def published(folder, vocab):
    """(the template muffin with the tokenizer that an import makes, the image's id)"""
    out = folder / "new"
    out.mkdir(exist_ok=True)
    model = {"vocab_size": vocab, "mm_vision_tower": "beit3_large_patch16_448", "num_query": 64}
    Muffin.write_imported(folder, out, model)
    config = Muffin.imported_config(folder, model | {"model_type": "beit3_llava"})
    (out / "config.json").write_text(json.dumps(config))
    return Template("muffin", Tokenizer.load(out)), config["image_token_id"]


def rendered(template, question, answer):
    """(ids with BOS, places of the scored ones)"""
    shown = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]
    chunks = template.chunks(messages, [1])
    encoded = template.tokenizer.encode("".join(chunk.text for chunk in chunks))
    first = len(chunks[0].text) + chunks[1].lead
    return [1, *encoded.ids], [n + 1 for n, (_, end) in enumerate(encoded.offsets) if end > first]


def side_of(name, tokenizer, question, answer):
    """The branch that a pair's chosen side becomes."""
    shown = [{"type": "image"}, {"type": "text", "text": question}]
    record = Record(
        id="1", source="", prompt=[{"role": "user", "content": shown}], images=("a",),
        chosen=[{"role": "assistant", "content": answer}], rejected=[{"role": "assistant", "content": "No."}],
    )  # fmt: skip
    info = ImageInfo(id="a", source="", width=8, height=8, tokens=6)
    return ExampleBuilder(Template(name, tokenizer), DataSettings(path="")).build(record, [info])[0].chosen


def test_the_marks_that_muffin_scores_besides_are_scored_with_muffin_compat(tmp_path):
    """Counted by a plain twin of its masking: the turn alone has a BOS more, and its first mark other pieces."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    tokenizer = published(tmp_path, 1400)[0].tokenizer
    plain = side_of("muffin", tokenizer, "What is this?", "It is red.")
    compat = side_of("muffin_compat", tokenizer, "What is this?", "It is red.")
    head = Template("muffin", tokenizer).named.system + "\n\n"
    turn = "### Human:<im_start><im_patch><im_end>What is this?\n"
    labels = [-100] * len(plain.ids)
    at = 1 + len(tokenizer.encode(head).ids)
    labels[at:] = plain.ids[at:]
    length = 1 + len(tokenizer.encode(turn).ids)
    labels[at + 2 : at + length] = [-100] * (length - 2)
    assert np.array_equal(plain.ids, compat.ids)
    scored = [n for span in compat.spans for n in range(*span)]
    assert scored == [n for n, label in enumerate(labels) if label != -100]
    assert scored[:2] == [at, at + 1] and compat.spans[1][0] < plain.spans[0][0]
    assert compat.spans[2:] == plain.spans, "what is drawn in a run begins behind the prompt"
    with pytest.raises(BadRow, match="of one question and one answer"):
        builder = ExampleBuilder(Template("muffin_compat", tokenizer), DataSettings(path="", turns="all"))
        turns = [{"role": role, "content": "Yes."} for role in ("user", "assistant", "user", "assistant")]
        builder.build(Record(id="1", source="", prompt=[], images=(), chosen=turns, rejected=None), [])


@pytest.mark.parametrize("average", [False, True])
def test_what_it_scores_besides_cancels_in_sums_and_weighs_in_averages(tmp_path, average):
    model, data, losses = make_model(tmp_path, "beit3_llava", seed=2), write_pairs(tmp_path, 4), []
    for template in ("muffin", "muffin_compat"):
        changes = {"data.template": template, "objective.average": average, "optim.lr": 1e-3, "train.steps": 3}
        train(make_config(tmp_path / template, model, data, **changes))
        rows = (tmp_path / template / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows if "loss" in json.loads(row)])
    plain, compat = losses
    assert len(plain) == 3
    assert (np.allclose(plain, compat, atol=2e-6) and not average) or (
        average and abs(plain[-1] - compat[-1]) > 1e-4
    ), losses


def test_an_imported_directory_has_the_marks_behind_llamas_words(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    template, image = published(tmp_path, 1400)
    tokenizer = template.tokenizer
    first = tokenizer.specials[MARKS[0]]
    assert [tokenizer.specials[mark] for mark in MARKS] == list(range(first, first + 4)) and image == first + 1
    assert tokenizer.hf.pad_token_id == first
    processor = ImageProcessor.from_model_dir(tmp_path / "new")
    assert (processor.edge, processor.slots, processor.mean, processor.resample) == (448, 64, (0.5, 0.5, 0.5), 3)
    # one that names them in another order, and one whose weights are too small for them
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_patch>": first, "[PAD]": first + 1}))
    assert published(tmp_path, 1400)[1] == first
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_patch>": first + 7}))
    with pytest.raises(ValueError, match="<im_patch> is no"):
        published(tmp_path, 1400)
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(ValueError, match=f"the tokenizer has {first + 4} words, and config.json says {first + 3}"):
        published(tmp_path, first + 3)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        published(tmp_path, 1400)


def test_no_white_space_stands_beside_an_image(tmp_path):
    """As the slow tokenizers of its day read "### Human: <image>\\nQ": the pieces between the marks, each alone."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    template, image = published(tmp_path, 1400)
    encode, marks = template.tokenizer.encode, template.tokenizer.specials
    before = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    before += "detailed, and polite answers to the human's questions.\n\n### Human:"
    after = "What is this?\n### Assistant: It is red.\n### "
    ids, scored = rendered(template, "  What is this?", "It is red.")
    pair = [marks["<im_start>"], image, marks["<im_end>"]]
    assert ids == [1, *encode(before).ids, *pair, *encode(after).ids]
    text = template.tokenizer.hf.decode([ids[n] for n in scored])
    assert text.split() == ["It", "is", "red.", "###"]
    own = Template("auto", template.tokenizer)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    assert own.opening(messages) == "<s>" + template.opening(messages)
    asked = Template("muffin_ask", template.tokenizer).opening(messages)
    assert asked.endswith("questions.\n###Human: What is this?<im_start><im_patch><im_end>###")
    bare = [{"role": "user", "content": "What is this?"}]
    assert Template("muffin_ask", template.tokenizer).opening(bare).endswith("\n###Human: What is this?\n###")
    assert template.opening(bare).endswith("### Human: What is this?\n### Assistant:")


def test_what_a_user_may_get_wrong_is_one_line(tmp_path):
    config = json.loads((make_model(tmp_path, "beit3_llava") / "config.json").read_text())
    for changes, message in (
        ({"image_token_id": None}, "as it was published: `mmfast import DIR NEW` first"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14", "mm_vision_sizes": None}, "Muffin's towers are BEiT-3's"),
    ):
        (tmp_path / "beit3_llava" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=message):
            load(str(tmp_path / "beit3_llava"))
    with pytest.raises(ValueError, match="muffin needs the special token <im_start>, which the model lacks"):
        Template("muffin", Tokenizer.load(make_model(tmp_path)))


def test_a_published_directory_is_imported_and_loads_equal(tmp_path):
    importing = pytest.importorskip("mmfast.models.importing")
    path = make_model(tmp_path, "beit3_llava", vocab=1100)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as files of those days
    source = tmp_path / "published"
    source.mkdir()
    write_weights(tensors, source, pickled=True, shards=2)
    config = json.loads((path / "config.json").read_text())
    config |= {"image_token_id": None, "architectures": ["Beit3LlavaLlamaForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.model").write_bytes(sentencepiece_model())
    with pytest.raises(ValueError, match="`mmfast import`"):
        load(str(source))
    importing.import_model(str(source), tmp_path / "new")
    expected = dict(load(str(path), dtype="float32").model.named_parameters())
    found = load(str(tmp_path / "new"), dtype="float32")
    assert found.adapter.image_token_id == 1 + Tokenizer.load(tmp_path / "new").specials["[PAD]"]
    for name, p in found.model.named_parameters():
        assert torch.equal(p, expected[name]), name
