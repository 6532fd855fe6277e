"""Record -> Example: messages rendered, tokenised, spans and segment flags found, everything checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from mmfast.data.problems import BadRow, Problem
from mmfast.data.records import Branch, Example, ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.segments import changed_flags, span_weights
from mmfast.data.text.templates import Chunk, Template, image_count, parts, text_of
from mmfast.data.text.tokens import Encoded

FLOAT32_MAX = float(np.finfo(np.float32).max)  # weights are float32 in a pack


@dataclass(slots=True)
class Side:
    """A branch in the making."""

    ids: np.ndarray
    spans: list[tuple[int, int]]
    offsets: np.ndarray  # int[n, 2], of the scored tokens
    answer_start: int  # where, in the offsets' count, the last answer begins
    images: tuple[str, ...]
    last_span_from: int  # the scored token that opens the last answer


class ExampleBuilder:
    def __init__(self, template: Template, settings: DataSettings):
        self.template, self.tokenizer, self.settings = template, template.tokenizer, settings

    def build(self, record: Record, images: Sequence[ImageInfo]) -> tuple[Example, list[Problem]]:
        """`images` are record.images, looked up, in order. Raises BadRow."""
        # Both sides as tokens
        _check_weight(record.weight, "weight")
        notes: list[Problem] = []
        chosen = self._side(record, record.chosen_prompt or record.prompt, record.chosen, images, notes, "chosen")
        rejected = None
        if record.rejected is not None:
            prompt = record.rejected_prompt or record.prompt
            rejected = self._side(record, prompt, record.rejected, images, notes, "rejected")
            if np.array_equal(chosen.ids, rejected.ids) and chosen.images == rejected.images:
                raise BadRow("identical", "chosen and rejected are the same tokens")
        # Which tokens differ from the other side, or weigh more or less
        flags: dict[str, np.ndarray | None] = {}
        weights: dict[str, np.ndarray | None] = {}
        mode = self.settings.segments
        if mode == "record" and record.segments:
            for name, side in (("chosen", chosen), ("rejected", rejected)):
                if side is not None and record.segments.get(name):
                    flags[name], weights[name] = self._given(side, record.segments[name])
        elif mode in ("clean", "compat") and rejected is not None:
            flags["rejected"], flags["chosen"] = changed_flags(
                mode, (rejected.ids, rejected.spans), (chosen.ids, chosen.spans), self.settings.insertions
            )

        def branch(side: Side, name: str) -> Branch:
            marks = {"changed": flags.get(name), "weights": weights.get(name)}
            return Branch(ids=side.ids, images=side.images, spans=tuple(side.spans), **marks)

        example = Example(
            id=record.id,
            source=record.source,
            chosen=branch(chosen, "chosen"),
            rejected=None if rejected is None else branch(rejected, "rejected"),
            weight=record.weight,
        )
        return example, notes

    def _given(self, side: Side, segments: list) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Spans given in the record; they count characters of the last answer."""
        for segment in segments:
            if len(segment) > 2 and segment[2] is not None:
                _check_weight(segment[2], "a segment's weight")
        n, first = len(side.offsets), side.last_span_from
        changed, weights = span_weights(side.offsets[first:], segments, side.answer_start)
        flags = np.zeros(n, bool)
        flags[first:] = changed
        if weights is not None:
            weights = np.concatenate([np.ones(first, np.float32), weights])
            if not weights.any():
                raise BadRow("weight", "every scored token of an answer weighs 0: leave the row out")
        return (flags if flags.any() else None), weights

    def _side(
        self,
        record: Record,
        prompt: Sequence[dict],
        answer: Sequence[dict],
        images: Sequence[ImageInfo],
        notes: list[Problem],
        name: str,
    ) -> Side:
        messages, scored = self._messages(record, prompt, answer, notes, name)
        used = self._images_of(messages, images)
        messages, literals = self.template.messages_masked(messages)
        if literals:
            listed = ", ".join(sorted(set(literals)))
            notes.append(Problem(record.source, "special-words", f"{name}: {listed} written out; tokenised as words"))
        chunks = self.template.chunks(messages, scored)
        side = self._joint(chunks) if self.template.joint else self._cut(chunks, record, notes, name)
        side.images = tuple(i.id for i in used)
        token = self.tokenizer.image_token_id
        placeholders = 0 if token is None else int((side.ids == token).sum())
        if placeholders != len(used):
            raise BadRow("image-count", f"{name}: {placeholders} image tokens for {len(used)} images")
        content = self.tokenizer.unmask(text_of(messages[scored[-1]]))
        side.answer_start = self._answer_start(chunks, content)
        self._fit(side, used, record, notes, name)
        return side

    def _messages(
        self, record: Record, prompt: Sequence[dict], answer: Sequence[dict], notes: list[Problem], name: str
    ) -> tuple[list[dict], list[int]]:
        messages = [*prompt, *answer]
        if not answer or messages[-1]["role"] != "assistant":
            raise BadRow("empty-response", f"{name} does not end with an answer of the assistant")
        first = 0 if record.rejected is None else len(prompt)  # a shared prompt's answers have no preference
        scored = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        if self.settings.turns == "last":
            scored = scored[-1:]
        for i in scored:
            text = text_of(messages[i])
            if not text.strip():
                raise BadRow("empty-response", f"{name} holds an empty answer")
            limit, words = self.settings.max_words, text.split(" ")  # at single blanks alone, as DGPref does
            if limit and len(words) > limit:
                text = " ".join(words[:limit])
                if not text.strip():
                    raise BadRow("empty-response", f"{name} begins with data.max_words = {limit} blanks")
                messages[i] = {"role": "assistant", "content": text}
                notes.append(Problem(record.source, "words-cut", f"{name}: cut after {limit} words"))
            mark = self.template.role_mark
            if mark and mark in text:
                notes.append(Problem(record.source, "role-words", f"{name}: {mark!r} stands in an answer, as words"))
        return messages, scored

    def _images_of(self, messages: Sequence[dict], images: Sequence[ImageInfo]) -> list[ImageInfo]:
        """The images of a path in the order of its placeholders; a part may name its image by `index`."""
        places = [p.get("index") for m in messages for p in parts(m) if p["type"] == "image"]
        named = [images[i] for i in places if i is not None]
        if named and len(named) == len(places):
            return named
        if len(places) != len(images):
            raise BadRow("image-count", f"{image_count(messages)} image tokens for {len(images)} images")
        return list(images)

    # tokens

    def _cut(self, chunks: Sequence[Chunk], record: Record, notes: list[Problem], name: str) -> Side:
        """One text, tokenised once and cut where the prompt's own tokens end; where they do not, chunk by chunk."""
        text = "".join(c.text for c in chunks)
        whole, counts = self.tokenizer.encode_cut(text, list(accumulate(len(c.text) for c in chunks[:-1])))
        ends = [*(n for n in counts if n is not None), len(whole.ids)]
        if None in counts:
            whole, ends = self._apart(chunks)
            if not any(n.kind == "tokenised-apart" for n in notes):
                why = "the prompt's own tokens do not begin the whole text's, so prompt and answer were tokenised apart"
                notes.append(Problem(record.source, "tokenised-apart", f"{name}: {why}"))
        bos = self.tokenizer.bos_ids
        shift = 0 if whole.ids[: len(bos)] == bos else len(bos)
        starts = [0, *ends[:-1]]
        inside = [(a, b) for a, b, chunk in zip(starts, ends, chunks, strict=True) if chunk.scored]
        spans = [(a + shift, b + shift) for a, b in inside]
        offsets = [o for a, b in inside for o in whole.offsets[a:b]]
        last = len(offsets) - (inside[-1][1] - inside[-1][0])
        return Side(np.asarray([*bos[:shift], *whole.ids], np.int32), spans, _pairs(offsets), 0, (), last)

    def _apart(self, chunks: Sequence[Chunk]) -> tuple[Encoded, list[int]]:
        whole, at = Encoded([], []), 0
        ends: list[int] = []
        for k, chunk in enumerate(chunks):
            encoded = self.tokenizer.encode_after(chunk.text) if k else self.tokenizer.encode(chunk.text)
            whole.ids += encoded.ids
            whole.offsets += [(a + at, b + at) for a, b in encoded.offsets]
            ends.append(len(whole.ids))
            at += len(self.tokenizer.unmask(chunk.text))
        return whole, ends

    def _joint(self, chunks: Sequence[Chunk]) -> Side:
        encoded = self.tokenizer.encode("".join(c.text for c in chunks))
        bos = self.tokenizer.bos_ids
        shift = 0 if encoded.ids[: len(bos)] == bos else len(bos)
        ids = np.asarray([*bos[:shift], *encoded.ids], np.int32)
        offsets = _pairs(encoded.offsets)
        spans, scored_offsets, at, last, n = [], [], 0, 0, 0
        for chunk in chunks:
            length = len(self.tokenizer.unmask(chunk.text))
            if chunk.scored:
                inside = np.flatnonzero((offsets[:, 1] > at + chunk.lead) & (offsets[:, 1] <= at + length))
                if not len(inside):
                    raise BadRow("empty-response", "an answer has no token of its own")
                spans.append((int(inside[0]) + shift, int(inside[-1]) + 1 + shift))
                scored_offsets.append(offsets[inside[0] : inside[-1] + 1])
                last, n = n, n + len(scored_offsets[-1])
            at += length
        if self.template.named is not None and self.template.named.role_marks:
            marks = self._muffins(chunks, spans[0][0])
            last = sum(b - a for a, b in marks)
            spans = [*marks, *spans]
            scored_offsets = [offsets[a - shift : b - shift] for a, b in spans]
        return Side(ids, spans, np.concatenate(scored_offsets), 0, (), last)

    def _muffins(self, chunks: Sequence[Chunk], answer: int) -> list[tuple[int, int]]:
        """What Muffin scores before the answer. It counts the tokens of each turn alone, a BOS with each, and of the
        human's leaves out all from the third on: two of its mark are scored, and what that count leaves of the next."""
        if len(chunks) != 2:
            raise BadRow("template", f"template {self.template.name} is Muffin's, of one question and one answer")
        head, mark, rest = chunks[0].text.partition("### ")
        turn = mark + rest.removesuffix(self.template.role_mark)
        first = len(self.tokenizer.encode(head).ids) + 1
        second = first + len(self.tokenizer.encode(turn).ids) + 1
        return [(first, first + 2), (second, answer)]

    def _answer_start(self, chunks: Sequence[Chunk], content: str) -> int:
        texts = [self.tokenizer.unmask(c.text) for c in chunks]
        at = texts[-1].find(content)
        if at < 0:  # the template strips what it is given
            at = texts[-1].find(content.strip()) - (len(content) - len(content.lstrip()))
        return at + sum(map(len, texts[:-1]))

    def _fit(self, side: Side, images: Sequence[ImageInfo], record: Record, notes: list[Problem], name: str) -> None:
        limit = self.settings.max_length
        length = len(side.ids) + sum(i.tokens - 1 for i in images)
        if not limit or length <= limit:
            return
        first = side.spans[-1][0]
        keep = len(side.ids) - (length - limit)
        what = f"{name}: {length} tokens (images included) are over data.max_length = {limit}"
        if self.settings.truncate == "never":
            raise BadRow("too-long", f"{what}; raise it, or set data.truncate = 'response'")
        if keep <= first:
            raise BadRow("too-long", f"{what}, and the prompt alone leaves no room for a response")
        cut = len(side.ids) - keep
        side.ids = side.ids[:keep]
        side.spans[-1] = (first, keep)
        side.offsets = side.offsets[: len(side.offsets) - cut]
        notes.append(Problem(record.source, "truncated", f"{what}; {cut} response tokens were cut"))


def _check_weight(weight: float, name: str) -> None:
    """0 is allowed: such a row or token adds nothing."""
    if not 0 <= weight <= FLOAT32_MAX:
        raise BadRow("weight", f"{name} is {weight}: it must be a number from 0 on")


def _pairs(offsets: list[tuple[int, int]]) -> np.ndarray:
    return np.asarray(offsets, np.int64).reshape(-1, 2)
