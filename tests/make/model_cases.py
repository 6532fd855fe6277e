"""Random preference data over tiny models, and the plain way to score it: one sequence at a time, unpatched HF."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.world import models as world

SIZES = [(84, 84), (120, 60), (56, 84), (100, 100), (70, 140)]


@cache
def image_processor(family: str):
    return world.tiny_image_processor(family, world.Size())


@dataclass
class Case:
    family: str
    adapter: object
    seed: int = 0
    examples: list[Example] = field(default_factory=list)
    infos: dict[str, ImageInfo] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.lowest = 20  # beyond the special tokens
        self.vocab = self.adapter.text_config.vocab_size

    # pictures

    def picture(self) -> str:
        number = len(self.pictures)
        name = f"picture {number}"
        noise = np.random.default_rng([self.seed, number]).integers(0, 255, (*SIZES[number % len(SIZES)][::-1], 3))
        self.pictures[name] = Image.fromarray(noise.astype(np.uint8))
        inputs = self.load_images([name])
        gemma = self.family == "gemma3"
        rows = [self.adapter.config.mm_tokens_per_image] if gemma else self.adapter.rows_of(inputs)
        grid = tuple(inputs["image_grid_thw"][0].tolist()) if "image_grid_thw" in inputs else None
        width, height = self.pictures[name].size
        self.infos[name] = ImageInfo(id=name, source=name, width=width, height=height, tokens=rows[0], grid=grid)
        return name

    def load_images(self, names: list[str]) -> dict[str, Tensor]:
        wanted = ("pixel_values", "image_sizes", "image_grid_thw")
        inputs = image_processor(self.family)([self.pictures[n] for n in names], return_tensors="pt")
        return self.adapter.prepare({name: inputs[name] for name in wanted if name in inputs})

    # text

    def words(self, least: int, most: int) -> list[int]:
        return [self.random.randrange(self.lowest, self.vocab) for _ in range(self.random.randint(least, most))]

    def prompt(self, *pictures: str) -> tuple[list[int], tuple[str, ...]]:
        ids = [1]
        for _ in pictures:
            ids += [*self.words(1, 2), self.adapter.image_token_id, *self.words(0, 2)]
        return ids + self.words(2, 5), pictures

    def branch(self, prompt, response: list[int], changed=None) -> Branch:
        ids, pictures = prompt
        whole = np.asarray([*ids, *response], np.int32)
        return Branch(ids=whole, images=pictures, spans=((len(ids), len(whole)),), changed=changed)

    def pair(self, prompt, chosen: list[int], rejected: list[int], *, weight=1.0, rejected_prompt=None) -> None:
        marks = [np.asarray([self.random.random() < 0.4 for _ in side]) for side in (chosen, rejected)]
        number = len(self.examples)
        self.examples.append(
            Example(
                id=f"pair {number}",
                source=f"case:{number}",
                chosen=self.branch(prompt, chosen, marks[0]),
                rejected=self.branch(rejected_prompt or prompt, rejected, marks[1]),
                weight=weight,
            )
        )


def everything(family: str, adapter, seed: int = 0) -> Case:
    """One pack with every shape of tree: isolated pairs, shared response beginnings, several questions on one image (a
    tree of depth 4), several images, single-token responses, the same response in several pairs, and text only."""
    case = Case(family, adapter, seed)
    vision = adapter.image_token_id is not None
    first = case.prompt(*([case.picture()] if vision else []))
    case.pair(first, case.words(3, 7), case.words(3, 7))
    start = case.words(2, 3)  # responses that begin alike, a third that leaves them later
    middle = start + case.words(2, 2)
    longer = (first[0] + case.words(2, 3), first[1])  # another question on the same image
    case.pair(longer, middle + case.words(1, 3), middle + case.words(2, 4))
    case.pair(longer, start + case.words(1, 3), middle + case.words(1, 3), weight=0.5)
    case.pair(first, case.words(1, 1), case.words(1, 1))
    if vision:
        two = case.prompt(case.picture(), case.picture())
        case.pair(two, case.words(2, 5), case.words(2, 5))
    text = case.prompt()
    responses = [case.words(1, 5) for _ in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        case.pair(text, responses[a], responses[b])
    return case


def captions(family: str, adapter, seed: int = 0, count: int = 8) -> Case:
    """`count` responses of one image and prompt, and every pair of them."""
    case = Case(family, adapter, seed)
    prompt = case.prompt(case.picture())
    responses = [case.words(2, 6) for _ in range(count)]
    for a in range(count):
        for b in range(a + 1, count):
            case.pair(prompt, responses[a], responses[b])
    return case


def wild(family: str, adapter, seed: int) -> Case:
    """Trees grown at random to depth 4; any two leaves are a pair, their responses begin where their paths part or
    before."""
    case = Case(family, adapter, seed)
    for _ in range(2):
        pictures = [case.picture() for _ in range(case.random.randint(1, 2))] if adapter.image_token_id else []
        root, names = case.prompt(*pictures)
        paths = [[len(root)]]  # of each leaf, where its nodes begin
        tokens = [root]
        for _ in range(4):
            grown_paths, grown_tokens = [], []
            for path, ids in zip(paths, tokens, strict=True):
                for _ in range(
                    case.random.choice([2, 3] if len(paths) == 1 else [1, 1, 2, 3] if len(paths) < 8 else [1])
                ):
                    grown_tokens.append(ids + case.words(1, 3))
                    grown_paths.append([*path, len(grown_tokens[-1])])
            paths, tokens = grown_paths, grown_tokens
        for _ in range(5):
            a, b = case.random.sample(range(len(tokens)), 2)
            parted = next(i for i, (x, y) in enumerate(zip(tokens[a], tokens[b], strict=False)) if x != y)
            start = case.random.choice([p for p in paths[a] if p <= parted])
            case.pair((tokens[a][:start], names), tokens[a][start:], tokens[b][start:])
    return case


def plain_logps(model, case: Case, branch: Branch) -> Tensor:
    """One sequence alone through the unpatched model; one log-prob a scored token."""
    logits, targets = plain_logits(model, case, branch)
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def plain_logits(model, case: Case, branch: Branch) -> tuple[Tensor, Tensor]:
    """The logits that predict each scored token, and these tokens; in the model's dtype."""
    adapter = case.adapter
    ids: list[int] = []
    pictures = iter(branch.images)
    where = []  # of each id in the expanded sequence
    for token in branch.ids.tolist():
        where.append(len(ids))
        ids += [token] * (case.infos[next(pictures)].tokens if token == adapter.image_token_id else 1)
    tokens = torch.tensor([ids])
    inputs = {}
    if branch.images:
        raw = image_processor(case.family)([case.pictures[n] for n in branch.images], return_tensors="pt")
        inputs = {n: raw[n] for n in ("pixel_values", "image_sizes", "image_grid_thw") if n in raw}
        inputs = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in inputs.items()}
        inputs |= adapter.plain_inputs(tokens)  # with the token types, or Qwen2.5-VL falls back to 1-D positions
    logits = model(input_ids=tokens, **inputs, use_cache=False).logits[0]
    (start, end) = branch.spans[0]
    rows = torch.tensor([where[p] for p in range(start, end)])
    return logits[rows - 1], tokens[0, rows]
