"""The world on disk: the same bytes from the same spec, pairs that differ only in their segments, held-out scenes."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from mmfast.world import scenes
from mmfast.world.dataset import WorldSpec, read_lines, read_scenes, write_world
from mmfast.world.grammar import errors

SPEC = WorldSpec(seed=5, base=60, pairs=40, groups=4, test=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), SPEC)


def digest(path):
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def text(record, side):
    return record[side][-1]["content"][-1]["text"]


def test_the_same_spec_gives_the_same_bytes_in_another_process(world, tmp_path):
    code = (
        "import sys; from mmfast.world.dataset import *;"
        "write_world(sys.argv[1], WorldSpec(seed=5, base=60, pairs=40, groups=4, test=12))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert digest(world) == digest(tmp_path)


def test_another_seed_gives_another_world_and_the_same_spec_is_not_written_twice(world, tmp_path):
    other = write_world(tmp_path, WorldSpec(seed=6, base=60, pairs=40, groups=4, test=12))
    assert digest(world)["base.jsonl"] != digest(other)["base.jsonl"]
    before = {file: file.stat().st_mtime_ns for file in other.rglob("*.png")}
    told = []
    spec = WorldSpec(seed=6, base=60, pairs=40, groups=4, test=12)
    write_world(other, spec, lambda done, of: told.append((done, of)))
    assert told == [(116, 116)], "what is there already is complete"
    assert before == {file: file.stat().st_mtime_ns for file in other.rglob("*.png")}


def test_pictures_hold_what_the_annotation_says(world):
    for scene in read_scenes(world, "test"):
        with Image.open(world / "images" / f"{scene.name}.png") as image:
            assert image.size == (84, 84) and image.mode == "RGB"
            filled = {cell for thing in scene.things for cell in thing.cells}
            for cell in range(9):
                row, column = divmod(cell, 3)
                pixel = image.getpixel((28 * column + 14, 28 * row + 16))  # near the middle of the cell
                thing = next((t for t in scene.things if cell in t.cells), None)
                empty = pixel == scenes.BACKGROUNDS[scene.background]
                assert empty == (cell not in filled)
                if thing is not None and thing.word is None:
                    assert pixel == scenes.COLOURS[thing.colour]


def test_pairs_are_length_balanced_substitutions(world):
    by_name = {scene.name: scene for scene in read_scenes(world, "train")}
    pairs = read_lines(world / "pairs.jsonl")
    assert len(pairs) >= 28  # a scene where nothing can be got wrong is left out
    for record in pairs:
        chosen, rejected = text(record, "chosen"), text(record, "rejected")
        scene = by_name[record["id"].removesuffix("-pair")]
        assert chosen != rejected and len(chosen.split()) == len(rejected.split())
        assert not any(errors(chosen, scene).values()) and any(errors(rejected, scene).values())
        spans = record["segments"]
        flaws = record["meta"]["flaws"]
        assert len(spans["chosen"]) == len(spans["rejected"]) == len(flaws) + flaws.count("count")  # number and noun

        def rest(said, ranges):
            for a, b, _ in reversed(ranges):
                said = said[:a] + "#" + said[b:]
            return said

        assert rest(chosen, spans["chosen"]) == rest(rejected, spans["rejected"])


def test_blind_pairs_are_the_pairs_with_other_pictures(world):
    pairs, blind = read_lines(world / "pairs.jsonl"), read_lines(world / "blind.jsonl")
    assert [r | {"images": 0} for r in pairs] == [r | {"images": 0} for r in blind]
    assert sorted(r["images"] for r in pairs) == sorted(r["images"] for r in blind)
    assert not any(a["images"] == b["images"] for a, b in zip(pairs, blind, strict=True))


def test_groups_prefer_fewer_flaws_on_one_picture_and_prompt(world):
    by_scene = {}
    for record in read_lines(world / "groups.jsonl"):
        by_scene.setdefault(record["id"].rsplit("-", 2)[0], []).append(record)
        assert record["scores"]["chosen"] > record["scores"]["rejected"]
    assert len(by_scene) == 4
    for records in by_scene.values():
        assert len({json.dumps([r["images"], r["prompt"]]) for r in records}) == 1
        assert len({text(r, side) for r in records for side in ("chosen", "rejected")}) <= 8


def test_no_held_out_scene_is_among_the_training_scenes():
    content = [{(s.background, s.things) for s in scenes.scenes(5, split, 800)} for split in ("train", "test")]
    assert len(content[0]) > 700 and len(content[1]) > 700 and not content[0] & content[1]


def test_annotation_goes_there_and_back(world):
    for scene in (*read_scenes(world, "train"), *read_scenes(world, "test")):
        assert scenes.Scene.from_annotation(json.loads(json.dumps(scene.annotation()))) == scene
    assert len(read_scenes(world, "test")) == SPEC.test
