"""Other packages' noise that tells a user nothing, silenced in one place. Import it before transformers or peft."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# transformers and peft import torchao where it is installed. torchao warns of the GPU files that it cannot load on
# every other machine, and registers constants in a way that torch warns of.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


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
