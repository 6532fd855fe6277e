"""LLaVA's native layout is read directly: bit for bit what the same weights are in transformers' layout."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.build import build
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.settings import DataSettings
from mmfast.directory import adapter_directory, directory
from mmfast.directory.native import written_name
from mmfast.directory.sentencepiece import llama_backend, pieces_of
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.evals.benches import benches
from mmfast.evals.tables import read_result
from mmfast.job.rows import read
from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.packing import build_pack
from mmfast.train import train
from mmfast.training.export import export
from tests.make.eval_cases import Toy, write_toy
from tests.make.hub_server import COMMIT, NAME, hub
from tests.make.llama_tokenizer import llama_tokenizer
from tests.make.native_llava import FIELDS, TOWER, original, pieces, write_adapter, write_native
from tests.make.questions import ask, picture
from tests.make.rank_processes import run_ranks
from tests.make.tiny_run import make_config, make_model, write_pairs
from tests.models.test_sharded import compare_whole
from tests.test_directory import launch

FORMS = [
    ({"tower": "beside", "pickled": True, "shards": 2}, "float16"),
    ({"tower": "inside", "pickled": True, "shards": 1}, "float32"),
    ({"tower": "inside", "pickled": False, "shards": 3}, "float16"),
    ({"tower": "beside", "pickled": False, "shards": 1}, "float32"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def parameters(path, **options):
    return dict(load(str(path), dtype="float32", **options).model.named_parameters())


def assert_equal(some, others):
    assert some.keys() == others.keys()
    for name, p in some.items():
        assert torch.equal(p, others[name]) and p.dtype == others[name].dtype, name


@pytest.mark.parametrize(
    ("form", "dtype"), FORMS, ids=lambda x: "-".join(map(str, x.values())) if type(x) is dict else x
)
def test_every_parameter_is_the_same(tmp_path, form, dtype):
    hf = make_model(tmp_path, dtype=dtype)
    native = write_native(hf, tmp_path / "native", **form)
    assert_equal(parameters(hf), parameters(native))
    config, expected = (AutoConfig.from_pretrained(directory(p)).to_dict() for p in (native, hf))
    for part in (config, expected):
        assert part["text_config"].pop("dtype") in (None, dtype) and part["vision_config"].pop("dtype") in (None, dtype)
        part.pop("_name_or_path", None)
    assert config == expected


def test_log_probs_and_answers_are_the_same(tmp_path):
    hf = make_model(tmp_path, seed=5)
    native = write_native(hf, tmp_path / "native")
    data = write_pairs(tmp_path, 6, text_only=2)
    scored = []
    for path in (hf, native):
        settings = DataSettings(path=str(data), template="vicuna_v1", aspect="pad")
        store = build(settings, path, tmp_path / "cache" / path.name, progress=False)
        scorer = load(str(path), dtype="float32").eval()
        processor = ImageProcessor.from_model_dir(directory(path), "pad")

        def images(ids, store=store, processor=processor):
            return processor.collate([processor.load(store.open_image(name)) for name in ids])

        pack = build_pack([*store], store.images, scorer.adapter.layout(), load_images=images)
        with torch.no_grad():
            scored.append((pack.targets, scorer(pack)))
    assert torch.equal(scored[0][0], scored[1][0]) and torch.equal(scored[0][1], scored[1][1])
    assert len(scored[0][1]) > 50
    request = ask("Describe the picture.", picture(3), decode=Decode(max_tokens=12))
    sampled = replace(request, key="b", n=3, decode=Decode(max_tokens=12, temperature=1.0))
    for engine in (
        lambda path: Local(str(path), template="vicuna_v1", aspect="pad", dtype="float32"),
        lambda path: Plain(path, template="vicuna_v1"),
    ):
        first, second = ([*engine(path).answer([request, sampled])] for path in (hf, native))
        if engine(native).identity()["engine"] == "local":
            assert [(r.text, r.tokens, r.logp) for r in first] == [(r.text, r.tokens, r.logp) for r in second]
        assert len(first) == 4 and all(r.tokens for r in second)
    plain, packed = [*Plain(native).answer([request])], [*Local(str(native), dtype="float32").answer([request])]
    assert plain[0].text == packed[0].text and abs(plain[0].logp - packed[0].logp) < 1e-4


def test_images_are_padded_where_the_config_says_so(tmp_path):
    native = write_native(make_model(tmp_path), tmp_path / "native")
    assert ImageProcessor.from_model_dir(directory(native)).aspect == "pad"
    config = json.loads((native / "config.json").read_text())
    (native / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "square"}))
    assert ImageProcessor.from_model_dir(directory(native)).aspect == "crop"


def test_each_rank_reads_its_shards(tmp_path):
    hf = make_model(tmp_path, dtype="float16")
    run_ranks(2, tmp_path, compare_whole, [directory(write_native(hf, tmp_path / "native"), weights=True)])


# the tokenizer


def test_a_tokenizer_of_sentencepiece_has_llamas_ids(tmp_path):
    hf = make_model(tmp_path, vocab=1100)
    native = write_native(hf, tmp_path / "native", sentencepiece=True)
    assert list(pieces_of(native / "tokenizer.model").items()) == [
        (text, pytest.approx(score)) for text, score, _ in pieces()
    ]
    ours = AutoTokenizer.from_pretrained(directory(native))
    theirs = llama_tokenizer("legacy")
    for text in (
        "A chat between a curious user and an artificial intelligence assistant.",
        "USER: What is this on the desk? ASSISTANT: It is red.</s>USER: Yes\n\nNo",
        " two  blanks, tabs\t\u00e9\u00fc\U0001f642 \u65e5\u672c",
        "<s> again</s>",
    ):
        ids = ours(text, add_special_tokens=False).input_ids
        assert ids == theirs(text, add_special_tokens=False).input_ids and 0 not in ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours("Yes").input_ids[0] == 1
    image = AutoConfig.from_pretrained(directory(native)).image_token_id
    assert image == 0 == ours.convert_tokens_to_ids("<image>")
    with pytest.raises(ValueError, match="is no vocabulary of sentencepiece"):
        (native / "tokenizer.model").write_bytes((native / "tokenizer.model").read_bytes()[:-7])
        directory(native)


def test_llamas_own_tokenizer(tmp_path):
    """tokenizer.model and the tokenizer.json that transformers made of it agree."""
    home = Path(os.environ.get("MMFAST_TOKENIZERS", "")) / "llava15"
    if "MMFAST_TOKENIZERS" not in os.environ or not (home / "tokenizer.model").exists():
        pytest.skip("LLaVA-1.5's tokenizer: MMFAST_TOKENIZERS, a folder with llava15 in it")
    ours, theirs = llama_backend(home / "tokenizer.model"), Backend.from_file(str(home / "tokenizer.json"))
    assert ours.get_vocab() == {word: n for word, n in theirs.get_vocab().items() if n < 32000}
    pages = [
        line for page in sorted(Path(__file__).parents[2].glob("docs/*.md")) for line in page.read_text().split("\n")
    ]
    for text in (
        *pages,
        "  two blanks",
        "</s>USER: \u65e5\u672c\U0001f642",
        "a</s> b\n\n\t c",
        *map(chr, range(1, 3000, 7)),
    ):
        if "<image>" not in text and "<pad>" not in text:
            assert ours.encode(text).ids == theirs.encode(text).ids, text


@pytest.mark.parametrize("system", [False, True])
def test_its_own_template_is_vicuna_v1(tmp_path, system):
    """And an unknown word written in a text is words, as an image is none."""
    hf = make_model(tmp_path, vocab=1100)
    native = write_native(hf, tmp_path / "native", sentencepiece=True)
    picture(1)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    turns = [
        *([{"role": "system", "content": "The assistant gives polite answers."}] if system else []),
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this? <unk>"}]},
        {"role": "assistant", "content": "It is red."},
        {"role": "user", "content": "Yes?"},
    ]
    row = {"id": "1", "images": ["a.png"], "prompt": turns}
    row |= {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    example = []
    for template in ("auto", "vicuna_v1"):
        settings = DataSettings(path=str(tmp_path / "rows.jsonl"), template=template)
        example.append(build(settings, native, tmp_path / "cache" / template, progress=False)[0])
    for side in ("chosen", "rejected"):
        own, named = (getattr(e, side) for e in example)
        assert list(own.ids) == list(named.ids) and own.spans == named.spans
        assert list(own.ids).count(0) == 1


# adapters in LLaVA's layout


def drawn_adapter(tmp_path, base, name="llava-lora", **settings):
    """Matrices on two kinds of layers and a whole projector, drawn; and the merged tensors by the hub's names."""
    stored = load_file(make_model(tmp_path / "again") / "model.safetensors")
    torch.manual_seed(1)
    lora, merged, others = {}, dict(stored), {}
    for key, tensor in stored.items():
        first = original(key)
        if key.endswith(("q_proj.weight", "v_proj.weight")) and key.startswith("language_model"):
            a, b = torch.randn(4, tensor.shape[1]) * 0.1, torch.randn(len(tensor), 4) * 0.1
            stem = f"model.{first}".removesuffix(".weight").removeprefix("model.")
            lora |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            merged[key] = tensor + 8 / 4 * (b @ a)
        if key.startswith("multi_modal_projector"):
            others[first] = merged[key] = torch.randn_like(tensor) * 0.1
    folder = write_adapter(str(base), native_of(base), tmp_path / name, lora, others, **settings)
    return folder, {key: t for key, t in merged.items()}


