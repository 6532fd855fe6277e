"""Detectors: one look at an image for all names, boxes as transformers' own post-processing has them, DGPref's
chunks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from mmfast.engines.base import Picture
from mmfast.feedback.experts import Case, weights
from mmfast.feedback.experts.boxes import Box, suppressed
from mmfast.feedback.experts.dino import Dino
from mmfast.feedback.experts.owl import Owl
from mmfast.feedback.experts.weights import picture_of, pixels_of
from mmfast.feedback.items import item_of
from tests.make.detectors import WORDS, write_dino, write_owl

NAMES = tuple(dict.fromkeys([*WORDS, *(f"{a} {b}" for a in WORDS[:4] for b in WORDS[6:11])]))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return Picture(str(path))


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory):
    return write_owl(tmp_path_factory.mktemp("owl"))


def plain_owl(owl, picture, names):
    """transformers' forward of these names, as DGPref calls it."""
    padded = {"padding": "max_length", "truncation": True, "max_length": owl.length, "return_tensors": "pt"}
    tokens = owl.tokenizer(list(names), **padded)
    with torch.no_grad():
        return owl.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=pixels_of(owl.images, picture_of(picture), owl.model),
        )


def theirs(owl, out, picture, threshold, names):
    """Name -> its boxes and scores, by transformers' post-processing of a chunk."""
    width, height = picture_of(picture).size
    (found,) = owl.images.post_process_object_detection(out, threshold, [(height, width)])
    boxes = {name: [] for name in names}
    for label, box, score in zip(
        found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), strict=True
    ):
        boxes[names[label]].append([*box, score])
    return boxes


def ours(found, names):
    return {name: [[b.x0, b.y0, b.x1, b.y1, b.score] for b in found.boxes[name]] for name in names}


def assert_boxes(found, expected):
    assert found.keys() == expected.keys()
    for name, boxes in expected.items():
        np.testing.assert_allclose(np.reshape(found[name], (-1, 5)), np.reshape(boxes, (-1, 5)), atol=1e-3)


def test_one_look_gives_the_logits_of_every_chunk(owl_folder, picture):
    owl = Owl(str(owl_folder))
    logits, _ = owl.logits(picture_of(picture), NAMES)
    for first in range(0, len(NAMES), 8):
        out = plain_owl(owl, picture, NAMES[first : first + 8])
        assert (logits[:, first : first + 8] - out.logits[0]).abs().max() < 3e-5


def test_the_image_is_encoded_once_and_each_name_once(owl_folder, picture, monkeypatch):
    owl = Owl(str(owl_folder))
    looks, reads = [], []
    vision, text = owl.base.vision_model.forward, owl.base.text_model.forward
    monkeypatch.setattr(owl.base.vision_model, "forward", lambda *a, **k: looks.append(1) or vision(*a, **k))
    monkeypatch.setattr(
        owl.base.text_model, "forward", lambda *a, **k: reads.append(len(k["input_ids"])) or text(*a, **k)
    )
    owl.find(picture, NAMES)
    owl.find(picture, [*NAMES[:9], "a new kite"])
    assert len(looks) == 2 and sum(reads) == len(NAMES) + 1


def test_each_name_has_its_own_threshold(owl_folder, picture):
    owl = Owl(str(owl_folder), threshold=0.6, overlap=1)
    found = ours(owl.find(picture, NAMES), NAMES)
    for name in NAMES[::5]:  # alone a name competes with none
        assert_boxes({name: found[name]}, theirs(owl, plain_owl(owl, picture, [name]), picture, 0.6, [name]))
    assert 0 < sum(map(len, found.values())) < 16 * len(NAMES)


def test_chunks_of_eight_are_dgprefs(owl_folder, picture):
    compat = Owl(str(owl_folder), threshold=0.6, overlap=1, chunk=8)
    found = ours(compat.find(picture, NAMES), NAMES)
    for first in range(0, len(NAMES), 8):
        some = NAMES[first : first + 8]
        expected = theirs(compat, plain_owl(compat, picture, some), picture, 0.6, some)
        assert_boxes({name: found[name] for name in some}, expected)
    # A name's boxes depend on its neighbours, and are fewer than its own
    alone = ours(Owl(str(owl_folder), threshold=0.6, overlap=1).find(picture, NAMES), NAMES)
    lost = [name for name in NAMES if len(found[name]) < len(alone[name])]
    assert len(lost) > len(NAMES) / 2
    turned = ours(compat.find(picture, NAMES[4:] + NAMES[:4]), NAMES)
    assert any(len(turned[name]) != len(found[name]) for name in NAMES)


