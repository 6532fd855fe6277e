"""Tiny open-vocabulary detectors with random weights, whole as folders: model, tokenizer, image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mmfast.world.scenes import COLOURS, KINDS, SHAPES, SIZE, render

MANY = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
WORDS = [
    *COLOURS,
    *SHAPES,
    *MANY.values(),
    "dog",
    "puppy",
    "cat",
    "bucket",
    "red",
    "two",
    "kite",
    "boy",
    "house",
    "tree",
]
LENGTH = 16  # tokens of a name that OWL-ViT reads


def _tokenizer(vocabulary: dict[str, int], first: str, last: str, **special: str) -> Any:
    own = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    own.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=own, **special)


def write_owl(
    folder: Path,
    kind: str = "owlvit",
    *,
    edge: int = 64,
    patch: int = 16,
    seed: int = 0,
    spread: bool = True,
    **dials: Any,
) -> Path:
    """kind: owlvit or owlv2. spread: its random weights tell names apart, so that some boxes hold some."""
    words = ["!", "<unk>", *dict.fromkeys(WORDS), "<start>", "<end>"]  # the end has the highest id, as CLIP's
    tokenizer = _tokenizer(
        {word: n for n, word in enumerate(words)},
        "<start>",
        "<end>",
        unk_token="<unk>",
        pad_token="!",
        bos_token="<start>",
        eos_token="<end>",
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} | dials
    text = size | {"vocab_size": len(words), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = hf.AutoConfig.for_model(
        kind,
        text_config=text,
        vision_config=size | {"image_size": edge, "patch_size": patch},
        projection_dim=size["hidden_size"],
    )
    torch.manual_seed(seed)
    model = hf.AutoModelForZeroShotObjectDetection.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters() if spread else ():
            if parameter.dim() > 1:
                parameter.mul_(3)
        model.class_head.logit_shift.bias.fill_(-0.1)
        model.class_head.logit_scale.bias.fill_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = {"owlvit": "OwlViTImageProcessorPil", "owlv2": "Owlv2ImageProcessorPil"}[kind]
    getattr(hf, named)(size={"height": edge, "width": edge}).save_pretrained(folder)
    return folder


def write_dino(folder: Path, kind: str = "grounding-dino", *, length: int = 32, seed: int = 0) -> Path:
    """kind: grounding-dino or mm-grounding-dino. Special tokens have BERT's ids, which the model's code holds."""
    words = [f"[unused{n}]" for n in range(1030)]
    for number, word in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}.items():
        words[number] = word
    for number, word in enumerate(dict.fromkeys(WORDS), 200):
        words[number] = word
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer({word: n for n, word in enumerate(words)}, "[CLS]", "[SEP]", **special)
    backbone = hf.AutoConfig.for_model(
        "swin",
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = hf.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    config = hf.AutoConfig.for_model(
        kind,
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        num_queries=20,
        max_text_len=length,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
    )
    torch.manual_seed(seed)
    model = hf.AutoModelForZeroShotObjectDetection.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def classifier(folder: Path, labels: int = 2) -> Path:
    """A tiny sequence classifier over the same words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer({word: n for n, word in enumerate(words)}, "[CLS]", "[SEP]", **special)
    config = hf.AutoConfig.for_model(
        "distilbert",
        vocab_size=len(words),
        dim=32,
        n_heads=2,
        n_layers=2,
        hidden_dim=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fit_owl(folder: Path, scenes: Any, steps: int, batch: int = 64, seed: int = 0) -> None:
    """Teach a tiny OWL-ViT, whose patches are the cells, the kinds of things in the world's pictures, and their
    boxes."""
    from mmfast.feedback.experts.world import _box

    model = hf.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    tokenizer, images = hf.AutoTokenizer.from_pretrained(folder), hf.OwlViTImageProcessorPil.from_pretrained(folder)
    called = [f"{colour} {name}" for colour, shape in KINDS for name in (shape, MANY[shape])]
    names = tokenizer(called, padding="max_length", max_length=LENGTH, return_tensors="pt")
    # What stands in each cell, and where
    pixels = images(images=[render(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
    kinds, boxes = torch.zeros(len(scenes), 9, len(called)), torch.zeros(len(scenes), 9, 4)
    for n, scene in enumerate(scenes):
        for thing in scene.things:
            for cell in thing.cells:
                box = _box(thing, cell)
                kinds[n, cell, 2 * KINDS.index(thing.kind) : 2 * KINDS.index(thing.kind) + 2] = 1
                boxes[n, cell] = torch.tensor([*box.centre, box.x1 - box.x0, box.y1 - box.y0]) / SIZE
    # Fit, from weights of a size that learns at once
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embedding.weight" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "token" in name else 0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        some = torch.randint(len(scenes), (batch,))
        feature_map, _ = model.image_embedder(pixels[some])
        features = feature_map.flatten(1, 2)
        queries = model.owlvit.get_text_features(names.input_ids, names.attention_mask).pooler_output
        logits, _ = model.class_predictor(features, queries[None].expand(batch, -1, -1))
        held = kinds[some].amax(-1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, kinds[some], pos_weight=torch.tensor(3.0))
        apart = (model.box_predictor(features, feature_map) - boxes[some]).abs().sum(-1)
        loss = loss + 3 * (apart * held).sum() / held.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.save_pretrained(folder)
