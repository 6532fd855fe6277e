"""Scenes: what is in a picture, exactly, and the picture drawn from it.

A scene is up to four kinds of coloured shape (30 kinds) in the cells of a 3 x 3 grid: circles, squares and triangles
alone, crosses one or two, stars one to three. Everything is drawn from `random.Random(text)`, whose stream depends on
the text alone, so (seed, split, number) name a scene for good, in any order and on any machine.

Scenes are distributed alike under every exchange that a flaw makes (grammar.py): circle for square, a colour for its
twin, left for right, one cross for two, GO for NO. Keep it so: a pair whose truth is likelier than its flaw can be
told without the picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 39, 40), "green": (34, 160, 60), "blue": (40, 90, 220),
    "yellow": (245, 210, 30), "purple": (150, 60, 190), "orange": (250, 130, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": 8, "large": 13}  # radius in pixels
BACKGROUNDS = {"light": (236, 236, 232), "dark": (38, 40, 48)}
WORDS = ("GO", "UP", "HI", "NO", "ON", "OK")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
CELL = 28
SIZE = 3 * CELL  # of the picture, in pixels

Kind = tuple[str, str]  # (colour, shape): what CHAIR calls an object
KINDS: tuple[Kind, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

# Letters of three by five pixels: a font file would make the pictures depend on the machine.
FONT = {
    "G": "74557", "U": "55557", "H": "55755", "N": "65555", "O": "75557", "P": "75744", "I": "72227", "K": "55655",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """The things of one kind in a scene: they share a size; `cells` are numbered 0 to 8 in reading order."""

    colour: str
    shape: str
    size: str
    cells: tuple[int, ...]
    word: str | None = None  # written on it; only on a large circle, square or triangle

    @property
    def kind(self) -> Kind:
        return self.colour, self.shape

    @property
    def count(self) -> int:
        return len(self.cells)


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    background: str
    things: tuple[Thing, ...]  # in the order of `rank`, which says nothing of where they stand

    @property
    def kinds(self) -> set[Kind]:
        return {thing.kind for thing in self.things}

    def annotation(self) -> dict:
        """Everything that is true of the picture, as plain JSON."""
        return {
            "name": self.name,
            "background": self.background,
            "objects": [
                {"colour": t.colour, "shape": t.shape, "size": t.size}
                | {"count": t.count, "cells": list(t.cells), "word": t.word}
                for t in self.things
            ],
            "relations": [[list(kind), where] for kind, where in relations(self).items()],
        }  # fmt: skip

    @staticmethod
    def from_annotation(data: dict) -> Scene:
        things = tuple(Thing(o["colour"], o["shape"], o["size"], tuple(o["cells"]), o["word"]) for o in data["objects"])
        return Scene(data["name"], data["background"], things)


def relation(thing: Thing) -> str | None:
    """Where a single thing stands, seen from the centre of the picture: sideways if it can be said; None in it."""
    row, column = divmod(thing.cells[0], 3)
    if column != 1:
        return "left of" if column < 1 else "right of"
    return {0: "above", 1: None, 2: "below"}[row]


def relations(scene: Scene) -> dict[Kind, str]:
    """Where each single thing stands."""
    places = {thing.kind: relation(thing) for thing in scene.things if thing.count == 1}
    return {kind: where for kind, where in places.items() if where}


PARTNERS = {"circle": "square", "square": "circle"}  # confused with each other, both ways
TWINS = {"red": "orange", "orange": "red", "green": "yellow", "yellow": "green", "blue": "purple", "purple": "blue"}
MOST = {"cross": 2, "star": 3}  # of a kind; of the other shapes there is one
_CLASSES = {"circle": 0, "square": 0, "triangle": 1, "star": 2, "cross": 3}
_PAIRS = {"red": 0, "orange": 0, "green": 1, "yellow": 1, "blue": 2, "purple": 2}


def rank(kind: Kind) -> tuple[int, int, int, int]:
    """The order in which things are named. It stays when a shape gives way to its partner (that is not there too), or
    a triangle's colour to its twin: the order of a caption must not give a flaw away."""
    colour, shape = kind
    return _CLASSES[shape], _PAIRS[colour], tuple(COLOURS).index(colour), SHAPES.index(shape)


