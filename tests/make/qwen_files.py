"""A tiny Qwen-VL-Chat as the hub has it: .bin shards with an index, qwen.tiktoken, code that must not run."""

from __future__ import annotations

import base64
import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from mmfast.families import drawn_config, model_class
from mmfast.families.qwen.vocabulary import SPECIAL
from mmfast.world.grammar import corpus

RANKS = 300
IMAGE_START = RANKS + SPECIAL.index("<img>")
WORDS = 520  # of the embedding: some more than the tokenizer has, as in the released model
CODE = "import pathlib; pathlib.Path(__file__).with_name('it-ran').touch()\n"


@cache
def ranks(count: int = RANKS) -> dict[bytes, int]:
    """All bytes, and the joins that are most frequent in the world's grammar."""
    found = {bytes([b]): b for b in range(256)}
    texts = Counter(f" {word}".encode() for text in corpus() for word in text.split())
    pieces = {tuple(text[i : i + 1] for i in range(len(text))): n for text, n in texts.items()}
    while len(found) < count:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for piece, n in pieces.items():
            for pair in pairwise(piece):
                pairs[pair] += n
        best = min((p for p in pairs if p[0] + p[1] not in found), key=lambda p: (-pairs[p], p))
        found[best[0] + best[1]] = len(found)
        pieces = {joined(piece, best): n for piece, n in pieces.items()}
    return found


def joined(piece: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    out: list[bytes] = []
    for part in piece:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def sizes(**changes) -> dict:
    visual = {
        "width": 32, "layers": 2, "heads": 2, "mlp_ratio": 4.9231, "output_dim": 128, "image_size": 84,
        "patch_size": 14, "n_queries": 16, "image_start_id": IMAGE_START,
    }  # fmt: skip
    text = {
        "vocab_size": WORDS, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "kv_channels": 32, "initializer_range": 0.1,
    }  # fmt: skip
    return {**text, "visual": visual, **changes}


def tiny(seed: int = 0, **changes):
    """The model in memory; every bias and norm is drawn too, or a mistake in one would not show."""
    config = drawn_config("qwen", **sizes(**changes))
    torch.manual_seed(seed)
    model = model_class(config).from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
        assert p.any(), name
    return model.eval()


def publish(folder: Path, model=None, parts: int = 2, dtype=torch.float32) -> Path:
    """The directory as it is published."""
    folder.mkdir(parents=True)
    model = model or tiny()
    config = {key: value for key, value in model.config.to_dict().items() if key in sizes()}
    own = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "seq_length": 2048, "bf16": True}
    code = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    write(folder / "config.json", {**config, **own, "auto_map": code})
    tensors = {name: t.to(dtype) for name, t in model.state_dict().items()}
    names, where = list(tensors), {}
    for number in range(parts):
        file = f"pytorch_model-{number + 1:05}-of-{parts:05}.bin"
        mine = names[number * len(names) // parts : (number + 1) * len(names) // parts]
        torch.save({name: tensors[name] for name in mine}, folder / file)
        where |= dict.fromkeys(mine, file)
    write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    code = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "QWenTokenizer", "auto_map": code})
    taste = {"chat_format": "chatml", "eos_token_id": 0, "max_window_size": 6144, "do_sample": True, "top_p": 0.3}
    write(folder / "generation_config.json", taste)
    (folder / "LICENSE").write_text("terms\n")
    for name in ("configuration_qwen", "modeling_qwen", "tokenization_qwen"):
        (folder / f"{name}.py").write_text(CODE)
    return folder


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))