def native_of(base):
    """A folder with the native config of a base of either layout."""
    if "vision_config" not in json.loads((base / "config.json").read_text()):
        return base
    return write_native(base, base.parent / "native-for-config")


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_an_adapter_is_a_model_and_merges(tmp_path, layout):
    hf = make_model(tmp_path)
    base = write_native(hf, tmp_path / "native") if layout == "native" else hf
    folder, expected = drawn_adapter(tmp_path, base)
    names = {key.replace("vision_tower.vision_model.", "vision_tower."): t for key, t in expected.items()}
    wanted = dict(AutoModelForImageTextToText.from_pretrained(hf).named_parameters())
    wanted = {n: names[written_name(n, "hf").replace("vision_tower.vision_model.", "vision_tower.")] for n in wanted}
    found = parameters(folder)
    assert found.keys() == wanted.keys()
    changed = 0
    for name, p in found.items():
        assert torch.allclose(p, wanted[name], atol=1e-6), name
        changed += not torch.equal(p, parameters(base)[name]) if name.endswith("0.self_attn.q_proj.weight") else 0
    assert changed
    # the command writes the base's layout, and peft agrees
    result = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "merged")], catch_exceptions=False)
    assert result.exit_code == 0 and "merged" in result.output
    again = parameters(tmp_path / "merged")
    assert all(torch.allclose(p, again[name], atol=1e-6) for name, p in found.items())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert ("vision_config" in config) == (layout == "hf")
    keys = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("model.mm_projector.0.weight" in keys) == (layout == "native")
    # in peft's layout it is an adapter like any other
    peft = adapter_directory(folder, weights=True)
    assert (
        Plain(base, adapter=str(folder)).identity()["adapter"].keys()
        == load_file(peft / "adapter_model.safetensors").keys()
    )


