"""OWL-ViT and OWLv2: boxes for any names. The image is encoded once for all names, and each name has its own threshold.

With `chunk` names compete instead, as in DGPref: an image's names in their order, so many at a time, and a box belongs
to the likeliest name of its chunk alone. Then a name's boxes depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.directory import directory
from mmfast.engines.base import Picture
from mmfast.feedback.experts.boxes import Box, Finder, Found, Sizes, suppressed
from mmfast.feedback.experts.weights import opened, picture_of, pixels_of
from mmfast.files import weight_digests

TOGETHER = 64  # names of one text batch
KEPT = 1 << 14  # names whose embeddings are kept


class Owl(Finder):
    def __init__(
        self,
        model: str,
        *,
        threshold: float = 0.25,
        overlap: float = 0.5,
        chunk: int = 0,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        **sizes: Any,
    ) -> None:
        """
        model      a folder or hub id of OWL-ViT or OWLv2
        threshold  probability above which a box holds a name
        overlap    boxes of a name that share more than this are one; 1: all are counted, as in DGPref
        chunk      names that compete for a box; 0: none do
        sizes      thresholds of scale and place (boxes.Sizes)
        """
        super().__init__(Sizes(**sizes))
        if not 0 <= threshold < 1 or not 0 < overlap <= 1 or chunk < 0:
            raise ValueError(f"{model}: threshold is from 0 to below 1, overlap above 0 to 1, chunk at least 0")
        self.folder = directory(model, weights=True)
        self.threshold, self.overlap, self.chunk, self.dtype = threshold, overlap, chunk, dtype
        self.model, self.tokenizer, self.images = opened(self.folder, ("owlvit", "owlv2"), dtype, device)
        self.base: Any = getattr(self.model, self.model.base_model_prefix)
        self.length = self.model.config.text_config.max_position_embeddings
        self.known: dict[str, Tensor] = {}  # name -> its embedding
        self.cut: set[str] = set()  # names with more tokens than the model reads

    def identity(self) -> dict[str, Any]:
        told = {"threshold": self.threshold, "overlap": self.overlap, "chunk": self.chunk, "dtype": self.dtype}
        return {"expert": "owl", "weights": weight_digests(self.folder), **told, **super().identity()}

    def find(self, picture: Picture, names: Sequence[str]) -> Found:
        image = picture_of(picture)
        width, height = image.size
        if not names:
            return Found(width, height, {})
        logits, shares = self.logits(image, names)
        # OWLv2 pads a picture to a square, whose edge its boxes are shares of
        edges = (max(width, height),) * 2 if self.model.config.model_type == "owlv2" else (width, height)
        corners = (shares * torch.tensor([*edges, *edges])).tolist()
        boxes: dict[str, tuple[Box, ...]] = {}
        step = self.chunk or len(names)
        for first in range(0, len(names), step):
            some, those = names[first : first + step], logits[:, first : first + step]
            scores = those.sigmoid()
            held = scores > self.threshold
            if self.chunk:
                held &= torch.nn.functional.one_hot(those.argmax(-1), len(some)).bool()
            of: list[list[Box]] = [[] for _ in some]
            for row, n in held.nonzero().tolist():
                of[n].append(Box.of(corners[row], float(scores[row, n])))
            boxes |= {name: suppressed(own, self.overlap) for name, own in zip(some, of, strict=True)}
        notes = {name: f"cut at {self.length} tokens" for name in names if name in self.cut}
        return Found(width, height, boxes, notes)

    @torch.no_grad()
    def logits(self, image: Any, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Of each box and name; and the boxes as shares of the image: left, upper, right, lower."""
        feature_map, _ = self.model.image_embedder(pixels_of(self.images, image, self.model))
        features = feature_map.flatten(1, 2)
        queries = self._queries(names)[None].to(features)
        logits, _ = self.model.class_predictor(features, queries)
        middle, size = self.model.box_predictor(features, feature_map)[0].float().cpu().split(2, -1)
        return logits[0].float().cpu(), torch.cat([middle - size / 2, middle + size / 2], -1)

    def _queries(self, names: Sequence[str]) -> Tensor:
        """The names' embeddings; each name is embedded once."""
        if len(self.known) > KEPT:
            self.known.clear()
        missing = [name for name in dict.fromkeys(names) if name not in self.known]
        for first in range(0, len(missing), TOGETHER):
            some = missing[first : first + TOGETHER]
            whole = self.tokenizer(some).input_ids
            self.cut |= {name for name, ids in zip(some, whole, strict=True) if len(ids) > self.length}
            # A name is read from left to right up to its end: what pads it to the model's length changes nothing
            padded = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            tokens = self.tokenizer(some, **padded).to(self.model.device)
            found = self.base.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
            self.known |= dict(zip(some, found, strict=True))
        return torch.stack([self.known[name] for name in names])
