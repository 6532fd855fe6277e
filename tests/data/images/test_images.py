"""Image files to pixels: bit for bit what transformers' Pillow processors make, and loud about what is no image."""

import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmfast.data.images import decode as images
from mmfast.data.images import native as image_ops
from mmfast.data.images.processor import ImageProcessor, from_config
from mmfast.data.problems import BadRow

PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
SIZES = [(70, 90), (200, 60), (31, 33), (56, 56), (300, 17), (57, 500)]  # width, height


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with noise and hard edges."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)], -1) * 90 + 128
    waves += r.normal(0, 20, waves.shape)
    waves[: height // 3, : width // 4] = (255, 0, 255)
    return waves.clip(0, 255).astype(np.uint8)


def save(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(out, kind, **options)
    return out.getvalue()


def processor(kind: str, hf, aspect="auto", model=None, **pixels) -> ImageProcessor:
    model = {"model_type": kind, "vision_config": {"image_size": 56, "patch_size": 14}} | (model or {})
    config = json.loads(hf.to_json_string())
    return from_config(model, config, aspect, pixels.get("min_pixels", 0), pixels.get("max_pixels", 0))


SQUARE = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
CASES = {
    "crop": lambda: ("llava", CLIPImageProcessorPil(**SQUARE)),
    "pad": lambda: ("llava", LlavaImageProcessorPil(**SQUARE, do_pad=True)),
    "square": lambda: ("gemma3", Gemma3ImageProcessorPil(size={"height": 56, "width": 56})),
    "lanczos": lambda: (
        "llava",
        CLIPImageProcessorPil(**SQUARE, resample=1, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    ),
    "unscaled": lambda: ("llava", CLIPImageProcessorPil(**SQUARE, do_rescale=False, do_normalize=False)),
    "anyres": lambda: (
        "llava_next",
        LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=PINPOINTS, do_pad=False),
    ),
    "native": lambda: ("qwen2_5_vl", Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 20)),
    "native16": lambda: ("qwen3_vl", Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32, max_pixels=64 * 64)),
}