def on_vicuna(tmp_path):
    """(an adapter on a whole LLaVA, and a function that names Vicuna as its base instead; Vicuna)"""
    native = write_native(make_model(tmp_path), tmp_path / "native")
    vicuna = tmp_path / "vicuna"
    vicuna.mkdir()
    shutil.copy(native / "tokenizer.json", vicuna)
    (vicuna / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    stored = {}
    for file in native.glob("*.bin"):
        stored |= torch.load(file, weights_only=True)
    torch.save({k: t for k, t in stored.items() if "mm_projector" not in k}, vicuna / "pytorch_model.bin")
    folder, _ = drawn_adapter(tmp_path, native)

    def named():
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(vicuna)}))

    return folder, named, vicuna


def test_an_adapter_on_vicuna_itself_is_a_model(tmp_path):
    """LLaVA's own adapters name Vicuna as their base: the projector is theirs, and the tower has its name."""
    folder, named, _ = on_vicuna(tmp_path)
    expected = parameters(folder)
    named()
    assert_equal(parameters(folder), expected)
    changes = {"export.formats": ["llava"], "train.steps": 1, "optim.lr": 1e-30}
    train(make_config(tmp_path, folder, write_pairs(tmp_path, 4), **changes))
    out = tmp_path / "run" / "export" / "llava"
    assert (out / "tokenizer.json").exists() and not (out / "adapter_config.json").exists()
    assert_equal(parameters(out), expected)


