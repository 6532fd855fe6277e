"""What setup.py, CMake and the built module promise to whoever builds them elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmfast.ops.dispatch import native

ROOT = Path(__file__).parents[1]
needs_native = pytest.mark.skipif(native() is None, reason="mmfast._C was not built")


@needs_native
def test_the_module_asks_for_no_libgcc_newer_than_gcc_11s() -> None:
    module = Path(native().__file__).read_bytes()  # type: ignore[union-attr, arg-type]
    versions = {int(v) for v in re.findall(rb"GCC_(\d+)\.", module)}
    assert versions and max(versions) <= 11
