"""The models that the papers name, as the hub has them, with few and narrow layers: the same files, fields of
config.json, names of tensors, sizes of images and numbers of image tokens. And the papers' own files below a root.

The words are Llama's own where MMFAST_TOKENIZERS names a folder with llava15 in it, else ours (llama_tokenizer.py).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.directory.sentencepiece import llama_backend
from mmfast.families import drawn_config, family_of, model_class
from mmfast.families.base import CLIP_MEAN, CLIP_STD
from mmfast.families.beit3_llava import MARKS
from mmfast.families.tiny import Size
from mmfast.reproduce import weights
from mmfast.reproduce.paper import Paper, load_paper
from mmfast.world.dataset import read_lines
from mmfast.world.models import tiny_tokenizer
from tests.make import qwen_files
from tests.make.llama_tokenizer import HF_LLAVA
from tests.make.native_llava import FIELDS, sentencepiece_model, write_native, write_weights
from tests.make.published import said
from tests.make.system_files import QUESTION, write_system

SMALL = Size(hidden=64, layers=2, heads=4, kv_heads=4, image_size=336, patch=14, vision_hidden=32, vision_layers=3)
# What the hub's files say beside the sizes
LLAVA_HF = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "model_type": "llava",
    "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
}  # fmt: skip
QWEN_CHAT = {
    "attn_dropout_prob": 0.0, "bf16": True, "emb_dropout_prob": 0.0, "fp16": False, "fp32": False,
    "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192, "no_bias": True, "onnx_safe": None,
    "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer", "torch_dtype": "bfloat16", "transformers_version": "4.31.0", "use_cache": True,
    "use_dynamic_ntk": True, "use_flash_attn": False, "use_logn_attn": True,
}  # fmt: skip
MUFFIN = {
    "architectures": ["Beit3LlavaLlamaForCausalLM"], "freeze_mm_mlp_adapter": False, "fully_tune": True,
    "mm_use_im_start_end": True, "mm_vision_tower": "beit3_large_patch16_448", "model_type": "beit3_llava",
    "num_query": 64, "torch_dtype": "float32", "tune_mm_mlp_adapter": False, "use_cache": True, "use_mm_proj": True,
}  # fmt: skip


def words() -> bytes:
    """tokenizer.model, of Llama's 32,000 words or of ours."""
    own = Path(os.environ.get("MMFAST_TOKENIZERS", "")) / "llava15" / "tokenizer.model"
    return own.read_bytes() if "MMFAST_TOKENIZERS" in os.environ and own.exists() else sentencepiece_model()


def llama_tokenizer(folder: Path, more: Sequence[str]) -> PreTrainedTokenizerFast:
    """Of the folder's tokenizer.model, with more words behind its own."""
    backend = llama_backend(folder / "tokenizer.model")
    backend.add_special_tokens(list(more))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    pad = next((word for word in more if "pad" in word.lower()), "<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=HF_LLAVA, clean_up_tokenization_spaces=False, pad_token=pad, **named
    )


def drawn(family: str, size: Size, tokenizer: PreTrainedTokenizerFast, seed: int, **changes: Any) -> Any:
    """A model in memory."""
    kind = family_of(family)
    assert kind is not None
    config = drawn_config(family, **{**kind.tiny(size, tokenizer).config, **changes})
    torch.manual_seed(seed)
    return model_class(config).from_config(config, dtype=torch.float32).eval()


def put(folder: Path, **files: Any) -> Path:
    """JSON files, named without their ending."""
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2))
    return folder


# LLaVA


