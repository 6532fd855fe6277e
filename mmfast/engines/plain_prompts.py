"""A request as the inputs of a model's own forward: the tokens that training would make of it, and the pixels.

Rendered  by the model's chat template and mmfast's own image code, as training renders: prompts are the same tokens
Processed by transformers' processor of the model: for models without a chat template or image token (BLIP-2)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from mmfast.data.examples import ExampleBuilder
from mmfast.data.images.decode import decode
from mmfast.data.images.index import measured
from mmfast.data.images.own import OwnProcessor
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.records import Branch, ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.symbols import expanded
from mmfast.data.text.templates import Template, image_count, parts, text_of
from mmfast.data.text.tokens import Tokenizer
from mmfast.engines.base import Picture, Request
from mmfast.families import adapter_for

ANY = "a"  # an answer that stands for any: the tokens before it are the prompt's


@dataclass(frozen=True)
class Prompt:
    ids: list[int]  # with each image's slots written out
    inputs: dict[str, Tensor]  # what the forward takes beside them


class Prompts(Protocol):
    tokenizer: Any  # transformers' own
    continues: bool  # can a last message of the assistant be continued?

    def prompt(self, request: Request) -> Prompt: ...

    def label(self, request: Request, prompt: Prompt, label: str) -> list[int]:
        """The ids of a label as the template continues the prompt with it, without what would close the answer."""

    def answer(self, request: Request) -> tuple[Prompt, list[int]]:
        """A finished answer, which is the last message: what stands before it, and its ids, the end's among them."""

    def inputs(self, prompt: Prompt, ids: Sequence[int]) -> dict[str, Tensor]:
        """The forward's inputs of these ids, which begin with the prompt's."""

    def identity(self) -> dict[str, Any]: ...


class Rendered:
    continues = True

    def __init__(self, folder: Path, template: str, config: Any, forward: Any) -> None:
        tokenizer = Tokenizer.load(folder)
        self.tokenizer, self.config = tokenizer.hf, config
        self.template = Template(template, tokenizer)
        self.builder = ExampleBuilder(self.template, DataSettings(max_length=1 << 30, turns="last"))
        self.adapter = adapter_for(config)
        self.images = ImageProcessor.from_model_dir(folder)
        self.accepted = inspect.signature(forward).parameters

    def prompt(self, request: Request) -> Prompt:
        infos = self._infos(request.images)
        return self._before(request, *self._branch(request, infos, ""), infos)

    def answer(self, request: Request) -> tuple[Prompt, list[int]]:
        infos = self._infos(request.images)
        before = replace(request, messages=request.messages[:-1], scored=False, n=1)
        branch, start = self._branch(before, infos, text_of(request.messages[-1]))
        return self._before(request, branch, start, infos), branch.ids[start : branch.spans[-1][1]].tolist()

    def _before(self, request: Request, branch: Branch, start: int, infos: Mapping[str, ImageInfo]) -> Prompt:
        """What stands before the branch's id number `start`."""
        ids, starts = expanded(branch, infos, self.template.tokenizer.image_token_id)
        pixels: Mapping[str, Tensor] = {}
        if branch.images:
            loaded = {picture.id: picture for picture in request.images}
            pixels = self.images.collate([self.images.load(loaded[name].data) for name in branch.images])
        return Prompt(ids[: starts[start]], dict(pixels))

    def label(self, request: Request, prompt: Prompt, label: str) -> list[int]:
        branch, start = self._branch(request, self._infos(request.images), label)
        return branch.ids[start : self._end(branch, _beginning(request) + label)].tolist()

    def inputs(self, prompt: Prompt, ids: Sequence[int]) -> dict[str, Tensor]:
        tokens = torch.tensor([list(ids)])
        given = {"input_ids": tokens, **prompt.inputs, **self.adapter.plain_inputs(tokens)}
        given = {name: value for name, value in given.items() if name in self.accepted}
        return {**given, "attention_mask": torch.ones_like(tokens)}

    def identity(self) -> dict[str, Any]:
        images = self.images.digest() if self.template.tokenizer.image_token else ""
        return {"template": self.template.key, "tokenizer": self.template.tokenizer.digest, "processor": images}

    def _infos(self, pictures: Sequence[Picture]) -> dict[str, ImageInfo]:
        return {p.id: measured(self.images, p.id, p.source, p.data) for p in pictures}

    def _branch(self, request: Request, infos: Mapping[str, ImageInfo], label: str) -> tuple[Branch, int]:
        """The request with an answer, as training would score it, and where among its ids the continuation starts: at
        the answer, or after its given beginning (without the blanks that end that: they begin the next token)."""
        given = _beginning(request)
        messages = request.messages[:-1] if request.messages[-1]["role"] == "assistant" else request.messages
        answer = {"role": "assistant", "content": given + label or ANY}
        shown = [infos[picture.id] for picture in request.images]
        record = Record(id=request.key, source=request.key, prompt=messages, chosen=(answer,))
        branch = self.builder.build(record, shown)[0].chosen
        return branch, self._end(branch, given) if given else branch.spans[-1][0]

    def _end(self, branch: Branch, text: str) -> int:
        """Up to where the answer's tokens spell its beginning `text`."""
        start, stop = branch.spans[-1]
        for end in range(start + 1, stop + 1):
            if self.tokenizer.decode(branch.ids[start:end].tolist()).strip().startswith(text.strip()):
                return end
        raise BadRow("label", f"the tokens of {text!r} do not spell it")


