"""LLaVA-1.5's native layout (liuhaotian/llava-v1.5-7b and -13b, and the adapters that its trainers save): what its
files say, as transformers would have it.

The descriptions (config.json, tokenizer, image processor, chat template) are written into a small folder of the
machine's cache; the weights stay where they are. LLaVA has no word for an image: its unknown word, which byte fallback
never gives a text, stands in an image's places here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmfast.directory.hub import found, weight_files, whole_files, with_weights
from mmfast.directory.native import NOTE, Tensors, note_of, read_adapter
from mmfast.directory.sentencepiece import llama_backend

VERSION = 1
CLIP_336 = "openai/clip-vit-large-patch14-336"
# Sizes of the tower that LLaVA-1.5 names, for what needs no weights
TOWER_SIZES = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
OF_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling"),
    *("rope_parameters", "tie_word_embeddings", "initializer_range", "attention_bias", "mlp_bias"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# vicuna_v1, as the original trains and asks
TEMPLATE = (
    "{{ bos_token }}{% if not messages or messages[0]['role'] != 'system' %}" + SYSTEM + " {% endif %}"
    "{% for m in messages %}{% set texts %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}{% endset %}"
    "{% if m['role'] == 'system' %}{{ texts }} {% elif m['role'] == 'user' %}USER: "
    "{% if m['content'] is not string %}{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% endif %}{{ texts }} {% else %}ASSISTANT: {{ texts }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text()).get("model_type", ""))
    except (OSError, ValueError):
        return ""


def native_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder in LLaVA's native layout; empty for any other. Raises for layouts that are not read."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    kind = str(config.get("model_type", ""))
    if not kind.startswith("llava") or "vision_config" in config or "mm_vision_tower" not in config:
        return {}
    wrong, made = "", (config.get("architectures") or ["LlavaLlamaForCausalLM"])[0]
    if made not in ("LlavaLlamaForCausalLM", "LlavaForCausalLM"):
        wrong = f"it is a {made}"
    elif kind not in ("llava", "llava_llama"):
        wrong = f"its decoder is of type {kind}"
    elif config.get("mm_projector_type", "linear") != "mlp2x_gelu":
        wrong = f"its projector is {config.get('mm_projector_type', 'linear')!r}, not 'mlp2x_gelu'"
    elif config.get("mm_patch_merge_type", "flat") != "flat" or config.get("image_aspect_ratio") == "anyres":
        wrong = "it cuts images into tiles"
    elif config.get("mm_use_im_start_end") or config.get("mm_use_im_patch_token"):
        wrong = "it has words of its own for images"
    if wrong:
        raise ValueError(
            f"{folder} is in a native layout of LLaVA that is not read: {wrong}. Of the native layouts LLaVA-1.5's is "
            "read; take a converted model (llava-hf/...) instead"
        )
    return config


def is_native(folder: Path) -> bool:
    return bool(native_config(folder))


def is_adapter(folder: Path) -> bool:
    """An adapter as LLaVA's trainers save it: peft's files, the model's config and the projector apart."""
    return (folder / "adapter_config.json").is_file() and (
        (folder / "non_lora_trainables.bin").is_file() or is_native(folder)
    )


def view(name: str, folder: Path, weights: bool, directory: Callable[..., Path]) -> Path:
    """The folder that describes a native one. `weights`: they are there, or this raises, and a note says where."""
    if not is_adapter(folder):
        return _view(name, folder, folder, weights)
    # An adapter stands for its base with the adapter merged
    settings = adapter_settings(name, folder)
    try:
        if (vicuna := on_vicuna(name, folder, settings["base_model_name_or_path"], weights)) is not None:
            return vicuna
        base = directory(settings["base_model_name_or_path"], weights)
    except ValueError as error:
        raise ValueError(f"{name} is an adapter, and its base cannot be read: {error}") from None
    return _merged_view(folder, base, weights, {"adapter": str(folder), "scale": scale_of(settings)})


def on_vicuna(name: str, folder: Path, base: str, weights: bool, bare: bool = False) -> Path | None:
    """Of an adapter on Vicuna itself, as LLaVA's own name it: the model that both are, its tower and projector from
    beside the adapter. `bare`: without the matrices, which is what they are merged into. None for any other base."""
    plain = found(base)
    if _kind(plain) != "llama":
        return None
    if not is_native(folder):
        raise ValueError(f"{name} has Vicuna as its base, and no config.json of a LLaVA that names tower and projector")
    plain = with_weights(plain, base) if weights else plain
    note = {"name": f"{base} under {name}", "adapter": str(folder), "bare": bare}
    return _view(name, folder, plain, weights, note | {"scale": scale_of(adapter_settings(name, folder))})