def merged(*words):
    return CliRunner().invoke(app, ["merge", *map(str, words)])


@pytest.mark.parametrize("said", ["by the adapter", "by --base"])
def test_an_adapter_on_vicuna_itself_merges(tmp_path, said):
    folder, named, vicuna = on_vicuna(tmp_path)
    expected = parameters(folder)
    if said == "by the adapter":
        named()
    result = merged(folder, tmp_path / "merged", *([] if said == "by the adapter" else ["--base", vicuna]))
    assert result.exit_code == 0 and "merged" in result.output, result.exception
    found = parameters(tmp_path / "merged")
    assert found.keys() == expected.keys()
    assert all(torch.allclose(p, expected[name], atol=1e-6) for name, p in found.items())
    # A model by itself: neither the adapter nor Vicuna is needed, and it is none any more
    for gone in (folder, vicuna):
        shutil.rmtree(gone)
    assert_equal(parameters(tmp_path / "merged"), found)
    assert not [*(tmp_path / "merged").glob("adapter*")] and (tmp_path / "merged" / "tokenizer.json").exists()


def test_what_cannot_be_merged_into_vicuna_is_one_line(tmp_path):
    folder, named, vicuna = on_vicuna(tmp_path)
    named()

    def said(*words):
        result = merged(folder, *words)
        assert result.exit_code and isinstance(result.exception, ValueError) and not (tmp_path / "merged").exists()
        assert "\n" not in str(result.exception)
        return str(result.exception)

    assert "is, holds or lies in the base" in said(vicuna / "inside")
    assert "is, holds or lies in the adapter" in said(folder / "inside")
    # Vicuna of another size, and one that is not whole
    weights = torch.load(vicuna / "pytorch_model.bin", weights_only=True)
    wide = {k: torch.cat([t, t], -1) if k.endswith("proj.weight") else t for k, t in weights.items()}
    torch.save(wide, vicuna / "pytorch_model.bin")
    assert "has another shape than in" in said(tmp_path / "merged")
    torch.save({k: t for k, t in weights.items() if "norm" not in k}, vicuna / "pytorch_model.bin")
    assert f"{vicuna} under {folder} is not whole: none of its files holds" in said(tmp_path / "merged")
    torch.save(weights, vicuna / "pytorch_model.bin")
    # An adapter without its projector, and one of a language model
    others = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    torch.save({}, folder / "non_lora_trainables.bin")
    assert "none of its files holds model.multi_modal_projector" in said(tmp_path / "merged")
    torch.save(others, folder / "non_lora_trainables.bin")
    (folder / "config.json").unlink()
    assert "no config.json of a LLaVA" in said(tmp_path / "merged")


# training, exports and commands