def llava_hf(folder: Path, *, shards: int = 3, seed: int = 0) -> Path:
    """llava-hf/llava-1.5-7b-hf: <image> and <pad> behind Llama's words, the embedding rounded up to 64 rows."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(words())
    tokenizer = llama_tokenizer(folder, ("<image>", "<pad>"))
    vocab = (len(tokenizer) + 63) // 64 * 64
    model = drawn("llava", replace(SMALL, vocab=vocab), tokenizer, seed)
    config = model.config.to_dict()
    text, vision = config["text_config"], config["vision_config"]
    ids = {"image_token_index": model.config.image_token_index, "pad_token_id": tokenizer.pad_token_id}
    sizes = {key: text[key] for key in (*TEXT, "vocab_size")}
    sizes |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "_name_or_path": "lmsys/vicuna-7b-v1.5"}
    tower = {key: vision[key] for key in TOWER} | {"model_type": "clip_vision_model", "vocab_size": 32000}
    own = LLAVA_HF | ids | {"text_config": sizes, "vision_config": tower, "vocab_size": vocab}
    write_weights(hub_names(model), folder, pickled=False, shards=shards)
    tokenizer.save_pretrained(folder)
    square = {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
    colours = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "rescale_factor": 1 / 255, "resample": 3}
    does = dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
    return put(
        folder,
        config=own,
        generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id},
        special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        added_tokens={word: tokenizer.convert_tokens_to_ids(word) for word in ("<image>", "<pad>")},
        preprocessor_config={"image_processor_type": "CLIPImageProcessor", **square, **colours, **does},
        processor_config={"processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>"},
    )


TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
)  # fmt: skip
TOWER = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "projection_dim",
)  # fmt: skip


def hub_names(model: Any) -> dict[str, Tensor]:
    """A LLaVA's tensors, half as wide, by the names that the hub's files have."""
    starts = {
        "model.language_model.": "language_model.model.", "model.multi_modal_projector.": "multi_modal_projector.",
        "model.vision_tower.": "vision_tower.vision_model.", "lm_head.": "language_model.lm_head.",
    }  # fmt: skip
    out = {}
    for name, tensor in model.state_dict().items():
        start = next(start for start in starts if name.startswith(start))
        out[starts[start] + name.removeprefix(start)] = tensor.half()
    return out


def llava_native(folder: Path, *, shards: int = 2, seed: int = 0) -> Path:
    """liuhaotian/llava-v1.5-7b (and -13b, of three shards): pickled, without a word for an image, its tower beside."""
    hf = folder.with_name(f"{folder.name}-hf")
    hf.mkdir(parents=True)
    (hf / "tokenizer.model").write_bytes(words())
    tokenizer = llama_tokenizer(hf, ())
    model = drawn("llava", replace(SMALL, vocab=len(tokenizer)), tokenizer, seed, image_token_index=0)
    save_file(hub_names(model), hf / "model.safetensors", {"format": "pt"})
    put(hf, config=model.config.to_dict())
    write_native(hf, folder, shards=shards, sentencepiece=True)
    shutil.copy(hf / "tokenizer.model", folder)
    shutil.rmtree(hf)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = marks | {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, "legacy": False}
    config = json.loads((folder / "config.json").read_text())
    released = {*FIELDS, *TEXT, "vocab_size", "hidden_act", "initializer_range", "pad_token_id", "torch_dtype"}
    own = {key: value for key, value in config.items() if key in released}
    own |= {"pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False, "use_cache": True}
    return put(folder, config=own, tokenizer_config=tokens, special_tokens_map=marks | {"pad_token": "<unk>"})


# Qwen


def qwen_vl_chat(folder: Path, *, seed: int = 0) -> Path:
    """Qwen/Qwen-VL-Chat: ten pickled shards, qwen.tiktoken, code that must not run."""
    visual = qwen_files.sizes()["visual"] | {"image_size": 448, "n_queries": 256}
    qwen_files.publish(folder, qwen_files.tiny(seed, visual=visual), parts=10, dtype=torch.bfloat16)
    own = json.loads((folder / "config.json").read_text())
    del own["visual"]["n_queries"]  # the original's code has it as a default
    return put(folder, config=QWEN_CHAT | own)


def qwen25_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen/Qwen2.5-VL-7B-Instruct: the decoder's sizes at the top of config.json, names of before transformers 5."""
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer("qwen2_5_vl", SMALL.vocab)
    model = drawn("qwen2_5_vl", replace(SMALL, kv_heads=2), tokenizer, seed)
    config = model.config.to_dict()
    starts = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        start = next((start for start in starts if name.startswith(start)), "")
        tensors[starts.get(start, "") + name.removeprefix(start)] = tensor.bfloat16()
    write_weights(tensors, folder, pickled=False, shards=5)
    tokenizer.save_pretrained(folder)
    text, rope = config["text_config"], config["text_config"]["rope_parameters"]
    own = {key: text[key] for key in (*TEXT, "vocab_size", "hidden_act", "tie_word_embeddings")}
    own |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    own |= {key: value for key, value in config.items() if key.endswith("_token_id") and value is not None}
    images = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
    images |= {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN}
    tower = {key: value for key, value in config["vision_config"].items() if key != "dtype"}
    named = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    return put(
        folder,
        config=own | named | {"torch_dtype": "bfloat16", "use_cache": True, "vision_config": tower},
        preprocessor_config=images | {"image_std": CLIP_STD},
        generation_config={"eos_token_id": [text["eos_token_id"]], "temperature": 1e-06, "do_sample": True},
    )


# Muffin


