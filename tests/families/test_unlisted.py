"""A model whose family no file describes: its images go through transformers' own processor, and it proves itself at
load. What cannot be read so is refused by name."""

import json

import numpy as np
import pytest
import transformers as hf

from mmfast.data.images.processor import ImageProcessor
from mmfast.data.records import ImageInfo
from mmfast.data.text.tokens import Tokenizer
from mmfast.families import adapter_for, family_of
from mmfast.job.rows import read
from mmfast.models import load
from mmfast.models.proof import prove
from mmfast.train import train
from tests.families import unlisted
from tests.make.model_cases import Case
from tests.make.tiny_run import make_config, write_pairs

KINDS = {"internvl": unlisted.internvl, "llava_onevision": unlisted.llava_onevision, "idefics3": unlisted.idefics3}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_proven_shared_and_trained(kind, tmp_path):
    assert family_of(kind) is None
    model = unlisted.write(tmp_path / "model", kind, KINDS[kind]())
    changes = {"train.steps": 1, "train.tokens_per_pack": 1200, "train.eval_samples": 1}
    data = write_pairs(tmp_path, 4)
    config = make_config(tmp_path, model, data, **changes, **{"data.eval_path": str(data), "train.eval_tokens": 2})
    train(config)
    rows = read(tmp_path / "run" / "metrics.jsonl")
    row = next(row for row in rows if "grad_norm" in row)
    assert row["grad_norm"] > 0 and abs(row["loss"] - 0.6931) < 1e-3
    assert row["sharing"] > 0.3, "proven at load, so prefixes are shared"


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_several_shapes_in_one_prompt(kind, tmp_path):
    model = unlisted.write(tmp_path, kind, KINDS[kind]())
    scorer = load(str(model), dtype="float32")
    processor = ImageProcessor.from_model_dir(model)
    case = Case(kind, scorer.adapter)
    pictures = {}
    for name, (width, height) in {"wide": (130, 60), "square": (56, 56), "tall": (50, 150)}.items():
        pictures[name] = np.random.default_rng(len(name)).integers(0, 255, (height, width, 3)).astype(np.uint8)
        slots, grid = processor.geometry(width, height)
        case.infos[name] = ImageInfo(id=name, source="", width=width, height=height, tokens=slots, grid=grid)
    case.pair(case.prompt("wide", "tall", "square"), case.words(3, 7), case.words(3, 7))
    case.load_images = lambda names: processor.collate([processor.preprocess(pictures[name]) for name in names])
    assert prove(scorer, case.examples, case.infos, case.load_images) == ""


def test_what_the_processor_writes_around_an_image_is_written(tmp_path):
    model = unlisted.write(tmp_path, "idefics3", unlisted.idefics3())
    mark, text = Tokenizer.load(model).expanded
    assert mark == "<image>"
    assert text == "<fake_token_around_image><global-img><image><fake_token_around_image>"


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    broken = unlisted.write(tmp_path / "tiles", "idefics3", unlisted.idefics3(splits=True))
    told = (
        r"'idefics3': its processor writes '<fake_token_around_image>' between the slots .* do_image_splitting to false"
    )
    with pytest.raises(ValueError, match=told):
        Tokenizer.load(broken)
    with pytest.raises(ValueError, match=r"data.aspect, .* have no effect on model_type 'idefics3'"):
        ImageProcessor.from_model_dir(broken, aspect="pad")
    video = unlisted.write(tmp_path / "video", "mistral3", unlisted.mistral3())
    with pytest.raises(ValueError, match=r"'mistral3': no family's file .* PixtralProcessor requires the Torchvision"):
        ImageProcessor.from_model_dir(video).geometry(60, 60)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "image_token_index": 3}))
    with pytest.raises(ValueError, match="'mllama': no family's file describes its images"):
        ImageProcessor.from_model_dir(tmp_path).geometry(60, 60)
    pixtral = unlisted.write(tmp_path / "pixtral", "llava", unlisted.mistral3())
    with pytest.raises(ValueError, match="llava with a tower of type pixtral: only CLIP's and SigLIP's"):
        adapter_for(hf.AutoConfig.from_pretrained(pixtral))


@pytest.mark.parametrize("kind", ["mllama", "florence2"])
def test_a_model_without_rows_for_its_images_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=f"{kind} cannot be trained: its decoder has no list of layers, or the model"):
        load(hf.AutoConfig.for_model(kind), device="meta", random_weights=True)