def draw_scene(rng: random.Random, name: str) -> Scene:
    """A random scene: 1 to 4 kinds (more are likelier). Circles, squares and triangles stand alone, some with a
    word on them; crosses are one or two, stars one to three."""
    number = max(rng.randint(1, 4), rng.randint(1, 4))
    picked = sorted(rng.sample(KINDS, number), key=rank)
    while True:
        counts = [rng.randint(1, MOST.get(shape, 1)) for _, shape in picked]
        # as if every cross were two, or the room left for the stars would tell their number
        if sum(2 if shape == "cross" else n for (_, shape), n in zip(picked, counts, strict=True)) <= 9:
            break
    cells = rng.sample(range(9), sum(counts))
    things = []
    for (colour, shape), count in zip(picked, counts, strict=True):
        own, cells = tuple(sorted(cells[:count])), cells[count:]
        size = rng.choice(("small", "large"))
        alone = shape not in MOST
        word = rng.choice(WORDS) if alone and size == "large" and rng.random() < 0.6 else None
        things.append(Thing(colour, shape, size, own, word))
    return Scene(name, rng.choice(tuple(BACKGROUNDS)), tuple(things))


def scenes(seed: int, split: str, number: int) -> Iterator[Scene]:
    """Scenes of a split. No scene of one split has the same content as one of another: the first letter of a digest
    of the content says which side it belongs to, so held-out scenes are truly unseen."""
    held_out = split == "test"
    for i in range(number):
        rng = random.Random(f"scene:{seed}:{split}:{i}")
        while True:
            scene = draw_scene(rng, f"{split}-{i:05d}")
            if (random.Random(f"side:{scene.background}:{scene.things}").random() < 0.2) == held_out:
                break
        yield scene


def _polygon(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r * 0.85), (x - r, y + r * 0.85)]
    if shape == "star":
        spokes = [(r if k % 2 == 0 else 0.42 * r, math.pi * (k / 5 - 0.5)) for k in range(10)]
        return [(x + radius * math.cos(a), y + radius * math.sin(a)) for radius, a in spokes]
    w = 0.36 * r  # cross
    return [
        (x - w, y - r), (x + w, y - r), (x + w, y - w), (x + r, y - w), (x + r, y + w), (x + w, y + w),
        (x + w, y + r), (x - w, y + r), (x - w, y + w), (x - r, y + w), (x - r, y - w), (x - w, y - w),
    ]  # fmt: skip


def _write(draw: ImageDraw.ImageDraw, word: str, x: int, y: int) -> None:
    """The word in black on a white plate, two pixels a dot, so that it is legible on every colour."""
    left, top = x - 4 * len(word) + 1, y - 5
    draw.rectangle((left - 1, top - 1, left + 8 * len(word) - 2, top + 10), fill=(255, 255, 255))
    for n, letter in enumerate(word):
        for row, digit in enumerate(FONT[letter]):
            for column in range(3):
                if int(digit) >> (2 - column) & 1:
                    u, v = left + 8 * n + 2 * column, top + 2 * row
                    draw.rectangle((u, v, u + 1, v + 1), fill=(0, 0, 0))


def render(scene: Scene) -> Image.Image:
    """The picture: 84 x 84 pixels."""
    image = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        r, fill = SIZES[thing.size], COLOURS[thing.colour]
        for cell in thing.cells:
            row, column = divmod(cell, 3)
            x, y = column * CELL + CELL // 2, row * CELL + CELL // 2
            if thing.shape == "circle":
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            elif thing.shape == "square":
                draw.rectangle((x - r * 0.8, y - r * 0.8, x + r * 0.8, y + r * 0.8), fill=fill)
            else:
                draw.polygon(_polygon(thing.shape, x, y, r), fill=fill)
            if thing.word:
                _write(draw, thing.word, x, y)
    return image