def _view(name: str, folder: Path, base: Path, weights: bool, more: dict[str, Any] | None = None) -> Path:
    """`folder` has the config; `base`, the same folder but for adapters, the decoder's weights and the tokenizer."""
    config = native_config(folder)
    tower = tower_of(config, folder, fetch=weights)
    note: dict[str, Any] = {}
    if weights:
        files = [str(file) for file in whole_files(str(base), base)]
        towers = [str(file) for file in whole_files(str(tower), tower)] if tower else []
        dtype = str(config.get("torch_dtype") or config.get("dtype") or "").removeprefix("torch.")
        note = {"name": name, "origin": str(folder), "files": files, "tower": towers, "dtype": dtype}
        note |= {"beside": str(base)} | (more or {})
        if not tower and not Tensors(note).own_tower:
            raise ValueError(_no_tower(name, config))

    def write(out: Path) -> None:
        words = _tokenizer(base, config, out)
        vision = _tower_sizes(name, config, tower)
        (out / "config.json").write_text(json.dumps(_config(config, vision, words), indent=1))
        (out / "preprocessor_config.json").write_text(json.dumps(_images(config, vision["image_size"]), indent=1))
        (out / "processor_config.json").write_text(json.dumps(_processor(config, vision["patch_size"]), indent=1))
        if (base / "generation_config.json").exists():
            shutil.copy(base / "generation_config.json", out)
        if note:
            (out / NOTE).write_text(json.dumps(note, indent=1))

    return _kept(folder, [str(tower), note, _stamps(folder), _stamps(base)], write)


def _merged_view(folder: Path, base: Path, weights: bool, more: dict[str, Any]) -> Path:
    """Of an adapter in LLaVA's layout on a whole LLaVA, whose folder of descriptions `base` is."""
    note: dict[str, Any] = {}
    if weights:
        note = note_of(base) or {"name": str(base), "origin": str(base)}
        note.setdefault("files", [str(file) for file in weight_files(base)])
        note |= more
        Tensors(note)  # it belongs to this base, or this raises

    def write(out: Path) -> None:
        for path in base.iterdir():
            if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and "index" not in path.name:
                shutil.copy(path, out)
        if note:
            (out / NOTE).write_text(json.dumps(note, indent=1))

    return _kept(folder, [str(base), note, _stamps(folder), _stamps(base)], write)


def peft_view(name: str, folder: Path) -> Path:
    """An adapter in LLaVA's layout, written again in peft's, by the names of transformers' model."""
    from safetensors.torch import save_file

    settings = adapter_settings(name, folder)
    lora, replaced = read_adapter(folder)

    def write(out: Path) -> None:
        tensors = {
            f"{stem}.lora_{side}.weight": t for stem, pair in lora.items() for side, t in zip("AB", pair, strict=True)
        }
        whole = sorted(
            {owner.rpartition(".")[0].removesuffix(".linear_1").removesuffix(".linear_2") for owner in replaced}
        )
        own = settings | {"target_modules": sorted(lora), "modules_to_save": whole or None}
        (out / "adapter_config.json").write_text(json.dumps(own, indent=1))
        named = {f"base_model.model.{key}": t.contiguous() for key, t in (tensors | replaced).items()}
        save_file(named, out / "adapter_model.safetensors", {"format": "pt"})

    return _kept(folder, ["peft", _stamps(folder)], write)


def adapter_settings(name: str, folder: Path) -> dict[str, Any]:
    """adapter_config.json, which must be plain LoRA's of one rank and scale."""
    settings: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    odd = next((k for k in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if settings.get(k)), "")
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("bias", "none") != "none":
        odd = "peft_type or bias"
    if odd:
        raise ValueError(f"{name}: {odd} in its adapter_config.json: of LLaVA's adapters only plain LoRA is read")
    return settings


def scale_of(settings: dict[str, Any]) -> float:
    rank = settings["r"]
    return settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)


def tower_of(config: dict[str, Any], folder: Path, *, fetch: bool) -> Path | None:
    """The folder of the tower that a config names: beside the model, or of a hub id. None where it is not there."""
    tower = str(config["mm_vision_tower"])
    last = tower.rstrip("/").rpartition("/")[2]
    for place in (Path(tower), folder / tower, folder / last, folder.parent / last):
        if (place / "config.json").is_file():
            return place
    for cached in (True, False) if fetch else (True,):
        try:
            place = with_weights(found(tower, cached=cached), tower, cached=cached)
            if (place / "config.json").is_file() and (not fetch or whole_files(tower, place)):
                return place
        except ValueError:
            continue
    return None