@pytest.mark.parametrize("freeze", [["vision"], []])
def test_a_whole_run_is_exported_in_either_layout_and_read_again(tmp_path, freeze):
    native = write_native(make_model(tmp_path), tmp_path / "native")
    changes = {"model.freeze": freeze, "export.formats": ["llava", "hf"], "train.steps": 2}
    train(make_config(tmp_path, native, write_pairs(tmp_path, 4), **changes))
    out = tmp_path / "run" / "export"
    tower_folder = tmp_path / TOWER.partition("/")[2]  # which does not lie beside the export
    written = load_file(out / "llava" / "model.safetensors")
    keys = {key for file in native.glob("*.bin") for key in torch.load(file, weights_only=True)}
    tower = {key for key in written if ".vision_tower." in key}
    assert set(written) - tower == keys and bool(tower) == (not freeze)
    own, transformers_own = parameters(out / "llava"), parameters(out / "hf")
    assert_equal(own, transformers_own)
    before = parameters(native)
    assert not torch.equal(own["lm_head.weight"], before["lm_head.weight"])
    config = json.loads((out / "llava" / "config.json").read_text())
    assert config["mm_vision_tower"] == (str(tower_folder) if freeze else TOWER)
    assert config["unfreeze_mm_vision_tower"] == (not freeze)
    same = FIELDS.keys() - {"unfreeze_mm_vision_tower", "mm_hidden_size", "mm_vision_tower"}
    assert {key: config[key] for key in same} == {key: FIELDS[key] for key in same}
    model = AutoModelForImageTextToText.from_pretrained(out / "hf")  # and anybody reads this one
    assert_equal(dict(model.named_parameters()), own)
    assert export(tmp_path / "run", ("llava",)).name == "step-2"
    processor = AutoProcessor.from_pretrained(out / "hf", backend="pil")
    inputs = processor(text="<image>\nUSER", images=[Image.new("RGB", (60, 20), "red")], return_tensors="pt")
    ours = ImageProcessor.from_model_dir(directory(out / "llava")).preprocess(
        np.full((20, 60, 3), (255, 0, 0), np.uint8)
    )
    assert torch.equal(inputs["pixel_values"][0], torch.from_numpy(ours["pixel_values"]))
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 36


def test_a_converted_model_is_exported_in_the_native_layout(tmp_path):
    hf = make_model(tmp_path)
    train(make_config(tmp_path, hf, write_pairs(tmp_path, 4), **{"export.formats": ["llava", "hf"], "train.steps": 1}))
    out = tmp_path / "run" / "export"
    assert_equal(parameters(out / "llava"), parameters(out / "hf"))
    config = json.loads((out / "llava" / "config.json").read_text())
    assert config["image_aspect_ratio"] == "square"  # LLaVA's word for what the converted model's processor does: cut
    with pytest.raises(ValueError, match=r'no word for data\.aspect = "square"'):
        squashed = {"export.formats": ["llava"], "data.aspect": "square", "output_dir": str(tmp_path / "no")}
        train(make_config(tmp_path, hf, write_pairs(tmp_path, 4), **squashed))


def test_an_adapter_run_on_a_native_base_comes_back_by_its_folder(tmp_path):
    native = write_native(make_model(tmp_path), tmp_path / "native")
    changes = {"model.lora": {"r": 4, "alpha": 8.0}, "export.formats": ["llava", "hf"], "export.merge": True}
    train(make_config(tmp_path, native, write_pairs(tmp_path, 4), **changes, **{"train.steps": 2}))
    out = tmp_path / "run" / "export"
    found, merged = parameters(out / "llava-lora"), parameters(out / "hf")
    assert all(torch.allclose(p, merged[name], atol=1e-6) for name, p in found.items())
    assert not torch.equal(found["lm_head.weight"][0], torch.zeros(1))
    assert json.loads((out / "llava-lora" / "config.json").read_text()) == json.loads(
        (native / "config.json").read_text()
    )


