"""Engines answer requests about images; everything that generates, judges or checks stands on one (base.py)."""