def test_injected_boxes(owl_folder, picture, monkeypatch):
    """Three boxes, three names: what competes and what does not."""
    names = ("dog", "puppy", "cat")
    shares = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.5, 0.9, 1.0]])
    logits = torch.tensor([[2.0, 3.0, -5.0], [1.0, 0.5, -5.0], [-5.0, -5.0, 0.0]])
    right, compat = Owl(str(owl_folder)), Owl(str(owl_folder), overlap=1, chunk=8)
    for owl in (right, compat):
        monkeypatch.setattr(owl, "logits", lambda image, some: (logits[:, : len(some)], shares))
    assert {n: len(b) for n, b in right.find(picture, names).boxes.items()} == {"dog": 1, "puppy": 1, "cat": 1}
    found = compat.find(picture, names)
    assert {n: len(b) for n, b in found.boxes.items()} == {"dog": 1, "puppy": 1, "cat": 1}
    assert found.boxes["dog"][0].score < right.find(picture, names).boxes["dog"][0].score  # the better box is puppy's
    middle = (shares[:, :2] + shares[:, 2:]) / 2
    out = SimpleNamespace(logits=logits[None], pred_boxes=torch.cat([middle, shares[:, 2:] - shares[:, :2]], -1)[None])
    assert_boxes(ours(found, names), theirs(compat, out, picture, 0.25, names))
    # No box at all
    monkeypatch.setattr(right, "logits", lambda image, some: (torch.full((3, len(some)), -9.0), shares))
    assert right.find(picture, names).boxes == {"dog": (), "puppy": (), "cat": ()}
    (verdicts,) = right.check([Case(images=(picture,), items=(item_of("entity", ("bucket",)),), names=("bucket",))])
    assert verdicts[0].value == -1 and verdicts[0].evidence["boxes"] == {"bucket": []}


def test_a_name_that_is_too_long_is_cut_and_told(owl_folder, picture):
    owl = Owl(str(owl_folder))
    long = " ".join(["red"] * 20)
    found = owl.find(picture, ["dog", long])
    assert found.notes == {long: "cut at 16 tokens"}
    (verdicts,) = owl.check([Case(images=(picture,), items=(item_of("entity", (long,)),), names=(long,))])
    assert verdicts[0].evidence["notes"] == {long: "cut at 16 tokens"}


def test_boxes_on_each_other_are_one():
    boxes = [Box(0, 0, 10, 10, 0.5), Box(1, 0, 10, 10, 0.9), Box(20, 0, 30, 10, 0.3), Box(5, 0, 15, 10, 0.4)]
    assert [box.score for box in suppressed(boxes, 0.5)] == [0.9, 0.4, 0.3]
    assert suppressed(boxes, 1) == tuple(boxes) and suppressed([], 0.5) == ()
    assert len(suppressed([Box(0, 0, 0, 0, 0.5), Box(0, 0, 0, 0, 0.4)], 0.5)) == 2  # without area nothing is shared