def test_the_commands_take_it(tmp_path, monkeypatch):
    monkeypatch.setitem(benches(), "toy", Toy())
    native = write_native(make_model(tmp_path), tmp_path / "native")
    data, file = write_pairs(tmp_path, 4), tmp_path / "config.toml"
    from mmfast.config import dump

    file.write_text(dump(make_config(tmp_path, native, data, **{"train.steps": 1})))
    prompts = {"id": "1", "images": ["train-0.png"], "prompt": [{"role": "user", "content": "Describe the picture."}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompts) + "\n")
    for words in (
        ["plan", str(file)],
        ["reference", str(file)],
        ["train", str(file)],
        ["generate", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "answers"), "--engine", "local",
         "--model", str(native), "--max-tokens", "4"],
        ["eval", str(native), "--bench", "toy", "--data", str(write_toy(tmp_path / "toy", images=2, each=1)),
         "--out", str(tmp_path / "eval")],
    ):  # fmt: skip
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, (words, result.output)
    assert read_result(tmp_path / "eval" / "toy").made_by
    assert read(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


SCRIPT = """
import sys
from mmfast.directory import directory
from mmfast.models.loading import load
folder = directory(sys.argv[1])
print(folder.name, (folder / "weights.native").exists())
print(directory(sys.argv[1], weights=True).name, sum(p.numel() for p in load(sys.argv[1]).model.parameters()))
"""


def test_a_hub_id_brings_its_pickles_when_weights_are_asked_for(tmp_path):
    """And ranks learn its commit by the folder's name; without the network it is read again."""
    native = write_native(make_model(tmp_path), tmp_path / "native", tower="inside")
    count = sum(p.numel() for p in parameters(native).values())
    sizes = json.loads((tmp_path / "llava" / "config.json").read_text())["vision_config"]
    with_config(mm_vision_config=sizes)(native)  # as our export writes it: no tower lies beside it there
    (tmp_path / "script.py").write_text(SCRIPT)
    with hub(native) as (environment, asked):
        told = launch(tmp_path, tmp_path / "script.py", NAME, **environment).splitlines()
        assert told[-1] == f"{COMMIT} {count}" and f"{COMMIT} False" in told, told
        assert len([a for a in asked if a.startswith("GET") and a.endswith(".bin")]) == 2, asked
    again = launch(tmp_path, tmp_path / "script.py", NAME, **environment | {"HF_HUB_OFFLINE": "1"}).splitlines()
    assert again[-1] == f"{COMMIT} {count}", again


# what cannot be read


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("pickled", [True, False])
def test_in_four_bits_it_is_what_the_hubs_layout_is(tmp_path, pickled):
    hf = make_model(tmp_path)
    native = write_native(hf, tmp_path / "native", pickled=pickled)
    expected, found = (
        dict(load(str(path), lora=Lora(r=4, alpha=8), quantize="nf4").model.named_parameters()) for path in (hf, native)
    )
    assert expected.keys() == found.keys() and sum(p.dtype == torch.uint8 for p in found.values()) > 10
    for name, p in found.items():
        if "lora_A" in name:  # drawn
            continue
        assert p.dtype == expected[name].dtype and torch.equal(p.data, expected[name].data), name
        if p.dtype == torch.uint8:
            some, others = p.quant_state.as_dict(packed=True), expected[name].quant_state.as_dict(packed=True)
            assert all(torch.equal(some[key], others[key]) for key in others)


def broken(tmp_path, change, **form):
    native = write_native(make_model(tmp_path), tmp_path / "native", **form)
    change(native)
    return native


def with_config(**changes):
    def change(native):
        config = json.loads((native / "config.json").read_text())
        (native / "config.json").write_text(json.dumps(config | changes))

    return change


def truncate(native):
    file = native / "pytorch_model-00002-of-00002.bin"
    file.write_bytes(file.read_bytes()[:-500])


def another(native):
    file = native / "pytorch_model-00002-of-00002.bin"
    torch.save({"transformer.h.0.attn.c_attn.weight": torch.zeros(2, 2)}, file)


def smaller(native):
    file = native / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(file, weights_only=True)
    name = "model.embed_tokens.weight"
    torch.save(tensors | {name: tensors[name][:100].clone()}, file)


def emptier(native):
    file = native / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(file, weights_only=True)
    tensors.pop("model.embed_tokens.weight")
    torch.save(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: (n / "pytorch_model-00002-of-00002.bin").unlink(), "not whole: pytorch_model-00002-of-00002.bin"),
        (truncate, "pytorch_model-00002-of-00002.bin is damaged or not whole"),
        (another, "holds transformer.h.0.attn.c_attn.weight, which is no tensor of LLaVA-1.5"),
        (smaller, "embed_tokens.weight is 100x64 in its files, and its config.json says 512x64"),
        (emptier, "is not whole: none of its files holds model.language_model.embed_tokens.weight"),
        (
            lambda n: shutil.rmtree(n.parent / TOWER.partition("/")[2]),
            f"names its tower, {TOWER}, and does not hold it",
        ),
        (lambda n: (n / "tokenizer.json").unlink(), "has no tokenizer"),
        (with_config(mm_projector_type="linear"), "its projector is 'linear'"),
        (with_config(model_type="llava_mpt"), "its decoder is of type llava_mpt"),
        (with_config(image_aspect_ratio="anyres"), "it cuts images into tiles"),
        (with_config(architectures=["LlavaQwenForCausalLM"]), "it is a LlavaQwenForCausalLM"),
        (with_config(mm_use_im_start_end=True), "it has words of its own for images"),
    ],
    ids=[
        "shard",
        "truncated",
        "other",
        "shape",
        "missing",
        "tower",
        "tokenizer",
        "linear",
        "mpt",
        "anyres",
        "qwen",
        "words",
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, change, message):
    native = broken(tmp_path, change)
    with pytest.raises(ValueError, match="(?s)^[^\n]*" + message.replace("(", r"\(") + "[^\n]*$"):
        load(str(native))


