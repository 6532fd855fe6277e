"""One TOML file + dotted overrides -> one checked Config."""

from mmfast.config.schema import Config, Lora, Objective, Optim, Section, Source, Term
from mmfast.config.toml import build, check, dump, load, reference_page

__all__ = [
    "Config", "Lora", "Objective", "Optim", "Section", "Source", "Term",
    "build", "check", "dump", "load", "reference_page",
]  # fmt: skip
