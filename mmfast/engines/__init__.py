"""Engines answer requests about images; everything that generates, judges or checks stands on one (base.py)."""

import mmfast.packages  # noqa: F401, before anything that imports transformers
