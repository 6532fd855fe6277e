"""The records that flow from files to packs. This file stands on the ground: it imports nothing of mmfast.

Record    one row of preference or SFT data, as text, whatever file it came from
Example   the same row as token ids, response spans and weights
ImageInfo what planning needs to know of an image; pixels are read when a pack is built
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """One distinct image. `id` is the sha256 of its file's bytes, so equal files are one image."""

    id: str
    source: str  # where its bytes are read again: a path, or "file.parquet#row=7&column=images&item=0"
    width: int  # in pixels, EXIF orientation applied
    height: int
    tokens: int  # its length in the sequence: one contiguous block of slots, and of words that stand among them
    grid: tuple[int, int, int] | None = None  # (t, h, w) in patches before merging: models with M-RoPE
    words: tuple[tuple[int, int], ...] = ()  # (place in the block, token id) of those: marks of tiles, ends of lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """TRL's conversational preference format: messages are {"role", "content": str or a list of text/image parts}."""

    id: str
    source: str  # "file:row", for messages
    images: tuple[Any, ...] = ()  # a path, bytes, or a locator string
    prompt: tuple[dict[str, Any], ...] = ()
    chosen: tuple[dict[str, Any], ...] = ()  # the SFT answer when there is no rejected side
    rejected: tuple[dict[str, Any], ...] | None = None
    chosen_prompt: tuple[dict[str, Any], ...] | None = None  # DGPref: the two sides answer different prompts
    rejected_prompt: tuple[dict[str, Any], ...] | None = None
    weight: float = 1.0  # of the pair (or of the SFT example)
    segments: dict[str, list[Any]] | None = None  # {"chosen": [(start, end, weight)], "rejected": ...} in characters
    scores: dict[str, float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One response on its whole path: everything the model reads, and which tokens of it are scored.

    In `ids` every image is ONE placeholder (the image token id); it stands for ImageInfo.tokens slots. A token at
    position p of `ids` inside a span is scored by the hidden state before it. Scored tokens are counted through the
    spans in order, n in all; `changed` and `weights` have one value for each.
    """

    ids: np.ndarray  # int32[L]
    images: tuple[str, ...]  # ImageInfo.id of each placeholder, in order
    spans: tuple[tuple[int, int], ...]  # half-open ranges of ids; one unless loss falls on several turns
    changed: np.ndarray | None = None  # bool[n]: in a segment that differs from the other side (gamma applies)
    weights: np.ndarray | None = None  # float32[n]: explicit per-token weights, multiplied in


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    id: str
    source: str  # "file:row"
    chosen: Branch
    rejected: Branch | None = None  # None: an SFT example
    weight: float = 1.0
