"""A model that is not on the list proves itself: real examples are scored as trees and plainly, and must agree.

What a model does with a mask, a softcap or a state that runs along the sequence cannot be told from outside; one
comparison can. Where it fails, sharing is refused with the reason and the model's sequences run one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.data.symbols import expanded
from mmfast.models.attention import PROBE, CannotShare, attention, found_masks
from mmfast.models.scorer import Scorer
from mmfast.models.unshared import plain_logprob
from mmfast.packing import build_pack
from mmfast.packing.build import LoadImages

KNOWN_LAYERS = ("full_attention", "sliding_attention")
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats a token
HALF = 0.25  # bf16 and fp16: a GEMM's rounding differs with its row count


def refused_by_config(scorer: Scorer) -> str:
    """What the config alone says against sharing; empty if nothing."""
    kinds = sorted(set(scorer.adapter.text_config.to_dict().get("layer_types") or ()) - set(KNOWN_LAYERS))
    return f"its layers of type {kinds[0]} do not look at a prefix through attention over its tokens" if kinds else ""


def refused_by_mask(
    scorer: Scorer, trials: Sequence[Example], infos: Mapping[str, ImageInfo], load_images: LoadImages
) -> str:
    """What the masks of a plain forward say against sharing. Log-probs alone could miss them in half precision."""
    if scorer.own_attention != "sdpa":
        return ""
    found_masks.clear()
    for example in trials:
        plain_logps(scorer, example.chosen, infos, load_images, PROBE)
    return found_masks[0] if found_masks else ""


@torch.no_grad()
def prove(scorer: Scorer, examples: Sequence[Example], infos: Mapping[str, ImageInfo], load_images: LoadImages) -> str:
    """Empty if trees are exact for this model; else the reason, and the scorer runs unshared from then on.

    Takes the first example with images and the first without. Raises if even single sequences come out wrong.
    """
    with_images = [e for e in examples if e.chosen.images]
    trials = with_images[:1] + [e for e in examples if not e.chosen.images][:1]
    if scorer.adapter.image_token_id is not None and not with_images:
        raise ValueError("the proof of a vision-language model needs an example with an image")
    training = scorer.training
    scorer.eval()
    with scorer.in_one_dtype():
        why = _why_not(scorer, trials, infos, load_images)
    scorer.train(training)
    return why


def _why_not(scorer: Scorer, trials: Sequence[Example], infos: Mapping[str, ImageInfo], load_images: LoadImages) -> str:
    def worst() -> float:  # NaN where any is
        return float(torch.tensor([difference(scorer, trial, infos, load_images) for trial in trials]).max())

    limit = TOLERANCE.get(scorer.dtype, HALF)
    why = refused_by_config(scorer) or refused_by_mask(scorer, trials, infos, load_images)
    try:
        if not why and not (gap := worst()) <= limit:
            why = (
                f"scored as a tree, a token's log-prob differs by {gap:.2g} nat from the plain forward "
                "(a mask over images or prompts that the tree does not have, or the like)"
            )
    except CannotShare as refusal:
        why = str(refusal)
    if why:
        scorer.run_unshared(why)
        if not (gap := worst()) <= limit:
            raise ValueError(
                f"{scorer.adapter.config.model_type} cannot be trained: it cannot share ({why}), and one sequence "
                f"at a time through its embeddings a log-prob still differs by {gap:.2g} nat from its plain one"
            )
    elif not scorer.last_layer.trusted:  # so far its last layer ran whole
        scorer.last_layer.trusted = True
        scorer.last_layer.trusted = worst() <= limit
    return why


def difference(scorer: Scorer, example: Example, infos: Mapping[str, ImageInfo], load_images: LoadImages) -> float:
    """The largest |log-prob of a token, in a pack - plainly|."""
    pack = build_pack([example], infos, scorer.adapter.layout(), load_images=load_images).to(scorer.device)
    logps = scorer(pack)[pack.index].float()
    sides = [b for b in (example.chosen, example.rejected) if b is not None]
    bounds = pack.responses.tolist()
    order = pack.pairs[0].tolist() if len(pack.pairs) else [0]
    gaps = [
        (logps[bounds[entry] : bounds[entry + 1]] - plain_logps(scorer, side, infos, load_images)).abs().max()
        for entry, side in zip(order, sides, strict=True)
    ]
    return float(torch.stack(gaps).max())


def own_inputs(
    scorer: Scorer, ids: Sequence[int], pixels: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the model's own forward takes of a sequence and its images."""
    tokens = torch.tensor([ids], device=scorer.device)
    accepted = inspect.signature(type(scorer.model).forward).parameters  # generate() refuses any other name
    inputs = {"input_ids": tokens, **pixels, **scorer.adapter.plain_inputs(tokens)}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return {name: value.to(scorer.device) for name, value in inputs.items() if name in accepted}


def plain_logps(
    scorer: Scorer, branch: Branch, infos: Mapping[str, ImageInfo], load_images: LoadImages, name: str = ""
) -> Tensor:
    """One sequence, ids and pixels, through the unpatched model with its own attention."""
    ids, starts = expanded(branch, infos, scorer.adapter.image_token_id)
    images = load_images(list(branch.images)) if branch.images else {}
    inputs = own_inputs(scorer, ids, images, scorer.dtype)
    with attention(scorer.decoder.config, name or scorer.own_attention):
        logits = scorer.model(use_cache=False, **inputs).logits[0]
    rows = torch.tensor([starts[p] for start, end in branch.spans for p in range(start, end)], device=scorer.device)
    return plain_logprob(logits[rows - 1], inputs["input_ids"][0, rows])