class Processed:
    continues = False

    def __init__(self, folder: Path, model: Any, remote_code: bool, why: str) -> None:
        from transformers import AutoProcessor

        try:
            try:
                self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=remote_code)
            except ImportError:  # torchvision, for a half that may not be needed
                self.processor = OwnProcessor(folder).processor
            self.tokenizer = self.processor.tokenizer
        except (ImportError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            cause = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{folder}: its prompts are not rendered as in training ({why}), and transformers' own processor of it "
                f"cannot be made here ({type(error).__name__}: {cause})"
            ) from None
        self.starts: int | None = None  # an encoder-decoder's answers begin with this id
        if encodes(model):
            own = (model.generation_config, model.config.get_text_config(), model.config)
            named = [getattr(config, "decoder_start_token_id", None) for config in own]
            self.starts = next((number for number in named if number is not None), self.tokenizer.pad_token_id)

    def prompt(self, request: Request) -> Prompt:
        text = self._text(request)
        images = [Image.fromarray(decode(picture.data)) for picture in request.images] or None
        bos = self.tokenizer.bos_token  # a template may have written it already
        special = not (bos and text.startswith(bos))
        inputs = dict(self.processor(images=images, text=text, return_tensors="pt", add_special_tokens=special))
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        return Prompt(ids, inputs)

    def label(self, request: Request, prompt: Prompt, label: str) -> list[int]:
        def encoded(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False).input_ids

        if self.starts is not None:
            return encoded(label)
        text = self._text(request)
        lead = self._lead(request, text, label)
        before, whole = encoded(text), encoded(text + lead + label)
        return whole[len(before) :] if whole[: len(before)] == before else encoded(lead + label)

    def answer(self, request: Request) -> tuple[Prompt, list[int]]:
        text = text_of(request.messages[-1])
        if not text.strip():
            raise BadRow("empty-response", "the answer is empty")
        before = replace(request, messages=request.messages[:-1], scored=False, n=1)
        prompt, end = self.prompt(before), self.tokenizer.eos_token_id
        return prompt, self.label(before, prompt, text) + ([] if end is None else [end])

    def inputs(self, prompt: Prompt, ids: Sequence[int]) -> dict[str, Tensor]:
        """An encoder reads the prompt alone; what follows it goes to the decoder."""
        own = len(prompt.ids)
        tokens = torch.tensor([list(ids[:own] if self.starts is not None else ids)])
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **prompt.inputs}
        if self.starts is not None and len(ids) > own:
            inputs["decoder_input_ids"] = torch.tensor([[self.starts, *ids[own:]]])
        return inputs

    def identity(self) -> dict[str, Any]:
        return {"template": getattr(self.processor, "chat_template", None), "processor": repr(self.processor)}

    def _lead(self, request: Request, text: str, label: str) -> str:
        """What stands between a prompt and an answer: as the template writes it, else a blank."""
        if not self.processor.chat_template:
            return " "
        answered = [*_parted(request.messages), {"role": "assistant", "content": [{"type": "text", "text": label}]}]
        whole = self.processor.apply_chat_template(answered, tokenize=False)
        at = whole.find(label, len(text)) if whole.startswith(text) else -1
        return whole[len(text) : at] if at >= 0 else ""

    def _text(self, request: Request) -> str:
        if self.processor.chat_template:
            messages = _parted(request.messages)
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if len(request.messages) > 1:
            raise BadRow("template", "the model has no chat template: it takes a single message of the user")
        if len(request.images) != 1:
            raise BadRow(
                "image-count", f"the model has no chat template: it takes one image, not {len(request.images)}"
            )
        if image_count(request.messages) != len(request.images):
            shown = image_count(request.messages)
            raise BadRow("image-count", f"{shown} places for images, and {len(request.images)} images")
        return text_of(request.messages[0])


def encodes(model: Any) -> bool:
    """Is it an encoder-decoder, as a whole or in its language half?"""
    return bool(model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder)


def _parted(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": m["role"], "content": parts(m)} for m in messages]


def _beginning(request: Request) -> str:
    last = request.messages[-1]
    return text_of(last) if last["role"] == "assistant" else ""
