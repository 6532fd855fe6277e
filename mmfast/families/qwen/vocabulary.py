"""qwen.tiktoken -> a fast tokenizer. The file ranks byte strings: the lower of two neighbours' joint ranks is joined
first. transformers wants the joins themselves (merges): a string's is the pair of parts that is left of it when all
joins of lower rank are done. The model's own tokenizer is code in its directory, which is never run."""

from __future__ import annotations

import base64
import binascii
import itertools
from pathlib import Path
from typing import Any

NAME = "qwen.tiktoken"
IMAGE_MARKS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)), *IMAGE_MARKS)


def ranks_of(file: Path) -> dict[bytes, int]:
    """The strings of the file, by their ids."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{file}:{number} is no line of a tiktoken file (base64, then a number)") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{file} is not whole: its {len(ranks)} ranks do not run from 0 on without a gap")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{file} is not whole: the byte {missing[0]} has no rank")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """In the order of their ranks. A string that no join makes is never written by a tiktoken encoder in pieces; the
    released file has none, and others are refused."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _joined(token, ranks, rank)
        if len(parts) != 2:
            raise ValueError(f"the token {token!r} of rank {rank} is not made by joining two others")
        merges.append((parts[0], parts[1]))
    return merges


def _joined(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """What is left of a string when all joins of a rank lower than `below` are done, the lowest first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, i = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def tokenizer_of(file: Path, template: str) -> Any:
    """The tokenizer of a directory, with a chat template."""
    from transformers import AddedToken, Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ranks, letters = ranks_of(file), bytes_to_unicode()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    kind: Any = Qwen2Tokenizer
    tokenizer = kind(
        vocab={spelt(token): rank for token, rank in ranks.items()},
        merges=[(spelt(a), spelt(b)) for a, b in merges_of(ranks)],
        unk_token=None,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        clean_up_tokenization_spaces=False,
    )  # this has given the first its id; each takes the next
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken(t, special=True) for t in SPECIAL[1:]]})
    tokenizer.eos_token = "<|im_end|>"  # what ends an answer
    tokenizer.chat_template = template
    return tokenizer
