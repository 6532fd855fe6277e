"""The packages beyond torch and numpy that a part of mmfast needs, as pyproject.toml lists them."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata


def packages(extra: str) -> list[str]:
    """The requirements of an extra; empty where mmfast was not installed but only found on the path."""
    try:
        lines = metadata.requires("mmfast") or []
    except metadata.PackageNotFoundError:
        return []
    wanted = re.compile(rf"""(.*);\s*extra == ["']{re.escape(extra)}["']\s*""")
    return [found[1].strip() for line in lines if (found := wanted.fullmatch(line))]


def how_to_install(extra: str) -> str:
    """A command that works anywhere: mmfast itself is on no package index."""
    names = packages(extra)
    return "pip install " + " ".join(f"'{name}'" for name in names) if names else f"see {extra} in pyproject.toml"


def check_training_packages() -> None:
    """End in one line if a package of training is missing: for modules that are started by `python -m`."""
    missing = [name for name in packages("train") if not _installed(name)]
    if not missing:
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
