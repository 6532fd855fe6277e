"""A model's tokenizer as the data needs it: text to ids with offsets, special tokens as words on request.

Special tokens that a user wrote into an answer are words. They are masked (one private-use character each) before the
chat template renders, so that what the template itself writes still counts as special, and are put back as plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmfast.data.images.own import OwnProcessor
from mmfast.data.problems import BadRow
from mmfast.directory import directory
from mmfast.families import family_for
from mmfast.families.base import image_token_id

MASK_BASE = 0xF0000  # a supplementary private-use plane: no real text holds these
ANCHORS = ("\n", "\t", "=", "\u00a7")  # one character each


@dataclass(slots=True)
class Encoded:
    ids: list[int]
    offsets: list[tuple[int, int]]  # characters of the unmasked text


def with_prefix_scheme(tokenizer_json: str, mode: str) -> str:
    """The same sentencepiece-style tokenizer in a named mode.

    "legacy": a word-start mark before the text and again after every special token, as slow Llama tokenizers do.
    "modern": only at the start of the text (transformers 5's LlamaTokenizer). Byte-level tokenizers have no such mark.
    """
    scheme = {"legacy": "always", "modern": "first"}[mode]
    spec = json.loads(tokenizer_json)
    marks = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if any(step["type"] == "Prepend" and step["prepend"] == "▁" for step in steps):
        rest = [s for s in steps if s["type"] != "Prepend" and not (s["type"] == "Replace" and s["content"] == "▁")]
        spec["normalizer"] = {"type": "Sequence", "normalizers": rest} if rest else None
        spec["pre_tokenizer"] = marks
    elif pre and pre["type"] == "Metaspace":
        spec["pre_tokenizer"] = {**pre, "prepend_scheme": scheme}
    elif pre and pre["type"] == "Sequence":
        for step in pre["pretokenizers"]:
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = scheme
    return json.dumps(spec, ensure_ascii=False)


class Tokenizer:
    def __init__(self, hf: Any, image_token_id: int | None, chat_template: str | None = None, mode: str = ""):
        from tokenizers import Tokenizer as Backend

        self.hf = hf
        self.chat_template = chat_template or hf.chat_template
        self.image_token_id = image_token_id
        text = hf.backend_tokenizer.to_str()
        self.json = with_prefix_scheme(text, mode) if mode else text
        self.special = Backend.from_str(self.json)
        self.special.no_truncation()
        self.special.no_padding()
        self.words = Backend.from_str(self.json)
        self.words.no_truncation()
        self.words.no_padding()
        self.words.encode_special_tokens = True
        self.eos, self.eos_id = hf.eos_token, hf.eos_token_id
        if self.eos is None:
            raise ValueError("the tokenizer has no eos_token, so no response could end (tokenizer_config.json)")
        added = self.special.get_added_tokens_decoder()
        self.image_token = None if image_token_id is None else self.special.id_to_token(image_token_id)
        if image_token_id is not None and self.image_token is None:
            raise ValueError(f"the tokenizer has no token for the model's image_token_id {image_token_id}")
        self.specials = {t.content: i for i, t in added.items() if t.special or i == image_token_id}
        self._flags = {t.content: (t.lstrip, t.rstrip) for t in added.values()}
        self.expanded: tuple[str, str] | None = None  # what the template writes for an image -> what the model reads

    @staticmethod
    def load(model: str | Path, mode: str = "") -> Tokenizer:
        from transformers import AutoTokenizer

        folder = directory(model)
        template = None
        if (folder / "chat_template.jinja").exists():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        elif (folder / "chat_template.json").exists():
            template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
        hf = AutoTokenizer.from_pretrained(folder)
        if not hf.is_fast:
            raise ValueError(f"{model}: only tokenizers with a tokenizer.json (or convertible to one) are supported")
        config = json.loads((folder / "config.json").read_text())
        family = family_for(config)
        out = Tokenizer(hf, (family.image_id if family else image_token_id)(config), template, mode)
        if out.image_token is not None:
            if family is not None and family.image_aspect:
                out.expanded = family.image_text(config, out.image_token, out.token)
            else:
                out.expanded = OwnProcessor(folder).marks()
        return out

    def token(self, number: int) -> str:
        text = self.special.id_to_token(number)
        if text is None:
            raise ValueError(f"the tokenizer has no token {number}, which config.json says stands beside an image")
        return text

    def in_mode(self, mode: str) -> Tokenizer:
        return Tokenizer(self.hf, self.image_token_id, self.chat_template, mode)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.json.encode()).hexdigest()

    @cached_property
    def bos_ids(self) -> list[int]:
        """What the tokenizer puts before a text of its own accord."""
        whole = self.special.encode("a", add_special_tokens=True)
        return whole.ids[: whole.special_tokens_mask.index(0)] if 0 in whole.special_tokens_mask else []

    # special tokens as words

    @cached_property
    def _literals(self) -> list[str]:
        return sorted(self.specials, key=len, reverse=True)

    @cached_property
    def _find_literal(self) -> re.Pattern:
        return re.compile("|".join(re.escape(s) for s in self._literals) or r"(?!)")

    @cached_property
    def _find_mask(self) -> re.Pattern:
        return re.compile(f"[{chr(MASK_BASE)}-{chr(MASK_BASE + max(len(self._literals), 1) - 1)}]")

    def mask(self, text: str) -> tuple[str, list[str]]:
        """Each special token written out in `text` becomes one private-use character; also which they were."""
        taken = self._find_mask.search(text)
        if taken:
            raise BadRow("text", f"the private-use character U+{ord(taken.group()):X} stands in a text")
        literals: list[str] = []

        def replace(match: re.Match) -> str:
            literals.append(match.group())
            return chr(MASK_BASE + self._literals.index(match.group()))

        return self._find_literal.sub(replace, text), literals

    def unmask(self, text: str) -> str:
        return self._find_mask.sub(lambda m: self._literals[ord(m.group()) - MASK_BASE], text)

    # encoding

    def encode(self, text: str) -> Encoded:
        """Ids of a text as it stands: special tokens are special, masked ones are words, nothing is put in front."""
        if not self._find_mask.search(text):
            encoding = self.special.encode(text, add_special_tokens=False)
            return Encoded(encoding.ids, encoding.offsets)
        return self._encode_pieces(text)

    def encode_cut(self, text: str, ends: Sequence[int]) -> tuple[Encoded, list[int | None]]:
        """A text tokenised once; and for each of `ends` (places in the masked text) how many of its tokens the text up
        to there has by itself, None where that text's own tokens are no prefix of the whole's."""
        whole = self.encode(text)
        marks = [m.start() for m in self._find_literal.finditer(text) if m.group() != self.hf.unk_token]
        places = [i for i, token in enumerate(whole.ids) if token in self._special_ids]
        if len(marks) != len(places):
            marks, places = [], []
        counts: list[int | None] = []
        for end in ends:  # what stands before a special token does not act on what comes after it
            before = sum(m < end for m in marks)
            start, first = (marks[before - 1], places[before - 1]) if before else (0, 0)
            own = self.encode(text[start:end]).ids
            last = first + len(own)
            counts.append(last if whole.ids[first:last] == own else None)
        return whole, counts

    def encode_after(self, text: str) -> Encoded:
        """Ids of a text that goes on from another one: without the mark that some tokenizers put before a text."""
        return (self._marks_text_start and _after_anchor(text, self.encode)) or self.encode(text)

    @cached_property
    def _marks_text_start(self) -> bool:
        alone, after = (self.words.encode(t, add_special_tokens=False).ids for t in ("a", "\na"))
        return after[-len(alone) :] != alone

    def _encode_pieces(self, text: str) -> Encoded:
        """The same, special tokens cut out by hand, so that what is masked between them can be put back."""
        out = Encoded([], [])
        position = at = 0  # in the masked text, in the unmasked one
        last = ""
        for match in [*self._find_literal.finditer(text), None]:
            end = match.start() if match else len(text)
            piece, token = text[position:end], match.group() if match else ""
            if last and self._flags[last][1]:
                at, piece = at + len(piece) - len(piece.lstrip()), piece.lstrip()
            skip = 0
            if token and self._flags[token][0]:
                skip, piece = len(piece) - len(piece.rstrip()), piece.rstrip()
            words = self.unmask(piece)
            if words:
                encoded = self._encode_words(words, continued=bool(out.ids))
                out.ids += encoded.ids
                out.offsets += [(a + at, b + at) for a, b in encoded.offsets]
                at += len(words)
            if match:
                at += skip
                out.ids.append(self.specials[token])
                out.offsets.append((at, at + len(token)))
                at, position, last = at + len(token), match.end(), token
        return out

    @cached_property
    def _marks_text_start_only(self) -> bool:
        """Does a text begin with a mark that is not repeated after a special token ("first" prefix scheme)?"""
        plain = self.special.encode("a", add_special_tokens=False).ids
        return self.special.encode(self.eos + "a", add_special_tokens=False).ids[1:] != plain

    def _encode_words(self, text: str, continued: bool) -> Encoded:
        def encode(words: str) -> Encoded:
            encoding = self.words.encode(words, add_special_tokens=False)
            return Encoded(encoding.ids, encoding.offsets)

        encoded = _after_anchor(text, encode) if continued and self._marks_text_start_only else encode(text)
        if encoded is None:
            raise BadRow("special-words", "special tokens written out in a text cannot be told apart by this tokenizer")
        return self._checked(encoded, text)

    def _checked(self, encoded: Encoded, text: str) -> Encoded:
        """A special token that the tokenizer does not mark as special is split after its first character."""
        if not any(i in self._special_ids for i in encoded.ids):
            return encoded
        match = self._find_literal.search(text)
        if match is None:
            raise BadRow("special-words", f"the tokenizer makes special tokens of plain text: {text[:80]!r}")
        cut = match.start() + 1
        head, tail = self._encode_words(text[:cut], False), self._encode_words(text[cut:], True)
        return Encoded(head.ids + tail.ids, head.offsets + [(a + cut, b + cut) for a, b in tail.offsets])

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.specials.values()) - {self.hf.unk_token_id}  # unknown words may stay unknown


def _after_anchor(text: str, encode: Callable[[str], Encoded]) -> Encoded | None:
    """A text that does not stand at a start, encoded after a character that no token spans; None where each is."""
    for anchor in ANCHORS:
        whole = encode(anchor + text)
        if all(b <= 1 or a >= 1 for a, b in whole.offsets):
            kept = [(i, (a - 1, b - 1)) for i, (a, b) in zip(whole.ids, whole.offsets, strict=True) if b > 1]
            return Encoded([i for i, _ in kept], [o for _, o in kept])
    return None