def test_an_adapter_of_another_model_is_named(tmp_path):
    native = write_native(make_model(tmp_path), tmp_path / "native")
    folder, _ = drawn_adapter(tmp_path, native)
    other = make_model(tmp_path / "other", hidden=32, heads=2)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for base, message in ((other, "has another shape than in"), ("no/such", "its base cannot be read")):
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
        with pytest.raises(ValueError, match=message):
            directory(folder, weights=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match=r"use_dora in its adapter_config\.json"):
        directory(folder, weights=True)


def test_a_pickle_that_runs_code_is_not_read(tmp_path):
    from tests.models.test_pickled_weights import plant

    native = write_native(make_model(tmp_path), tmp_path / "native", shards=1)
    plant(native, "pytorch_model.bin", tmp_path / "marker")
    with pytest.raises(ValueError, match="holds more than tensors, and could run code"):
        load(str(native))
    assert not (tmp_path / "marker").exists()


# the true sizes


def test_the_shapes_of_7b(tmp_path):
    """The released config.json (its fields and values; the tokenizer is ours), without weights or the tower."""
    sizes = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "initializer_range": 0.02,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "pretraining_tp": 1, "torch_dtype": "float16",
    }  # fmt: skip
    folder = tmp_path / "llava-v1.5-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes | FIELDS))
    from tests.make.native_llava import sentencepiece_model

    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    scorer = load(str(folder), dtype="bfloat16", device="meta", random_weights=True, lora=Lora(r=128, alpha=256))
    found = {
        n.replace(".base_layer", ""): tuple(p.shape) for n, p in scorer.model.named_parameters() if "lora_" not in n
    }
    names = {written_name(n, "llava"): shape for n, shape in found.items()}
    assert names["model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert names["model.mm_projector.0.weight"] == (4096, 1024) and names["lm_head.weight"] == (32000, 4096)
    decoder = {n: s for n, s in names.items() if ".vision_tower." not in n}
    assert len(decoder) == 32 * 9 + 3 + 4
    assert sum(torch.Size(s).numel() for n, s in decoder.items() if "mm_projector" not in n) == 6_738_415_616
    assert sum(p.numel() for n, p in scorer.model.named_parameters() if "lora_" in n) == 319_815_680
    assert scorer.adapter.layout().image_token_id == 0
    with pytest.raises(ValueError, match="holds no weights"):
        directory(folder, weights=True)