def muffin(folder: Path, *, seed: int = 0) -> Path:
    """Yirany/RLHF-V-SFT: pickled, Llama's words with Muffin's four behind them, rotary tables among the weights."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(words())
    tokenizer = llama_tokenizer(folder, MARKS)
    tower = {"width": 32, "layers": 2, "heads": 2, "inner": 64, "positions": 1024}
    changes = {"mm_vision_tower": MUFFIN["mm_vision_tower"], "mm_vision_sizes": tower, "num_query": 64}
    size = replace(SMALL, vocab=len(tokenizer), image_size=448, patch=16)
    model = drawn("beit3_llava", size, tokenizer, seed, **changes)
    tensors = dict(model.state_dict())
    for number in range(SMALL.layers):
        tensors[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_weights(tensors, folder, pickled=True, shards=3)
    config = model.config.to_dict()
    sizes = {key: config[key] for key in (*TEXT, "vocab_size", "pad_token_id")}
    put(folder, added_tokens={word: tokenizer.convert_tokens_to_ids(word) for word in MARKS})
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    tokens = marks | {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048}
    own = sizes | MUFFIN | {"mm_vision_sizes": tower}
    return put(folder, config=own, tokenizer_config=tokens, special_tokens_map=marks)


# where a paper has them

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llava-hf/llava-1.5-7b-hf": llava_hf,
    "liuhaotian/llava-v1.5-7b": llava_native,
    "liuhaotian/llava-v1.5-13b": lambda folder: llava_native(folder, shards=3),
    "Qwen/Qwen-VL-Chat": qwen_vl_chat,
    "Yirany/RLHF-V-SFT": muffin,
}


def write_models(paper: Paper, root: Path) -> Paper:
    """The models of a paper below a root, where its description has them; returns that with these models' sizes."""
    models = []
    for model in paper.models:
        if model.layout != "tower":  # a native model brings its own
            MAKERS[model.id](root / model.folder)
            seen = weights.look(model.id, root / model.folder)
            sizes = {"hidden": seen.hidden, "layers": seen.layers, "vocab": seen.vocab, "parameters": seen.parameters}
            model = model.model_copy(update=sizes)
        models.append(model)
    return paper.model_copy(update={"models": models})


PLACES = {  # of a system's own files below a root, by the keys of its recipe
    "sima": {"prompts.path": "data/SIMA_prompts", "prompts.images": "data/coco/train2017"},
    "dgpref_llava": {"prompts.path": "data/GQA/train_sceneGraphs.json", "prompts.images": "data/VisualGenome"},
    "dgpref_qwen": {"prompts.path": "data/GQA/train_sceneGraphs.json", "prompts.images": "data/VisualGenome"},
    "rlhfv": {"prompts.path": "data/RLHF-V-Dataset"},
    "rlaifv": {"prompts.path": "data/RLAIF-V-Dataset"},
}


def write_files(name: str, root: Path, world: Path) -> Path:
    """The files of a system below a root, where its paper has them."""
    if name == "mllm_dpo":
        write_sources(root / "data" / "mllm_dpo", world)
        for text in [text for one in load_paper(name).inputs for text in one.commands]:
            made = CliRunner().invoke(app, shlex.split(text.replace("{root}", str(root)))[1:])
            assert made.exit_code == 0, (made.output, made.exception)
        return root
    for key, found in write_system(name, root / ".own", world).items():
        place = root / PLACES[name][key]
        if key == "prompts.path" and found.is_file() and not place.suffix:  # a folder is named, and this is a file
            place.mkdir(parents=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found, place)
    shutil.rmtree(root / ".own")
    return root


def write_sources(home: Path, world: Path) -> None:
    """What mllm-dpo's questions are drawn from: LRV's file, of whose first 10,000 rows it takes none, and graphs."""
    shown = [world / row["images"][0] for row in read_lines(world / "pairs.jsonl")]
    (home / "lrv_image_folder" / "VG_100K").mkdir(parents=True)
    for number, picture in enumerate(shown[::2]):
        shutil.copy(picture, home / "lrv_image_folder" / "VG_100K" / f"{number}.jpg")
    names = ["elsewhere"] * 10000 + [str(number) for number in range(len(shown[::2]))]
    rows = [{"image_id": name, "question": QUESTION, "answer": "A barn.", "task": "Object"} for name in names]
    (home / "filter_cap1.json").write_text(json.dumps(rows))
    graphs = home / "SciGraphQA-295K-train" / "data"
    graphs.mkdir(parents=True)
    (home / "scigraph").mkdir()
    names = [f"1501.{number:05}v1-Figure1-1.png" for number in range(3000)]
    for number, name in enumerate(names):
        os.link(shown[1::2][number % len(shown[1::2])], home / "scigraph" / name)
    rows = [{"image_file": name, "id": name[:-4], "conversations": said(QUESTION, "A barn.")} for name in names]
    pq.write_table(pa.Table.from_pylist(rows), graphs / "train-00000-of-00001.parquet")