def _no_tower(name: str, config: dict[str, Any]) -> str:
    return (
        f"{name} names its tower, {config['mm_vision_tower']}, and does not hold it: it is neither a folder beside the "
        "model nor in the hub's cache, and could not be fetched (hf download it, or put its folder beside the model)"
    )


def _tower_sizes(name: str, config: dict[str, Any], tower: Path | None) -> dict[str, Any]:
    """The tower's part of transformers' config."""
    if tower is not None:
        own = json.loads((tower / "config.json").read_text())
    elif "mm_vision_config" in config:  # written by our export where the tower lies in the checkpoint
        own = config["mm_vision_config"]
    elif config["mm_vision_tower"] == CLIP_336:
        own = TOWER_SIZES
    else:
        raise ValueError(_no_tower(name, config))
    kind = own.get("model_type", "clip")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{name}: its tower {config['mm_vision_tower']} is of type {kind}; only CLIP's is read")
    own = own.get("vision_config", own)
    kept = (*TOWER_SIZES, "hidden_act", "layer_norm_eps", "num_channels", "attention_dropout", "initializer_range")
    return {"model_type": "clip_vision_model", **{key: own[key] for key in kept if key in own}}


def _config(config: dict[str, Any], vision: dict[str, Any], image: int) -> dict[str, Any]:
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    whole = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    text = {key: config[key] for key in OF_TEXT if config.get(key) is not None}
    made = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama"} | text,
        "vision_config": vision,
        "image_token_index": image,
        "image_seq_length": patches + whole,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full" if whole else "default",
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
    dtype = config.get("torch_dtype") or config.get("dtype")
    return made | ({"dtype": dtype} if dtype else {})


def _images(config: dict[str, Any], edge: int) -> dict[str, Any]:
    """CLIP's processor; before it, where the model was trained so, an image is padded to a square."""
    return {
        "image_processor_type": "LlavaImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": edge}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": edge, "width": edge}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "do_pad": config.get("image_aspect_ratio") == "pad",
    }  # fmt: skip


def _processor(config: dict[str, Any], patch: int) -> dict[str, Any]:
    """For other software: mmfast reads none of it."""
    whole = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    return {
        "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": patch,
        "num_additional_image_tokens": 1, "vision_feature_select_strategy": "full" if whole else "default",
    }  # fmt: skip


def _tokenizer(folder: Path, config: dict[str, Any], out: Path) -> int:
    """Writes the tokenizer; returns the id that stands in an image's places."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if (folder / "tokenizer.json").exists():
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "tokenizer.model").exists():
        backend = llama_backend(folder / "tokenizer.model")
        if (folder / "added_tokens.json").exists():
            added = json.loads((folder / "added_tokens.json").read_text())
            backend.add_special_tokens(sorted(added, key=lambda word: added[word]))
    else:
        raise ValueError(f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json")
    image = backend.token_to_id("<image>")
    if image is None or image >= config["vocab_size"]:
        image = backend.token_to_id("<unk>")
        if image is None:
            raise ValueError(f"{folder}: its tokenizer has neither <image> nor <unk>")
        backend = Tokenizer.from_str(_renamed(json.loads(backend.to_str()), "<unk>", "<image>"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    named = {key: word for key, word in special.items() if backend.token_to_id(word) is not None}
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
        **named,
    ).save_pretrained(out)
    return image


def _renamed(spec: dict[str, Any], word: str, other: str) -> str:
    """A tokenizer in which a word has another name."""
    vocab = spec["model"]["vocab"]
    vocab.pop(other, None)
    spec["model"]["vocab"] = {other if key == word else key: number for key, number in vocab.items()}
    if spec["model"].get("unk_token") == word:
        spec["model"]["unk_token"] = other
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != other]
    for token in spec["added_tokens"]:
        token["content"] = other if token["content"] == word else token["content"]
    return json.dumps(spec, ensure_ascii=False)


def _stamps(folder: Path) -> list[list[Any]]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _kept(folder: Path, parts: list[Any], write: Callable[[Path], None]) -> Path:
    """A folder of the machine's cache that holds what `write` writes, named after what that depends on. It keeps its
    origin's last name, which of a hub id is the commit."""
    text = json.dumps([VERSION, str(folder.resolve()), *parts])
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfast" / "native"
    final = root / hashlib.sha256(text.encode()).hexdigest()[:24] / folder.resolve().name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=".making-"))
    try:
        write(temporary)
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.is_dir():  # else another process made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
