"""The six papers on the models that each names, as the hub has them and small (tests/make/stand_ins.py)."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.images.processor import ImageProcessor
from mmfast.directory import directory
from mmfast.models import load
from mmfast.models.importing import import_model
from mmfast.reproduce import need, paper, weights
from mmfast.world.dataset import WorldSpec, write_world
from tests.make import stand_ins
from tests.make.system_files import PAPERS
from tests.rounds.crews import Inside
from tests.rounds.test_systems import FEEDBACK, TOY


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# the models


@pytest.mark.parametrize(
    ("make", "edge", "slots", "aspect"),
    [
        (stand_ins.llava_hf, 336, 576, "crop"),
        (stand_ins.llava_native, 336, 576, "pad"),
        (stand_ins.qwen_vl_chat, 448, 256, "square"),
        (stand_ins.muffin, 448, 64, "square"),
    ],
)
def test_a_stand_in_is_read_as_its_model_is(make, edge, slots, aspect, tmp_path):
    folder = make(tmp_path / "published")
    seen = weights.look("it", folder)  # as it is published, before an import
    if make in (stand_ins.qwen_vl_chat, stand_ins.muffin):
        folder = import_model(folder, tmp_path / "imported")
    processor = ImageProcessor.from_model_dir(directory(folder))
    assert (processor.edge, processor.slots, processor.aspect) == (edge, slots, aspect)
    scorer = load(str(folder), dtype="float32")
    assert [len(scorer.adapter.layers(scorer.model)), scorer.adapter.decoder(scorer.model).config.hidden_size] == [
        seen.layers, seen.hidden,
    ]  # fmt: skip
    image = scorer.adapter.encode_pixels(scorer.model, scorer.adapter.prepare(scorer.adapter.dummy_images()))
    assert image.shape == (slots, seen.hidden)


def test_qwen25_vls_names_of_before_transformers_5_are_read(tmp_path):
    folder = stand_ins.qwen25_vl(tmp_path / "m")
    scorer = load(str(folder), dtype="float32")
    assert scorer.adapter.config.vision_config.spatial_merge_size == 2
    assert weights.look("it", folder).hidden == scorer.model.config.text_config.hidden_size


# the papers


class Crew(Inside):
    def end(self, code):
        assert code == 0


def changes(name, world):
    """What is not the paper's in a toy run, but never the base: fewer steps, and the world in the place of servers,
    other models, people and benchmarks; of answers too, where a random model's words could not be taken apart."""
    feedback = FEEDBACK["dgpref_llava" if name == "dgpref_qwen" else name]
    own = [text.replace('"W"', f'"{world}"').replace("=W", f"={world}") for text in feedback]
    if name == "rlhfv":  # nothing is asked: the pairs are there
        own = []
    if name == "dgpref_qwen":
        own += [f"generate.{key}=" for key in ("dtype", "template", "aspect")]  # of another model's answers
    toy = {key: value for key, value in TOY.items() if name != "rlhfv" or not key.startswith("prompts")}
    own += [f"{key}={value}" for key, value in (toy | {"evaluate.data": world}).items()]
    return own


def whole(name, root, world, monkeypatch, *more):
    """The command on the stand-ins, in this process; returns what it said and what its crews ran."""
    described = stand_ins.write_models(paper.load_paper(name), root)
    for model in described.models:
        if model.imported:
            import_model(root / model.folder, root / model.imported)
    crews = []
    monkeypatch.setattr(paper, "load_paper", lambda name: described)
    monkeypatch.setattr(need, "memory", lambda *given: 1.0)
    monkeypatch.setattr("mmfast.rounds.launch.Machine", lambda processes: crews.append(Crew()) or crews[-1])
    command = ["reproduce", name, *changes(name, world), "--root", str(root), "--scale", "0.5", *more]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, (said.output, said.exception)
    return said.output, crews


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


EVERY_DAY = ("rlhfv",)  # nothing is asked there, so that it is cheap


@pytest.mark.parametrize("name", [n if n in EVERY_DAY else pytest.param(n, marks=pytest.mark.slow) for n in PAPERS])
def test_a_table_ends_a_run_on_the_papers_base_and_a_second_start_runs_nothing(name, world, tmp_path, monkeypatch):
    root = stand_ins.write_files(name, tmp_path / "root", world)
    said, crews = whole(name, root, world, monkeypatch, "--write", str(tmp_path / "rows.jsonl"))
    base = paper.load_paper(name).models[0]
    assert f"there  {base.what}: {base.id}: 0.00 billion parameters" in said
    assert "| aligned |" in said and "Differs from the paper:" in said and "- model.path" not in said
    assert crews[0].ran[0] == "00/eval" and crews[0].ran[-1].endswith("/eval")
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert row["paper"] == name and row["scale"] == 0.5
    command = ["reproduce", name, *changes(name, world), "--root", str(root), "--scale", "0.5"]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and not crews[1].ran
