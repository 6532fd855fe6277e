"""Other people's packages: those that a part of mmfast needs, as pyproject.toml lists them; and their noise that tells
a user nothing, silenced. Imported before transformers or peft."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same, as a package
    import tomli as tomllib  # noqa: F401

# transformers and peft import torchao where it is installed. torchao warns of the GPU files that it cannot load on
# every other machine, and registers constants in a way that torch warns of.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
for _message in (
    "`is_gradient_checkpointing` is deprecated",  # peft asks transformers by the old name
    "torch.distributed is disabled",  # checkpoints of one process: as meant
    r"FSDP2-wrapped module \(FSDPScorer\) returned a view",  # nobody changes log-probs in place
):
    warnings.filterwarnings("ignore", message=_message)


def packages(extra: str) -> list[str]:
    """The requirements of an extra; empty where mmfast was not installed but only found on the path."""
    try:
        lines = metadata.requires("mmfast") or []
    except metadata.PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""(.*);\s*extra == ["']{re.escape(extra)}["']\s*""")
    return [match[1].strip() for line in lines if (match := of_extra.fullmatch(line))]


def how_to_install(extra: str) -> str:
    """A command that works anywhere: mmfast itself is on no package index."""
    names = packages(extra)
    return "pip install " + " ".join(f"'{name}'" for name in names) if names else f"see {extra} in pyproject.toml"


def check_training_packages() -> None:
    """End in one line if a package of training is missing: for modules that are started by `python -m`."""
    if not (missing := [name for name in packages("train") if not _installed(name)]):
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(1)
    names = ", ".join(re.split(r"[<>=!~ \[]", name)[0] for name in missing)
    sys.exit(f"mmfast: training needs packages that are not installed ({names}): {how_to_install('train')}")


def _installed(requirement: str) -> bool:
    try:
        metadata.distribution(re.split(r"[<>=!~ \[]", requirement)[0])
    except metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws a progress bar for each file that it reads or writes."""
    from transformers.utils import logging as bars

    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()
