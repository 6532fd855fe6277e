"""A Llama-style tokenizer made here: sentencepiece-like BPE with byte fallback, in both prefix schemes."""

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = """A chat between a curious user human and an artificial intelligence assistant. The assistant gives helpful,
detailed, and polite answers to the user's human's questions. USER: ASSISTANT: ### Human: Assistant: system user
What is this on the desk? It is red blue mug pen. Two cows graze. Three near barn. Yes, No. Describe scene. cat dog"""

# The template of LLaVA-1.5 in transformers' own form: a blank after every text, no end mark.
HF_LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every word of WORDS by merges from the left, single letters, and 256 byte tokens, in Llama's order of ids."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    letters = sorted(
        set("".join(WORDS.split())) | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    )
    for letter in ["▁", *letters, "<", ">", "/"]:
        vocab.setdefault(letter, len(vocab))
    merges: dict[tuple[str, str], None] = {}
    for word in [f"▁{w}" for w in WORDS.split()] + WORDS.split():
        left = word[0]
        for letter in word[1:]:
            merges.setdefault((left, letter))
            left += letter
            vocab.setdefault(left, len(vocab))
    return vocab, list(merges)


def llama_tokenizer(mode: str) -> PreTrainedTokenizerFast:
    """mode "legacy": the normalizer of old conversions; "modern": transformers 5's first-word mark."""
    vocab, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), byte_fallback=True, unk_token="<unk>"))
    if mode == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=["<image>"],
        chat_template=HF_LLAVA,
        clean_up_tokenization_spaces=False,
    )
