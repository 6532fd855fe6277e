"""Qwen-VL's own model, which transformers has no class of: every parameter has its name in the released files.

The tower is OpenCLIP's bigG without a class token, whose attention keeps q, k and v of a head side by side; one
attention of learned queries (the pool) makes its patches a fixed number of rows. The decoder is Llama's with q, k and v
in one biased layer. Sequences longer than `seq_length` get a wider rotary base (dynamic NTK) and scaled queries (logn),
both outside training only.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

EPS = 1e-6  # of the tower's norms
TABLE = 256  # positions of the tower's table, whatever it reads
POOL_HEAD = 128  # width of a head of the pool
# What a cache is called differs between versions of transformers
HELD = "cache" if any(f.name == "cache" for f in fields(BaseModelOutputWithPast)) else "past_key_values"

Rotation = tuple[Tensor, Tensor, Tensor | None]  # cosines and sines, fp32; what queries are multiplied by


class QwenConfig(PreTrainedConfig):
    model_type = "qwen"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016  # twice the MLP's inner width
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    seq_length: int = 2048  # that it is trained with
    max_position_embeddings: int = 8192
    rotary_pct: float = 1.0
    rotary_emb_base: int = 10000
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    scale_attn_weights: bool = True
    attn_dropout_prob: float = 0.0
    emb_dropout_prob: float = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    visual: dict | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


# the tower


def resized(table: Tensor, count: int) -> Tensor:
    """A square table of positions [S*S, C] as one of `count` rows, lines of x one after another."""
    if len(table) == count:
        return table
    side, wanted = math.isqrt(len(table)), math.isqrt(count)
    square = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, (wanted, wanted), mode="bicubic", align_corners=False)
    return square.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


class TowerAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        every_head = self.in_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = every_head.chunk(3, dim=-1)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TowerMlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class TowerBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn, self.mlp = TowerAttention(width, heads), TowerMlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TowerBlocks(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TowerBlock(width, heads, inner) for _ in range(layers))


class Pool(nn.Module):
    """Learned queries look at all patches once. Their table of positions is a constant that the files hold."""

    def __init__(self, queries: int, width: int, wide: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, wide))
        self.kv_proj = nn.Linear(width, wide, bias=False)
        self.attn = nn.MultiheadAttention(wide, max(1, wide // POOL_HEAD), batch_first=True)
        self.ln_q, self.ln_kv = nn.LayerNorm(wide, EPS), nn.LayerNorm(wide, EPS)
        self.register_buffer("pos_embed", torch.empty(queries, wide))
        self.pos_embed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        values = self.ln_kv(self.kv_proj(x))
        positions = self.pos_embed.to(values.dtype)
        keys = values + resized(positions, x.shape[1])
        queries = (self.ln_q(self.query) + positions).expand(len(x), -1, -1)
        return self.attn(queries, keys, values, need_weights=False)[0]


def sines(queries: int, width: int) -> Tensor:
    """The pool's table as it is made: of x in the first half, of y in the second, each as sines, then cosines."""
    side, quarter = math.isqrt(queries), width // 4
    rates = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)], dim=1).float()


