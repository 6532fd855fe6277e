"""A Llama tokenizer from its tokenizer.model alone, without the package sentencepiece.

The file is a protocol buffer whose field 1 repeats: a piece is {1: text, 2: score, 3: kind}. Which two pieces merge,
and in which order, follows from the scores.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "\u2581"  # of a word's start


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: integers, floats' bytes and byte strings."""
    at = 0

    def integer() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = integer()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, integer()
            continue
        size = {1: 8, 2: 0, 5: 4}[kind] or integer()
        if at + size > len(data):
            raise IndexError("a field is longer than the file")
        yield tag >> 3, data[at : at + size]
        at += size


def pieces_of(file: Path) -> dict[str, float]:
    """The vocabulary in the order of its ids, with the pieces' scores."""
    try:
        each = [dict(_fields(value)) for number, value in _fields(file.read_bytes()) if number == 1]
        pieces = {piece[1].decode(): struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in each}
    except (IndexError, KeyError, AttributeError, TypeError, UnicodeDecodeError, struct.error):
        raise ValueError(f"{file} is no vocabulary of sentencepiece, or not whole") from None
    if len(pieces) != len(each) or not pieces:
        raise ValueError(f"{file} is no vocabulary of sentencepiece: it has {len(pieces)} pieces in {len(each)} places")
    return pieces


def merges_of(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first."""
    number = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece, score in pieces.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        parts = sorted(
            (c for c in cuts if c[0] in number and c[1] in number), key=lambda c: (number[c[0]], number[c[1]])
        )
        merges += [(-score, -len(left), -len(right), left, right) for left, right in parts]
    return [(left, right) for *_, left, right in sorted(merges, key=lambda m: m[:3])]


def llama_backend(file: Path) -> Any:
    """The tokenizer as the slow one of Llama was: a mark before the text, and after every special token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = pieces_of(file)
    missing = next((word for word in ("<unk>", "<s>", "</s>") if word not in pieces), "")
    if missing:
        raise ValueError(f"{file} has no piece {missing}: it is not of Llama's kind")
    number = {piece: i for i, piece in enumerate(pieces)}
    bytes_too = "<0x00>" in number
    model = models.BPE(
        vocab=number, merges=merges_of(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=bytes_too
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", number["<s>"])]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend
