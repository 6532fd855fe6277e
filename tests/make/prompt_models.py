"""A tiny LLaVA-1.5 in the shape that decides about prompts: 576 image tokens, a window of 4,096, a Llama tokenizer."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmfast.world.models import SIZES, tiny_model
from tests.make.llama_tokenizer import HF_LLAVA

DOCS = Path(__file__).parents[2] / "docs"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@lru_cache(maxsize=1)
def _trained() -> str:
    """Pieces as Llama has them (▁ for a blank, bytes for what is unknown, a digit a piece), learnt from our docs."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=6000, special_tokens=["<unk>", "<s>", "</s>", *bytes_, "<image>", "<pad>"], show_progress=False,
        initial_alphabet=list("0123456789[]{}\"'"), max_token_length=12,
    )  # fmt: skip
    words = (
        part for page in sorted(DOCS.glob("*.md")) for line in page.read_text().splitlines() for part in line.split()
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer.to_str()


def llava(folder: Path, tokenizer: Path | None = None, *, size: str = "tiny") -> str:
    """A model directory with a tokenizer made here, or with that of a folder."""
    if tokenizer is None:
        made = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(_trained()), unk_token="<unk>", bos_token="<s>", eos_token="</s>",
            pad_token="<pad>", additional_special_tokens=["<image>"], extra_special_tokens={"image_token": "<image>"},
            chat_template=HF_LLAVA, clean_up_tokenization_spaces=False,
        )  # fmt: skip
        made.save_pretrained(folder / "tokenizer")
        tokenizer = folder / "tokenizer"
    named = AutoTokenizer.from_pretrained(tokenizer)
    vocab = max(len(named) + 64, SIZES[size].vocab)
    model = tiny_model("llava", folder / "model", size=size, image_size=336, vocab=vocab, init=0.02)
    for name in FILES:
        (model / name).unlink(missing_ok=True)
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, model / name)
    config = json.loads((model / "config.json").read_text())
    place = next(name for name in ("image_token_index", "image_token_id") if name in config)
    config[place] = named.convert_tokens_to_ids("<image>")
    for part in (config, config["text_config"]):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if name in part:
                part[name] = getattr(named, name)
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": named.eos_token_id}))
    return str(model)