class Tower(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, wide, patch = sizes["width"], sizes["output_dim"], sizes["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(TABLE, width))
        self.ln_pre = nn.LayerNorm(width, EPS)
        self.transformer = TowerBlocks(sizes["layers"], width, sizes["heads"], int(width * sizes["mlp_ratio"]))
        self.attn_pool = Pool(sizes.get("n_queries", 256), width, wide)
        self.ln_post = nn.LayerNorm(wide, EPS)
        self.proj = nn.Parameter(torch.empty(wide, wide))

    def patches(self, pixels: Tensor) -> Tensor:
        """[N, 3, edge, edge] -> [N, patches, width]"""
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resized(self.positional_embedding, x.shape[1]))
        for block in self.transformer.resblocks:
            x = block(x)
        return x

    def pooled(self, patches: Tensor) -> Tensor:
        """[N, patches, width] -> [N, queries, the decoder's width]"""
        return self.ln_post(self.attn_pool(patches)) @ self.proj

    def forward(self, pixels: Tensor) -> Tensor:
        return self.pooled(self.patches(pixels))


# the decoder


class Attention(nn.Module):
    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: QwenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.width = config, layer_idx, config.kv_channels
        inner = config.kv_channels * config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * inner)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=not config.no_bias)

    def forward(self, x: Tensor, rotation: Rotation, mask: Any, cache: Any, **more: Any) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        cosines, sines, scales = rotation
        q, k = ((t.float() * cosines + rotate_half(t.float()) * sines).to(t.dtype) for t in (q, k))
        if scales is not None:
            q = q * scales.to(q.dtype)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attn_dropout_prob if self.training else 0.0
        out = attend(self, q, k, v, mask, dropout=dropout, scaling=self.width**-0.5, **more)[0]
        return self.c_proj(out.flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        inner, bias = config.intermediate_size // 2, not config.no_bias
        self.w1, self.w2 = (nn.Linear(config.hidden_size, inner, bias=bias) for _ in range(2))
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, config: QwenConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (LlamaRMSNorm(config.hidden_size, config.layer_norm_epsilon) for _ in range(2))
        self.attn, self.mlp = Attention(config, layer_idx), Mlp(config)

    def forward(self, x: Tensor, *, rotation: Rotation, mask: Any, cache: Any, **more: Any) -> Tensor:
        x = x + self.attn(self.ln_1(x), rotation, mask, cache, **more)
        return x + self.mlp(self.ln_2(x))


class QwenPreTrainedModel(PreTrainedModel):
    config_class = QwenConfig
    config: QwenConfig
    base_model_prefix = "transformer"
    input_modalities = ["image", "text"]  # noqa: RUF012
    main_input_name = "input_ids"
    _no_split_modules = ["Block", "TowerBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Tower):
            for p in (module.positional_embedding, module.proj):
                init.normal_(p, std=self.config.initializer_range)
        elif isinstance(module, Pool):
            init.normal_(module.query, std=self.config.initializer_range)
            init.copy_(module.pos_embed, sines(*module.pos_embed.shape))


class QwenModel(QwenPreTrainedModel):
    """The decoder, and the tower beside it as the files have it; it reads embeddings or text alone."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config, number) for number in range(config.num_hidden_layers))
        self.ln_f = LlamaRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = Tower(config.visual or {})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: Any) -> None:
        self.wte = value

    def rotation(self, positions: Tensor, widening: int) -> Rotation:
        """positions [B or 1, L] -> [B or 1, 1, L, head]"""
        config, width = self.config, self.config.kv_channels
        base = config.rotary_emb_base * widening ** (width / (width - 2))
        rates = base ** -(torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
        angles = (positions[:, None, :, None].float() * rates).repeat(1, 1, 1, 2)
        if self.training or not config.use_logn_attn:
            return angles.cos(), angles.sin(), None
        scales = ((positions + 1).float().log() / math.log(config.seq_length)).clamp(min=1)
        return angles.cos(), angles.sin(), scales[:, None, :, None]

    def widening(self, length: int, cache: Any, tree: Any) -> int:
        """By how much the rotary base grows: for the length of the prompt, kept while an answer goes on. A tree holds
        sequences that are not longer than `seq_length` (the adapter's `longest`)."""
        if self.training or not self.config.use_dynamic_ntk or tree is not None:
            return 1
        if cache is not None and cache.get_seq_length():
            return getattr(cache, "widening", 1)
        found = max(2 ** math.ceil(math.log2(length / self.config.seq_length) + 1) - 1, 1)
        if cache is not None:
            cache.widening = found
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **more: Any,
    ) -> BaseModelOutputWithPast:
        # What is read, and from where on
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            start = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(start, start + x.shape[1], device=x.device)[None]
        given = {"inputs_embeds": x, "attention_mask": attention_mask, "position_ids": position_ids, HELD: cache}
        mask = create_causal_mask(config=self.config, **given)
        rotation = self.rotation(position_ids, self.widening(x.shape[1], cache, more.get("tree")))
        for block in self.h:
            x = block(x, rotation=rotation, mask=mask, cache=cache, **more)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x), **{HELD: cache})


class QwenForCausalLM(QwenPreTrainedModel, GenerationMixin):
    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.transformer = QwenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: Any) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: Any) -> None:
        self.lm_head = value

    def get_decoder(self, modality: Any = None) -> nn.Module:
        return self.transformer

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """`pixel_values` [N, 3, edge, edge]: the images in the order in which they stand in `input_ids`, row by row."""
        # Words, and images in their slots
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.transformer.wte(input_ids)
            if pixel_values is not None:
                slots = (input_ids == self.config.visual["image_start_id"] + 2)[..., None]  # type: ignore[index]
                rows = self.transformer.visual(pixel_values).to(inputs_embeds.dtype)
                inputs_embeds = inputs_embeds.masked_scatter(slots, rows)
        # The decoder, and the rows that are asked for
        output = self.transformer(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{HELD: past_key_values if cache is None else cache},
            **more,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{HELD: getattr(output, HELD)})
