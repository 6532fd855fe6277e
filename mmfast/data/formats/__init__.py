"""Formats of preference and SFT files, one module each; known.py lists them."""
