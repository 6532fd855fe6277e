"""Muffin's own model (RLHF-V's base), which transformers has no class of: every parameter has its name in the released
files. The decoder is Llama's; what is Muffin's is how it sees.

BEiT-3 has every layer twice: branch A for the rows of the image, branch B for other rows, and one attention over both.
Learned queries run as rows of branch B beside the image's and come out as the image's rows for the decoder. So the
trained branch lies inside the tower, and no row of the tower but the patches themselves is the same after a step.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel

EPS = 1e-5  # of the tower's norms
OFFSET = 2  # rows of a position table before its first position, as fairseq has it
KNOWN = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}  # width, layers, heads, inner width
BUILT = ("width", "layers", "heads", "inner")


class Beit3LlavaConfig(LlamaConfig):
    model_type = "beit3_llava"

    mm_vision_tower: str = "beit3_large_patch16_448"
    mm_vision_sizes: dict | None = None  # of a tower of another size than BEiT-3's: BUILT, and positions of queries
    num_query: int = 64
    image_token_id: int | None = None  # <im_patch>; a published directory leaves it to the tokenizer


def tower_shape(model: dict[str, Any]) -> dict[str, int]:
    """Sizes of the tower that a config.json names: also its `patch` and `edge` in pixels."""
    name = str(model.get("mm_vision_tower", ""))
    match = re.fullmatch(r"(?:.*/)?beit3_(\w+)_patch(\d+)_(\d+)(?:_\w+)?", name)
    known = dict(zip(BUILT, KNOWN[match[1]], strict=True)) if match and match[1] in KNOWN else None
    sizes = model.get("mm_vision_sizes") or known
    if not match or not sizes:
        raise ValueError(f"mm_vision_tower = {name!r}: Muffin's towers are BEiT-3's, such as beit3_large_patch16_448")
    return {"positions": 1024, **sizes, "patch": int(match[2]), "edge": int(match[3])}


class Twice(nn.Module):
    """A layer for the rows of the image (A), and another of the same kind for the rows behind them (B)."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.A, self.B = a, b

    def forward(self, x: Tensor, split: int) -> Tensor:
        """[N, rows, ...], `split` of the rows the image's. 0: the others alone."""
        if split == 0:
            return self.B(x)
        return torch.cat([self.A(x[:, :split]), self.B(x[:, split:])], dim=1)


def linear(width: int, out: int) -> Twice:
    return Twice(nn.Linear(width, out), nn.Linear(width, out))


def norm(width: int) -> Twice:
    return Twice(nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS))


class Feedforward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.ffn_layernorm = nn.LayerNorm(inner, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(width, width) for _ in range(4))
        self.inner_attn_ln = norm(width)

    def forward(self, x: Tensor, split: int, first: int) -> Tensor:
        """Of the rows from `first` on; all rows are looked at."""
        rest = split - first if first else split
        q = self.q_proj(x[:, first:], rest)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, self.k_proj(x, split), self.v_proj(x, split))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out_proj(self.inner_attn_ln(seen, rest), rest)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(width, heads), norm(width)
        self.ffn, self.final_layer_norm = Twice(Feedforward(width, inner), Feedforward(width, inner)), norm(width)

    def forward(self, x: Tensor, split: int, queries_only: bool) -> Tensor:
        """queries_only: in the last block nothing reads the image's rows any more."""
        first = split if queries_only else 0
        rest = split - first
        x = x[:, first:] + self.self_attn(self.self_attn_layer_norm(x, split), split, first)
        return x + self.ffn(self.final_layer_norm(x, rest), rest)


class Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        rows = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(rows), -1, -1), rows], dim=1)


class Encoder(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width = shape["width"]
        rows = (shape["edge"] // shape["patch"]) ** 2 + 1
        self.embed_positions = Twice(nn.Embedding(rows + OFFSET, width), nn.Embedding(shape["positions"], width))
        self.layers = nn.ModuleList(Block(width, shape["heads"], shape["inner"]) for _ in range(shape["layers"]))
        self.layer_norm = norm(width)

    def forward(self, image: Tensor, query: Tensor) -> Tensor:
        """Rows of the image and the queries [Q, C] -> [N, Q, C]."""
        split = image.shape[1]
        of_image, of_query = (side.get_parameter("weight")[OFFSET:] for side in self.embed_positions.children())
        image, query = image + of_image[:split], query + of_query[: len(query)]
        x = torch.cat([image, query.expand(len(image), -1, -1)], dim=1)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, split, number == len(self.layers))
        return self.layer_norm(x, 0)


class Beit3(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        self.vision_embed = Patches(shape["width"], shape["patch"])
        self.encoder = Encoder(shape)


class Tower(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        self.edge = shape["edge"]
        self.beit3 = Beit3(shape)

    def forward(self, pixels: Tensor, query: Tensor) -> Tensor:
        assert pixels.shape[-2:] == (self.edge, self.edge), pixels.shape
        weight = self.beit3.vision_embed.proj.weight
        return self.beit3.encoder(self.beit3.vision_embed(pixels.to(weight.dtype)), query)


class Drawn(LlamaPreTrainedModel):
    """What Llama's own drawing of weights does not know."""

    config_class = Beit3LlavaConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in ("cls_token", "query"):
            if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                init.normal_(parameter, std=self.config.initializer_range)


class Beit3LlavaModel(Drawn, LlamaModel):
    def __init__(self, config: Beit3LlavaConfig) -> None:
        super().__init__(config)
        shape = tower_shape(config.to_dict())
        self.vision_tower = Tower(shape)
        self.query = nn.Parameter(torch.empty(config.num_query, shape["width"]))
        self.mm_projector = nn.Linear(shape["width"], config.hidden_size)
        self._is_hf_initialized = False  # Llama's part was drawn before the queries were there
        self.post_init()

    def image_rows(self, pixels: Tensor) -> Tensor:
        """[images, queries, D]"""
        return self.mm_projector(self.vision_tower(pixels, self.query))

    def embedded(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Token embeddings with the images' rows in their places, one image after another."""
        embeds, rows = self.embed_tokens(tokens), self.image_rows(pixels)
        places = tokens == self.config.image_token_id
        if int(places.sum()) != rows.shape[0] * rows.shape[1]:
            raise ValueError(f"{int(places.sum())} image tokens for {len(rows)} images of {rows.shape[1]} rows")
        return embeds.masked_scatter(places[..., None], rows.to(embeds.dtype))


class Beit3LlavaForCausalLM(Drawn, LlamaForCausalLM):
    # Old files hold the rotary table, and BEiT-3's files words and a mark that no image needs
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"\.text_embed\.", r"\.mask_token"]  # noqa: RUF012

    def __init__(self, config: Beit3LlavaConfig) -> None:
        super().__init__(config)
        self.model = Beit3LlavaModel(config)
        self.post_init()

    def forward(  # generate() reads these names
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if pixel_values is not None and input_ids is not None:
            kwargs["inputs_embeds"], input_ids = self.model.embedded(input_ids, pixel_values), None
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *, pixel_values: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Pixels go in with the prompt alone."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["pixel_values"] = pixel_values
        return inputs
