"""The `mmfast` command."""

from mmfast.cli.app import main

__all__ = ["main"]
