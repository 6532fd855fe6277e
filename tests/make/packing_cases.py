"""Random examples for exactness tests: trees of depth 1 to 4, groups, several images, text only, shared beginnings.

    case = random_case(np.random.default_rng(0), "captions")
    pack = build_pack(case.examples, case.images, case.layout)

A case is plain data; pixels are the caller's (ImageInfo.id seeds them as it likes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.packing import Layout


@dataclass
class Case:
    examples: list[Example]
    images: dict[str, ImageInfo]
    layout: Layout


@dataclass
class Maker:
    """Draws ids from [1, vocab) without the image token; `image` makes an ImageInfo (its number is given)."""

    rng: np.random.Generator
    layout: Layout
    vocab: int = 64
    eos: int = 1
    image: Callable[[int], ImageInfo] | None = None
    images: dict[str, ImageInfo] = field(default_factory=dict)

    def text(self, n: int) -> list[int]:
        ids = self.rng.integers(2, self.vocab, n)
        ids[ids == self.layout.image_token_id] = 2
        return [int(i) for i in ids]

    def new_image(self) -> str:
        number = len(self.images)
        if self.image is not None:
            info = self.image(number)
        else:
            h, w = (int(x) for x in self.rng.integers(1, 4, 2))
            merge = self.layout.merge
            info = ImageInfo(
                id=f"image-{number}", source=f"image-{number}.png", width=w * merge, height=h * merge, tokens=h * w,
                grid=(1, h * merge, w * merge),
            )  # fmt: skip
        self.images[info.id] = info
        return info.id

    def response(self, low: int = 1, high: int = 9) -> list[int]:
        return [*self.text(int(self.rng.integers(low, high)) - 1), self.eos]

    def branch(
        self, prompt: list[int], images: tuple[str, ...], response: list[int], changed: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Branch:  # fmt: skip
        span = (len(prompt), len(prompt) + len(response))
        return Branch(
            ids=np.asarray(prompt + response, np.int32), images=images, spans=(span,), changed=changed, weights=weights
        )

    def pair(self, name: str, chosen: Branch, rejected: Branch | None, weight: float = 1.0) -> Example:
        return Example(id=name, source=f"random:{name}", chosen=chosen, rejected=rejected, weight=weight)

    def picture(self) -> list[int]:
        assert self.layout.image_token_id is not None
        return [self.layout.image_token_id]


def _isolated(m: Maker, n: int = 3) -> list[Example]:
    examples = []
    for i in range(n):
        prompt = m.text(2) + m.picture() + m.text(4)
        images = (m.new_image(),)
        two = [m.branch(prompt, images, m.response()) for _ in range(2)]
        examples.append(m.pair(f"isolated-{i}", *two))
    return examples


def _captions(m: Maker, responses: int = 8) -> list[Example]:
    """Every pair of `responses` captions of one image: 28 pairs of 8."""
    prompt, images = m.text(1) + m.picture() + m.text(3), (m.new_image(),)
    branches = [m.branch(prompt, images, m.response(2)) for _ in range(responses)]
    order = [(i, j) for i in range(responses) for j in range(i + 1, responses)]
    return [m.pair(f"caption-{i}-{j}", branches[i], branches[j]) for i, j in order]


def _beginnings(m: Maker, n: int = 3) -> list[Example]:
    """Corrected answers: the two sides begin alike, and segments that differ carry weights."""
    prompt, images = m.text(1) + m.picture() + m.text(2), (m.new_image(),)
    examples = []
    common = m.text(4)
    for i in range(n):
        sides = []
        for _ in range(2):
            response = common[: int(m.rng.integers(1, 5))] + m.response(2)
            changed = m.rng.random(len(response)) < 0.4
            weights = m.rng.uniform(0.5, 2, len(response)).astype(np.float32) if i == 1 else None
            sides.append(m.branch(prompt, images, response, changed, weights))
        examples.append(m.pair(f"corrected-{i}", *sides, weight=0.5 + i))
    return examples


def _deep(m: Maker) -> list[Example]:
    """System prompt -> image -> question -> shared beginning -> ends: depth 4, and DGPref's two prompts in a pair."""
    system, images = m.text(2), (m.new_image(),)
    examples = []
    for q in range(2):
        prompt = system + m.picture() + m.text(3)
        start = m.text(3)
        ends = [m.branch(prompt, images, start + m.response()) for _ in range(3)]
        examples += [m.pair(f"deep-{q}-{i}", ends[i], ends[(i + 1) % 3]) for i in range(3)]
    other = m.branch(system + m.picture() + m.text(2), images, m.response())
    examples.append(m.pair("deep-prompts", examples[0].chosen, other))
    return examples


