"""A model whose family no file describes: its images go through transformers' own processor, and it proves itself at
load. What cannot be read so is refused by name."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mmfast.data.images.index import measured
from mmfast.data.images.own import OwnProcessor
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.store import image_info
from mmfast.data.text.tokens import Tokenizer
from mmfast.families import family_of
from mmfast.job.rows import read
from mmfast.models import load
from mmfast.models.proof import prove
from mmfast.train import train
from tests.families import unlisted
from tests.make.model_cases import Case
from tests.make.tiny_run import make_config, write_pairs


def test_it_is_proven_shared_and_trained(tmp_path):
    """From files: the words between an image's tiles go through the store, the packs and the samples' prompts."""
    assert family_of("idefics3") is None
    model = unlisted.write(tmp_path / "model", "idefics3", unlisted.idefics3())
    changes = {"train.steps": 1, "train.tokens_per_pack": 1600, "train.eval_samples": 1}
    data = write_pairs(tmp_path, 4)
    config = make_config(tmp_path, model, data, **changes, **{"data.eval_path": str(data), "train.eval_tokens": 2})
    train(config)
    rows = read(tmp_path / "run" / "metrics.jsonl")
    row = next(row for row in rows if "grad_norm" in row)
    assert row["grad_norm"] > 0 and abs(row["loss"] - 0.6931) < 1e-3
    assert row["sharing"] > 0.3, "proven at load, so prefixes are shared"
    store, own = next((tmp_path / "cache").rglob("images.json")), OwnProcessor(model)
    infos = [image_info(image, "") for image in json.loads(store.read_text())["images"]]
    assert infos and all(info.words == own.words(info.width, info.height) != () for info in infos)


@pytest.mark.parametrize("kind", ["internvl", "llava_onevision", "idefics3", "mistral3"])
def test_images_of_several_shapes_in_one_prompt(kind, tmp_path):
    model = unlisted.write(tmp_path, kind, getattr(unlisted, kind)())
    scorer = load(str(model), dtype="float32")
    processor = ImageProcessor.from_model_dir(model)
    case = Case(kind, scorer.adapter)
    pictures = {}
    for name, (width, height) in {"wide": (130, 60), "square": (56, 56), "tall": (50, 150)}.items():
        noise = np.random.default_rng(len(name)).integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(noise).save(file := io.BytesIO(), "PNG")
        pictures[name] = file.getvalue()
        case.infos[name] = measured(processor, name, "", pictures[name])
    case.pair(case.prompt("wide", "tall", "square"), case.words(3, 7), case.words(3, 7))
    case.load_images = lambda names: processor.collate([processor.load(pictures[name]) for name in names])
    assert prove(scorer, case.examples, case.infos, case.load_images) == ""


def test_what_the_processor_writes_around_an_image_is_written(tmp_path):
    model = unlisted.write(tmp_path, "idefics3", unlisted.idefics3(splits=False))
    mark, text = Tokenizer.load(model).expanded
    assert mark == "<image>"
    assert text == "<fake_token_around_image><global-img><image><fake_token_around_image>"
    assert OwnProcessor(model).words(130, 60) == ()


def test_pixtral_breaks_the_lines_of_an_image(tmp_path):
    """Its rule stands in our file: transformers' class asks for torchvision. With that, the two once wrote the same."""
    model = unlisted.write(tmp_path, "mistral3", unlisted.mistral3())
    own = OwnProcessor(model)
    slot, line_break, end = own.processor.tokenizer.convert_tokens_to_ids(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    shown = own.preprocess(np.zeros((60, 130, 3), np.uint8))
    assert shown["image_sizes"].tolist() == [[56, 112]], "within 112 pixels, in merged patches of 28"
    assert own._read_block(130, 60)[0] == (*[slot] * 4, line_break, *[slot] * 4) and own.beside == ([], [end])
    assert own.geometry(130, 60) == (9, None) and own.words(130, 60) == ((4, line_break),)
    assert own.geometry(1, 1) == (1, None) and own.words(1, 1) == ()


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    broken = unlisted.write(tmp_path / "blanks", "idefics2", unlisted.idefics2())
    with pytest.raises(ValueError, match=r"'idefics2': its processor changes the words beside an image"):
        Tokenizer.load(broken)
    with pytest.raises(ValueError, match=r"data.aspect, .* have no effect on model_type 'idefics2'"):
        ImageProcessor.from_model_dir(broken, aspect="pad")
    settings = {"image_processor_type": "Cohere2VisionImageProcessor"}
    (broken / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"'idefics2': no family's file .* cannot be made here"):
        ImageProcessor.from_model_dir(broken).geometry(60, 60)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "image_token_index": 3}))
    with pytest.raises(ValueError, match="'mllama': no family's file describes its images"):
        ImageProcessor.from_model_dir(tmp_path).geometry(60, 60)


def test_one_image_that_its_processor_does_not_take_is_a_bad_row(tmp_path):
    own = OwnProcessor(unlisted.write(tmp_path, "glm4v", unlisted.glm4v()))
    with pytest.raises(BadRow, match=r"an image of 900 x 2 is not taken by .* \(ValueError: .*200"):
        own.geometry(900, 2)
    assert own.geometry(130, 60) == (4, (1, 2, 8)), "the next one is"
    own.beside = ([0], [])
    with pytest.raises(BadRow, match="it writes other words beside it"):
        own.geometry(60, 60)