@pytest.fixture(params=["native code", "pillow"])
def backend(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(image_ops, "native", lambda: None)
    return request.param


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_transformers_processor_to_the_bit(backend, case, size):
    kind, hf = CASES[case]()
    ours, data = processor(kind, hf), save(picture(*size))
    found = ours.collate([ours.load(data)])
    wanted = hf(Image.open(io.BytesIO(data)), return_tensors="np")
    pixels = np.asarray(wanted["pixel_values"])
    if case == "anyres":
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        assert found["image_sizes"].tolist() == np.asarray(wanted["image_sizes"]).tolist()
    if case.startswith("native"):
        assert torch.equal(found["image_grid_thw"], torch.as_tensor(wanted["image_grid_thw"]))
    assert found["pixel_values"].dtype == torch.float32
    assert np.array_equal(found["pixel_values"].numpy(), pixels)


def test_resize_equals_pillow_for_every_filter_and_shape(backend):
    r = np.random.default_rng(0)
    for i in range(150):
        height, width, to_height, to_width = (int(x) for x in r.integers(1, 80, 4))
        if i % 10 == 0:
            to_height = height
        if i % 10 == 1:
            to_width = width
        image = r.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if i % 3 == 0:
            image = (image > 127).astype(np.uint8) * 255  # overshoots on both sides
        for resample in image_ops.FILTERS:
            wanted = np.asarray(Image.fromarray(image).resize((to_width, to_height), resample))
            assert np.array_equal(image_ops.resize(image, to_height, to_width, resample), wanted)
            window = (-3, to_width // 2, to_height + 5, 7)
            padded = np.pad(wanted, ((3, 9), (0, 9), (0, 0)))
            found = image_ops.resize(image, to_height, to_width, resample, window)
            assert np.array_equal(found, padded[: window[2], window[1] : window[1] + 7])


def test_large_images_in_both_pass_orders():
    for size in [(1500, 20, 400, 18), (40, 1800, 39, 300), (700, 600, 336, 336)]:
        height, width, to_height, to_width = size
        image = picture(width, height)
        for resample in image_ops.FILTERS:
            wanted = np.asarray(Image.fromarray(image).resize((to_width, to_height), resample))
            assert np.array_equal(image_ops.resize(image, to_height, to_width, resample), wanted)


@pytest.mark.parametrize("size", [*SIZES, (640, 480), (1000, 333), (56, 57)])
def test_slots_of_anyres_are_the_processors(size):
    hf = CASES["anyres"]()[1]
    for strategy in ("default", "full"):
        model = {"vision_feature_select_strategy": strategy}
        peer = LlavaNextProcessor.__new__(LlavaNextProcessor)
        peer.image_processor, peer.patch_size = hf, 14
        peer.num_additional_image_tokens = 0 if strategy == "default" else 1
        wanted = peer._get_number_of_features(size[1], size[0], 56, 56)
        assert processor("llava_next", hf, model=model).geometry(*size) == (wanted, None)


def test_slots_of_the_others():
    assert processor(*CASES["crop"]()).geometry(640, 480) == (16, None)
    full = {"vision_feature_select_strategy": "full"}
    assert processor(*CASES["pad"](), model=full).geometry(640, 480) == (17, None)
    assert processor(*CASES["square"](), model={"mm_tokens_per_image": 4}).geometry(9, 9) == (4, None)
    slots, grid = processor(*CASES["native"]()).geometry(640, 480)
    assert grid == (1, 6, 10) and slots == 15
    with pytest.raises(BadRow, match="200 times"):
        processor(*CASES["native"]()).geometry(2001, 10)


def test_geometry_agrees_with_what_load_makes():
    for case in ("anyres", "native", "native16"):
        ours = processor(*CASES[case]())
        for size in SIZES:
            loaded, (slots, grid) = ours.load(save(picture(*size))), ours.geometry(*size)
            if grid is not None:
                assert tuple(loaded["image_grid_thw"]) == grid and slots * 4 == len(loaded["pixel_values"])
            else:
                assert tuple(loaded["image_sizes"]) == size[::-1]


def test_collate_joins_tiles_and_patches():
    ours = processor(*CASES["anyres"]())
    loaded = [ours.load(save(picture(*size))) for size in SIZES[:3]]
    joined = ours.collate(loaded)
    assert len(joined["pixel_values"]) == sum(len(x["pixel_values"]) for x in loaded)
    assert joined["image_sizes"].shape == (3, 2) and ours.collate([]) == {}
    ours = processor(*CASES["native"]())
    loaded = [ours.load(save(picture(*size))) for size in SIZES[:3]]
    joined = ours.collate(loaded)
    assert len(joined["pixel_values"]) == int(joined["image_grid_thw"].prod(1).sum())


def test_min_and_max_pixels_override_the_processors():
    hf = CASES["native"]()[1]
    ours = processor("qwen2_vl", hf, max_pixels=28 * 28 * 6)
    peer = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 6)
    data = save(picture(400, 300))
    assert np.array_equal(ours.load(data)["pixel_values"], peer(Image.open(io.BytesIO(data)))["pixel_values"])
    with pytest.raises(ValueError, match="no effect on llava"):
        processor(*CASES["crop"](), max_pixels=100)
    with pytest.raises(ValueError, match="above max_pixels"):
        processor("qwen2_vl", hf, min_pixels=10_000, max_pixels=100)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn):
    """The stored pixels are turned so that the picture comes out upright."""
    upright = picture(40, 24)
    undo = {1: [], 2: [0], 3: [0, 1], 4: [1], 5: ["t"], 6: ["t", 1], 7: ["t", 0, 1], 8: ["t", 0]}[turn]
    stored = Image.fromarray(upright)
    for step in undo:
        flips = {0: Image.Transpose.FLIP_LEFT_RIGHT, 1: Image.Transpose.FLIP_TOP_BOTTOM, "t": Image.Transpose.TRANSPOSE}
        stored = stored.transpose(flips[step])
    exif = Image.Exif()
    exif[0x0112] = turn
    data = save(stored, exif=exif)
    assert np.array_equal(images.decode(data), upright)
    assert images.image_size(data) == images.image_size(data, header_only=True) == (40, 24)