def _images(m: Maker) -> list[Example]:
    """Several images in a prompt, one of them repeated, and the same image under another prompt."""
    a, b = m.new_image(), m.new_image()
    prompt = m.text(1) + m.picture() + m.picture() + m.text(2) + m.picture() + m.text(2)
    two = [m.branch(prompt, (a, b, a), m.response()) for _ in range(2)]
    other = m.text(2) + m.picture() + m.text(1)
    more = [m.branch(other, (b,), m.response()) for _ in range(2)]
    return [m.pair("images-aba", *two), m.pair("images-b", *more)]


def _text(m: Maker, n: int = 2) -> list[Example]:
    examples = []
    for i in range(n):
        prompt = m.text(4)
        examples.append(m.pair(f"text-{i}", m.branch(prompt, (), m.response()), m.branch(prompt, (), m.response())))
    return examples


def _single(m: Maker) -> list[Example]:
    """Responses of one token (yes/no), of which one is the beginning of a longer one."""
    prompt, images = m.text(1) + m.picture() + m.text(2), (m.new_image(),)
    yes, no = m.branch(prompt, images, [3]), m.branch(prompt, images, [4])
    longer = m.branch(prompt, images, [3, 5, m.eos])
    return [m.pair("yes-no", yes, no), m.pair("yes-longer", longer, yes)]


def _turns(m: Maker) -> list[Example]:
    """Loss on two turns; the second has an image between them."""
    prompt, a, b = m.text(1) + m.picture() + m.text(2), m.new_image(), m.new_image()
    first, middle = m.response(2), m.text(1) + m.picture() + m.text(1)
    sides = []
    for _ in range(2):
        last = m.response(2)
        one, two = len(prompt), len(prompt) + len(first) + len(middle)
        ids = np.asarray(prompt + first + middle + last + m.text(2), np.int32)  # what follows the last turn is not run
        spans = ((one, one + len(first)), (two, two + len(last)))
        sides.append(Branch(ids=ids, images=(a, b), spans=spans))
    return [m.pair("turns", *sides)]


def _mixed(m: Maker) -> list[Example]:
    return _isolated(m, 1) + _text(m, 1) + _captions(m, 3) + _beginnings(m, 2) + _single(m)


def _sft(m: Maker) -> list[Example]:
    pairs = _beginnings(m, 2) + _turns(m) + _text(m, 1)
    once = [m.pair(f"{e.id}-sft", e.chosen, None, e.weight) for e in pairs]
    return [*once, once[0]]


KINDS: dict[str, Callable[[Maker], list[Example]]] = {
    "isolated": _isolated,
    "captions": _captions,
    "beginnings": _beginnings,
    "deep": _deep,
    "images": _images,
    "text": _text,
    "single": _single,
    "turns": _turns,
    "mixed": _mixed,
    "sft": _sft,
}


def random_case(
    rng: np.random.Generator, kind: str, layout: Layout | None = None, *, vocab: int = 64, eos: int = 1,
    image: Callable[[int], ImageInfo] | None = None,
) -> Case:  # fmt: skip
    """Examples of one of KINDS. Text-only layouts (image_token_id None) can ask for "text" alone."""
    layout = layout or Layout(image_token_id=vocab - 1)
    maker = Maker(rng, layout, vocab, eos, image)
    return Case(KINDS[kind](maker), maker.images, layout)


def random_mixture(rng: np.random.Generator, kinds: list[str] | None = None, **settings: object) -> Case:
    """Several kinds in one list, images numbered through."""
    layout = settings.pop("layout", None) or Layout(image_token_id=63)
    maker = Maker(rng, layout, **settings)  # type: ignore[arg-type]
    examples = [e for kind in kinds or [k for k in KINDS if k != "sft"] for e in KINDS[kind](maker)]
    return Case(examples, maker.images, layout)
