"""Qwen3-VL with experts: the tower and the levels of Qwen3-VL, a decoder that sends each token to a few of its experts.

Its experts are tables, no linear layers: LoRA and nf4 leave them alone. It proves itself at load.
"""

from __future__ import annotations

from mmfast.families.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    proven = False
    chat = None
    published = {}  # noqa: RUF012