def test_modes():
    rgb = Image.fromarray(picture(30, 20))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(picture(30, 20)[..., 0]))
    palette = rgb.quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    hf = CLIPImageProcessorPil()
    for image in (rgb.convert("L"), rgb.convert("1"), alpha, alpha.convert("LA"), palette, see_through):
        data = save(image)
        assert np.array_equal(images.decode(data), hf.convert_to_rgb(Image.open(io.BytesIO(data)))), image.mode
    for mode in ("CMYK", "YCbCr"):
        data = save(rgb.convert(mode), "JPEG")
        assert np.array_equal(images.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bit_greys_are_scaled_not_clipped():
    levels = np.arange(0, 65536, 257, dtype=np.uint16)[None].repeat(2, 0)
    for kind in ("PNG", "TIFF"):
        found = images.decode(save(Image.fromarray(levels), kind))
        assert np.array_equal(found[0, :, 0], np.arange(256)) and found.shape == (2, 256, 3)


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(picture(20, 10, seed)).convert("P") for seed in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(images.decode(out.getvalue()), np.asarray(frames[0].convert("RGB")))


def test_files_that_are_no_images(monkeypatch):
    whole = save(picture(60, 40), "JPEG")
    for data, message in [
        (b"", "cannot identify"),
        (b"<html>", "cannot identify"),
        (whole[: len(whole) // 2], "trunc"),
    ]:
        for read in (images.image_size, images.decode):
            with pytest.raises(BadRow, match=message) as caught:
                read(data)
            assert caught.value.kind == "image-corrupt"
    assert images.image_size(whole[: len(whole) // 2], header_only=True) == (60, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 2399)
    with pytest.raises(BadRow, match="decompression bomb"):
        images.decode(whole)
    with pytest.raises(BadRow, match="floating-point"):
        images.to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_ids_and_digests():
    assert images.image_id(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    one, other = processor(*CASES["crop"]()), processor(*CASES["pad"]())
    assert one.digest() == processor(*CASES["crop"]()).digest() != other.digest()


def test_aspects_and_refusals(tmp_path):
    hf = CASES["crop"]()[1]
    padded = processor("llava", hf, aspect="pad")
    peer = LlavaImageProcessorPil(**SQUARE, do_pad=True)
    data = save(picture(70, 90))
    assert np.array_equal(padded.load(data)["pixel_values"], peer(Image.open(io.BytesIO(data)))["pixel_values"][0])
    squashed = processor("llava", hf, aspect="square").load(data)["pixel_values"]
    assert squashed.shape == (3, 56, 56)
    for aspect, message in [("anyres", "does not suit"), ("fit", "must be one of")]:
        with pytest.raises(ValueError, match=message):
            processor("llava", hf, aspect=aspect)
    with pytest.raises(ValueError, match="tower reads 28"):
        processor("llava", hf, model={"vision_config": {"image_size": 28, "patch_size": 14}})
    with pytest.raises(ValueError, match="do_resize"):
        processor("llava", CLIPImageProcessorPil(**SQUARE, do_resize=False))
    with pytest.raises(ValueError, match="do_pan_and_scan"):
        from_config({"model_type": "gemma3"}, {"do_pan_and_scan": True}, "auto", 0, 0)
    with pytest.raises(ValueError, match="resample"):
        processor("llava", CLIPImageProcessorPil(**SQUARE, resample=0))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": {"image_size": 56}}))
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        ImageProcessor.from_model_dir(tmp_path)
    hf.save_pretrained(tmp_path)
    assert ImageProcessor.from_model_dir(tmp_path).aspect == "crop"


def test_threads_share_a_processor():
    ours, data = processor(*CASES["native"]()), [save(picture(*size)) for size in SIZES[:4]]
    wanted = [ours.load(x)["pixel_values"] for x in data]
    wrong = []

    def work() -> None:
        for x, pixels in zip(data * 5, wanted * 5, strict=True):
            if not np.array_equal(ours.load(x)["pixel_values"], pixels):
                wrong.append(x)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
