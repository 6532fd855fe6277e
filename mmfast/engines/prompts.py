"""Requests as the model reads them: token ids of the prompt, of what could follow it, and the pictures.

All text goes through the model's own template, so that a label has the ids that the model itself would write: where a
template puts a blank before an answer, the label begins with that blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mmfast.data.examples import ExampleBuilder
from mmfast.data.images.index import measured
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.records import Branch, Example, ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.store import ExampleStore
from mmfast.data.text.templates import Template, parts, text_of
from mmfast.data.text.tokens import Tokenizer
from mmfast.directory import directory
from mmfast.engines.base import Constraint, Decode, Picture, Request
from mmfast.families.base import Adapter
from mmfast.packing.build import LoadImages

ANSWER = ""  # the label under which a finished answer stands


@dataclass(eq=False, kw_only=True)
class Prompt:
    key: str
    n: int = 1
    decode: Decode
    constraint: Constraint | None = None
    trimmed: bool = True  # whether blanks at the answer's ends go: a beginning may be continued inside a word
    ids: list[int]  # an image is one placeholder
    pictures: tuple[Picture, ...]  # in the order of their placeholders
    slots: int  # its length, images expanded
    lead: str = ""  # what the template writes between the prompt and an answer; where there is a constraint
    labels: dict[str, list[int]] = field(default_factory=dict)  # the ids of each label, as the prompt's continuation
    scored: bool = False  # the one label is a finished answer, under ANSWER
    choices: list[list[int]] = field(default_factory=list)  # of a choice constraint

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(picture.id for picture in self.pictures)

    def example(self, after: Sequence[int]) -> Example:
        """The prompt and what follows it, which is scored."""
        ids = np.asarray([*self.ids, *after], np.int32)
        branch = Branch(ids=ids, images=self.images, spans=((len(self.ids), len(ids)),))
        return Example(id=self.key, source="request", chosen=branch)


class Prompts:
    """Makes prompts of requests for one model, and keeps what is known of their pictures."""

    def __init__(
        self, model: str, adapter: Adapter, *, template: str = "auto", aspect: str = "auto", min_pixels: int = 0,
        max_pixels: int = 0, features: LoadImages | None = None,
    ) -> None:  # fmt: skip
        """`features`: of images by their ids, where the model has no tower to read pixels."""
        folder = directory(model)
        self.adapter = adapter
        self.template = Template(template, Tokenizer.load(folder))
        self.tokenizer = self.template.tokenizer
        self.image_id = adapter.image_token_id
        self.processor = (
            None if self.image_id is None else ImageProcessor.from_model_dir(folder, aspect, min_pixels, max_pixels)
        )
        self.features = features
        self.infos: dict[str, ImageInfo] = {}
        self.window = adapter.longest or int(adapter.text_config.to_dict().get("max_position_embeddings") or 0)

    def read(self, request: Request) -> Prompt:
        """Raises ValueError (BadRow) where the model cannot read it."""
        if request.scored:
            return self._answered(request)
        # The text and its ids
        text, _ = self._text(request, "")
        ids = self._with_bos(self.tokenizer.encode(text).ids)
        if request.messages[-1]["role"] == "assistant":  # the prompt's own tokens stay as they are
            opening, _ = self._masked(request.messages[:-1], None)
            ids = self._with_bos(self._extended(opening, text)[1])
        # Its pictures
        pictures = tuple(self._in_order(request))
        shown = [self._look_up(picture) for picture in pictures]
        places = ids.count(self.image_id) if self.image_id is not None else 0
        if places != len(shown):
            raise BadRow("image-count", f"{places} image tokens for {len(shown)} images")
        # What may follow it
        prompt = Prompt(
            key=request.key,
            n=request.n,
            decode=request.decode,
            constraint=request.constraint,
            ids=ids,
            trimmed=request.messages[-1]["role"] != "assistant",
            pictures=pictures,
            slots=self._slots(ids, shown),
        )
        prompt.labels = {label: self._continuation(request, text, label) for label in dict.fromkeys(request.labels)}
        most = prompt.slots + max(map(len, prompt.labels.values()), default=0)
        if self.window and most > self.window:
            raise BadRow("too-long", f"prompt and label: {most} tokens, the model's window is {self.window}")
        if request.constraint is not None:
            prompt.choices = [self._continuation(request, text, one) for one in request.constraint.choice]
            if request.messages[-1]["role"] != "assistant":
                prompt.lead = self._lead(self.template.messages_masked(request.messages)[0])
        return prompt

    def _answered(self, request: Request) -> Prompt:
        """A finished answer, by the tokens that training makes of it."""
        shown = [self._look_up(picture) for picture in request.images]
        builder = ExampleBuilder(self.template, DataSettings(max_length=1 << 30, turns="last"))
        *before, answer = request.messages
        record = Record(id=request.key, source=request.key, prompt=tuple(before), chosen=(answer,))
        branch = builder.build(record, shown)[0].chosen
        known = {picture.id: picture for picture in request.images}
        begin, end = branch.spans[-1]
        ids, own = branch.ids[:begin].tolist(), branch.ids[begin:end].tolist()
        slots = self._slots(ids, [self.infos[name] for name in branch.images])
        if self.window and slots + len(own) > self.window:
            told = f"{slots + len(own)} tokens, the model's window is {self.window}"
            raise BadRow("too-long", f"prompt and answer: {told}")
        return Prompt(
            key=request.key,
            n=0,
            decode=request.decode,
            ids=ids,
            pictures=tuple(known[name] for name in branch.images),
            slots=slots,
            labels={ANSWER: own},
            scored=True,
        )

    def stored(self, key: str, branch: Branch, store: ExampleStore, decode: Decode) -> Prompt:
        """Of an example as it lies in a store: the ids before its last response, and its pictures."""
        ids, shown = branch.ids[: branch.spans[-1][0]].tolist(), [store.images[name] for name in branch.images]
        self.infos |= {info.id: info for info in shown}
        if self.features is None:
            pictures = tuple(Picture(info.source, store.open_image(info.id)) for info in shown)
        else:
            pictures = tuple(Picture.named(info.source, info.id) for info in shown)
        slots = self._slots(ids, shown)
        return Prompt(key=key, decode=decode, trimmed=False, ids=ids, pictures=pictures, slots=slots)

    def shared(self, before: Prompt, prompt: Prompt) -> int:
        """How many slots two prompts begin with alike: the tokens that a pack of both holds once."""
        alike = next((n for n, (a, b) in enumerate(zip(before.ids, prompt.ids, strict=False)) if a != b), None)
        alike = min(len(before.ids), len(prompt.ids)) if alike is None else alike
        places = [n for n, token in enumerate(prompt.ids[:alike]) if token == self.image_id]
        for place, own, other in zip(places, prompt.images, before.images, strict=False):
            if own != other:
                alike = place
                break
        images = prompt.images[: sum(place < alike for place in places)]
        return alike + sum(self.infos[name].tokens - 1 for name in images)

    def load_images(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the family's processor makes of them, which the model's own forward takes; or their features."""
        if not pictures:
            return {}
        if self.features is not None:
            return self.features([picture.id for picture in pictures])
        assert self.processor is not None
        return self.processor.collate([self.processor.load(picture.data) for picture in pictures])

    def _slots(self, ids: Sequence[int], shown: Sequence[ImageInfo]) -> int:
        slots = len(ids) + sum(info.tokens - 1 for info in shown)
        if self.window and slots >= self.window:
            raise BadRow("too-long", f"the prompt has {slots} tokens, the model's window is {self.window}")
        return slots

    # text

    def _text(self, request: Request, more: str) -> tuple[str, str]:
        """(The prompt's text, the beginning of an answer and `more` of it included; what leads to that beginning.)"""
        *before, last = request.messages
        if last["role"] == "assistant":
            return self._masked(before, text_of(last) + more)
        return self._masked(request.messages, more or None)

    def _masked(self, messages: Sequence[dict], answer: str | None) -> tuple[str, str]:
        whole = [*messages, *([] if answer is None else [{"role": "assistant", "content": answer}])]
        masked, _ = self.template.messages_masked(whole)
        if answer is None:
            return self.template.opening(masked), ""
        content = text_of(masked[-1])
        opening = self.template.opening(masked[:-1])
        if not content:
            return opening, ""
        written = self.template.chunks(masked, [len(masked) - 1])[-1].text
        at = written.find(content)
        if at < 0:  # the template strips what it is given
            content = content.lstrip()
            at = written.find(content.rstrip())
        if at < 0:
            raise BadRow("template", f"the template rewrites the answer's beginning {content!r}")
        return opening + written[:at] + content, written[:at]

    def _lead(self, masked: Sequence[dict]) -> str:
        """What the template writes between the prompt and an answer."""
        try:
            chunks = self.template.chunks([*masked, {"role": "assistant", "content": "X"}], [len(masked)])
        except BadRow:  # a template whose prompts do not begin their answered forms: only continuations need that
            return ""
        return chunks[-1].text.partition("X")[0]

    def _extended(self, text: str, longer: str) -> tuple[int, list[int]]:
        """(How many ids a text has, the ids of a longer one that begins with it): its own ids are not touched."""
        own, whole = self.tokenizer.encode(text).ids, self.tokenizer.encode(longer).ids
        if whole[: len(own)] != own:
            whole = own + self.tokenizer.encode_after(longer[len(text) :]).ids
        return len(own), whole

    def _continuation(self, request: Request, text: str, label: str) -> list[int]:
        longer, _ = self._text(request, label)
        if not label or not longer.startswith(text) or longer == text:
            raise BadRow("label", f"the label {label!r} adds nothing to the prompt that could be scored")
        length, whole = self._extended(text, longer)
        if self.image_id in whole[length:]:
            raise BadRow("label", f"the label {label!r} holds an image")
        return whole[length:]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_ids
        return ids if ids[: len(bos)] == bos else [*bos, *ids]

    # pictures

    def _in_order(self, request: Request) -> list[Picture]:
        """Of the placeholders; a part may name its image by `index`."""
        places = [p.get("index") for m in request.messages for p in parts(m) if p["type"] == "image"]
        named = [request.images[i] for i in places if i is not None]
        return named if named and len(named) == len(places) else list(request.images)

    def _look_up(self, picture: Picture) -> ImageInfo:
        if self.processor is None:
            raise BadRow("image-count", "the request has an image, but the model reads none")
        try:
            name = picture.id
        except OSError as error:
            raise BadRow("image-missing", f"image {picture.source}: {error.strerror}") from None
        if name not in self.infos:
            self.infos[name] = measured(self.processor, name, picture.source, picture.data)
        return self.infos[name]