def test_owlv2_boxes_are_shares_of_the_padded_square(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(weights, "has_scipy", lambda: True)
    owl = Owl(str(write_owl(tmp_path / "owlv2", "owlv2")), threshold=0.5, overlap=1)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    post = owl.images
    owl.images = lambda images, return_tensors: {"pixel_values": pixels}
    found = ours(owl.find(picture, ["dog"]), ["dog"])
    tokens = owl.tokenizer(["dog"], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = owl.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    (expected,) = post.post_process_object_detection(out, 0.5, torch.tensor([(60, 90)]))
    assert len(expected["boxes"]) > 0
    np.testing.assert_allclose(np.asarray(found["dog"])[:, :4], expected["boxes"].numpy(), atol=1e-3)


def test_owlv2_with_its_own_image_processor(tmp_path, picture):
    pytest.importorskip("scipy")
    owl = Owl(str(write_owl(tmp_path / "owlv2", "owlv2")), threshold=0.5, overlap=1)
    assert owl.find(picture, ["dog", "cat"]).width == 90


def test_what_is_missing_is_told_in_a_line(tmp_path, owl_folder, monkeypatch):
    monkeypatch.setattr(weights, "has_scipy", lambda: False)
    write_owl(tmp_path / "owlv2", "owlv2")
    with pytest.raises(ValueError, match="pip install scipy"):
        Owl(str(tmp_path / "owlv2"))
    with pytest.raises(ValueError, match="is a owlvit: this expert takes grounding-dino"):
        Dino(str(owl_folder))
    with pytest.raises(ValueError, match="threshold"):
        Owl(str(owl_folder), threshold=2)


# GroundingDINO


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def dino_folder(request, tmp_path_factory):
    return write_dino(tmp_path_factory.mktemp(request.param), request.param)


def least_of(folder):
    """A threshold that some boxes of these random weights pass and others do not."""
    return 0.32 if folder.name.startswith("grounding") else 0.009


def test_a_caption_gives_the_boxes_of_transformers(dino_folder, picture):
    """One name a caption: then transformers' labels are that name or parts of it."""
    least = least_of(dino_folder)
    dino = Dino(str(dino_folder), threshold=least, overlap=1)
    processor = hf.GroundingDinoProcessor(dino.images, dino.tokenizer)
    image = picture_of(picture)
    some = 0
    for name in ("dog", "red circle", "Two Kite"):
        inputs = processor(images=image, text=f"{name.lower()}.", return_tensors="pt")
        with torch.no_grad():
            out = dino.model(**inputs)
        # its scores count the dot and the marks around too; ours are of the name alone
        name_logits = out.logits.clone()
        name_logits[..., 1 + len(name.split()) :] = -50
        name_logits[..., 0] = -50
        kept = SimpleNamespace(logits=name_logits, pred_boxes=out.pred_boxes, input_ids=inputs.input_ids)
        (expected,) = processor.post_process_grounded_object_detection(
            kept, threshold=least, text_threshold=least, target_sizes=[image.size[::-1]]
        )
        assert all(label in (name.lower(), *name.lower().split()) for label in expected["text_labels"])
        found = dino.find(picture, [name]).boxes[name]
        np.testing.assert_allclose(
            [[b.x0, b.y0, b.x1, b.y1] for b in found], expected["boxes"].reshape(-1, 4), atol=1e-3
        )
        np.testing.assert_allclose([b.score for b in found], expected["scores"], atol=1e-5)
        some += len(found)
    assert 0 < some < 60


def test_captions_hold_all_names_and_the_backbone_sees_the_image_once(dino_folder, picture, monkeypatch):
    dino = Dino(str(dino_folder), threshold=least_of(dino_folder), overlap=1)
    ids, notes = dino._fitting(NAMES)
    captions = list(dino._captions(ids))
    assert len(captions) > 2 and all(len(row) <= dino.length for row, _ in captions) and not notes
    spelled = [(name, dino.tokenizer.decode(row[tokens])) for row, caption in captions for name, tokens in caption]
    assert spelled == [(name, name) for name in NAMES]
    looks = []
    backbone = dino.model.model.backbone
    inner = backbone.conv_encoder.forward
    monkeypatch.setattr(backbone.conv_encoder, "forward", lambda *a, **k: looks.append(1) or inner(*a, **k))
    found = dino.find(picture, NAMES)
    assert len(looks) == 1 and "forward" not in vars(backbone)
    # Each caption by a whole forward of its own
    inputs = dino.images(images=picture_of(picture), return_tensors="pt")
    for row, caption in captions:
        with torch.no_grad():
            out = dino._forward(row, inputs)
        for name, tokens in caption:
            best = out.logits[0].sigmoid()[:, tokens].amax(-1)
            assert sorted(b.score for b in found.boxes[name]) == pytest.approx(
                sorted(best[best > dino.threshold].tolist()), abs=1e-5
            )
    assert len(looks) == 1 + len(captions)


def test_names_that_a_caption_cannot_hold(dino_folder, picture):
    dino = Dino(str(dino_folder))
    found = dino.find(picture, ["...", "red. dog", " ".join(["red"] * 40)])
    assert found.notes == {"...": "has no tokens", " ".join(["red"] * 40): "cut at 29 tokens"}
    assert found.boxes["..."] == ()
    assert dino._fitting(["red. dog"])[0]["red. dog"][:-1] == dino._fitting(["red dog"])[0]["red dog"][:-1]
    assert dino.find(picture, []).boxes == {}
