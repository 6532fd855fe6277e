"""Inputs that are no file of prompts: a folder of images, scene graphs; and what is asked of all images alike."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.engines.asked import read_asked
from mmfast.engines.inputs import count_rows
from mmfast.engines.presets import EIGHT, planned
from mmfast.engines.stage import rows
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.grammar import CAPTION_PROMPTS
from tests.make.engine_cases import answers


def photos(folder):
    """Two images, one in a folder of its own, beside what is none."""
    (folder / "trip").mkdir(parents=True)
    for n, name in enumerate(("b.png", "trip/a.JPG")):
        Image.new("RGB", (8, 8), (n, 9, 9)).save(folder / name, "PNG")
    (folder / "notes.txt").write_text("not an image")
    (folder / "trip" / "._a.jpg").write_bytes(b"a shadow of another system's")
    return folder


def test_a_folder_of_images_is_asked_one_row_an_image(tmp_path):
    folder = photos(tmp_path / "photos")
    assert count_rows(folder) == 2 and count_rows(folder, 1) == 1
    tally = answers(folder, tmp_path / "out", plan=planned(ask=["What is this?", "Why?"]))
    found = list(rows(tmp_path / "out"))
    assert tally.failed == 0 and [row["prompt_id"] for row in found] == ["b_0", "b_1", "trip/a_0", "trip/a_1"]
    assert [row["prompt"][0]["content"][1]["text"] for row in found] == ["What is this?", "Why?"] * 2
    assert [row["images"] for row in found] == [
        [str(folder / name)] for name in ("b.png", "b.png", *["trip/a.JPG"] * 2)
    ]
    assert len({row["group"] for row in found}) == 4  # answers to one question compete
    again = answers(folder, tmp_path / "out", plan=planned(ask=["What is this?", "Why?"]))
    assert again.new == 0


def test_without_a_question_every_image_says_how_one_is_given(tmp_path):
    found = list(read_asked(photos(tmp_path / "photos")))
    assert len(found) == 2 and all("asks nothing" in one.problem and "--ask" in one.problem for one in found)


def test_a_folder_that_holds_rows_is_read_as_rows(tmp_path):
    folder = photos(tmp_path / "photos")
    (folder / "prompts.jsonl").write_text(json.dumps({"image": "b.png", "prompt": "Why?"}) + "\n")
    (one,) = read_asked(folder)
    assert one.images == ("b.png",) and not one.problem


@pytest.mark.parametrize("content", ["empty", "text"])
def test_a_folder_of_nothing_is_told(tmp_path, content):
    folder = tmp_path / "photos"
    folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match="holds no file"):
        answers(folder, tmp_path / "out", plan=planned("dgpref"))


def test_scene_graphs_name_the_images_that_are_described(tmp_path):
    home = tmp_path / "VisualGenome"
    (home / "VG_100K_2").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(home / "VG_100K_2" / "17.jpg")
    graph = {"width": 8, "height": 8, "objects": {"1": {"name": "dog"}}}
    file = tmp_path / "train_sceneGraphs.json"
    file.write_text(json.dumps({"17": graph, "9": graph | {"objects": {}}}))
    assert count_rows(file) == 2
    tally = answers(file, tmp_path / "out", plan=planned("dgpref"), images=str(home))
    found = list(rows(tmp_path / "out"))
    assert [row["prompt_id"] for row in found] == [
        f"17_{n}" for n in range(8)
    ] and tally.failed == 1  # 9.jpg is missing
    assert {row["images"][0] for row in found} == {str(home / "VG_100K_2" / "17.jpg")}
    assert [row["prompt"][0]["content"][1]["text"] for row in found] == list(EIGHT)


def test_the_command_asks_all_images_of_a_folder(tmp_path):
    world = write_world(tmp_path / "world", WorldSpec(base=1, pairs=3, groups=1, test=1))
    command = ["generate", str(world / "images"), "--out", str(tmp_path / "out"), "--ask", CAPTION_PROMPTS[0]]
    said = CliRunner().invoke(app, [*command, "--engine", "world", "--model", str(world)])
    assert said.exit_code == 0, said.output
    assert len(list(rows(tmp_path / "out"))) == len(list((world / "images").iterdir()))


def test_what_is_asked_is_said_once_and_takes_the_place_of_a_presets_wordings():
    plan = planned("dgpref", ["Why?"])
    assert plan.wordings == ("Why?",) and plan.group == "image" and plan.draws == planned("dgpref").draws
    for wrong in ([" "], ["Why?", "Why?"]):
        with pytest.raises(ValueError, match="--ask: each is a text, and no two are the same"):
            planned(ask=wrong)


def test_images_are_fitted_as_asked_by_the_local_engine_alone(tmp_path):
    folder = photos(tmp_path / "photos")
    command = ["generate", str(folder), "--out", str(tmp_path / "out"), "--model", "x", "--ask", "Why?", "--aspect"]
    for engine, aspect, told in (
        ("world", "pad", "no effect on the engine world"),
        ("local", "wide", "unknown aspect"),
    ):
        ended = CliRunner().invoke(app, [*command, aspect, "--engine", engine])
        assert isinstance(ended.exception, ValueError) and told in str(ended.exception)
