"""GroundingDINO and MM-GroundingDINO (LLMDet's checkpoints too): boxes for names that are read as one caption.

The image goes through the backbone once, however many captions an image's names fill: transformers cuts a caption at
the model's text length without a word, so names are laid into as many as they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmfast.directory import directory
from mmfast.engines.base import Picture
from mmfast.feedback.experts.boxes import Box, Finder, Found, Sizes, suppressed
from mmfast.feedback.experts.weights import opened, picture_of
from mmfast.files import weight_digests

Caption = list[tuple[str, slice]]  # names, and the tokens of each


class Dino(Finder):
    def __init__(
        self,
        model: str,
        *,
        threshold: float = 0.25,
        overlap: float = 0.8,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        **sizes: Any,
    ) -> None:
        """
        model      a folder or hub id of GroundingDINO or MM-GroundingDINO
        threshold  probability of a name's best token above which a box holds it
        overlap    boxes of a name that share more than this are one; 1: all are counted
        sizes      thresholds of scale and place (boxes.Sizes)
        """
        super().__init__(Sizes(**sizes))
        if not 0 <= threshold < 1 or not 0 < overlap <= 1:
            raise ValueError(f"{model}: threshold is from 0 to below 1, overlap above 0 to 1")
        self.folder = directory(model, weights=True)
        self.threshold, self.overlap, self.dtype = threshold, overlap, dtype
        types = ("grounding-dino", "mm-grounding-dino")
        self.model, self.tokenizer, self.images = opened(self.folder, types, dtype, device)
        self.length = min(self.model.config.max_text_len, self.model.config.text_config.max_position_embeddings)

    def identity(self) -> dict[str, Any]:
        told = {"threshold": self.threshold, "overlap": self.overlap, "dtype": self.dtype}
        return {"expert": "dino", "weights": weight_digests(self.folder), **told, **super().identity()}

    @torch.no_grad()
    def find(self, picture: Picture, names: Sequence[str]) -> Found:
        image = picture_of(picture)
        width, height = image.size
        boxes: dict[str, tuple[Box, ...]] = {name: () for name in names}
        fitting, notes = self._fitting(names)
        inputs = self.images(images=image, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with self._backbone_once():
            for ids, caption in self._captions(fitting):
                out = self._forward(ids, inputs)
                middle, size = out.pred_boxes[0].float().cpu().split(2, -1)
                shares = torch.cat([middle - size / 2, middle + size / 2], -1)
                corners = (shares * torch.tensor([width, height, width, height])).tolist()
                scores = out.logits[0].float().cpu().sigmoid()
                for name, tokens in caption:
                    best = scores[:, tokens].amax(-1)
                    rows = (best > self.threshold).nonzero()[:, 0].tolist()
                    boxes[name] = suppressed([Box.of(corners[row], float(best[row])) for row in rows], self.overlap)
        return Found(width, height, boxes, notes)

    def _forward(self, ids: list[int], inputs: Any) -> Any:
        tokens = torch.tensor([ids], device=self.model.device)
        return self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **inputs)

    @contextmanager
    def _backbone_once(self) -> Iterator[None]:
        """Inside, the backbone sees the image once and gives the same features again."""
        inner = self.model.model
        kept: list[Any] = []
        backbone = inner.backbone
        forward = backbone.forward

        def once(pixels: Tensor, mask: Tensor) -> Any:
            if not kept:
                kept.append(forward(pixels, mask))
            return kept[0]

        backbone.forward = once
        try:
            yield
        finally:
            del backbone.forward

    def _fitting(self, names: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, str]]:
        """Name -> its token ids, with the dot that ends it; names are in lower case there, as they were learnt. What a
        caption cannot hold is noted: a dot inside a name would end it."""
        dot = self.tokenizer.convert_tokens_to_ids(".")
        ids, notes = {}, {}
        for name in names:
            words = " ".join(name.lower().replace(".", " ").replace("?", " ").split())
            own = self.tokenizer(words, add_special_tokens=False).input_ids
            room = self.length - 3  # [CLS], the dot and [SEP]
            if len(own) > room:
                own, notes[name] = own[:room], f"cut at {room} tokens"
            if own:
                ids[name] = [*own, dot]
            else:
                notes[name] = "has no tokens"
        return ids, notes

    def _captions(self, ids: dict[str, list[int]]) -> Iterator[tuple[list[int], Caption]]:
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        row: list[int] = [first]
        caption: Caption = []
        for name, own in ids.items():
            if len(row) + len(own) + 1 > self.length:
                yield [*row, last], caption
                row, caption = [first], []
            caption.append((name, slice(len(row), len(row) + len(own) - 1)))
            row = [*row, *own]
        if caption:
            yield [*row, last], caption
