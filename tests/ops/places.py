"""Where an op test runs: a backend, and the device its tensors are on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mmfast.ops.dispatch import available

BACKENDS = {"cpu": ("torch", "cpu"), "cuda": ("cuda", "triton", "torch")}  # of a device, as the tests go through them


class Place(NamedTuple):
    backend: str  # "": the op's own choice
    device: str

    def __str__(self) -> str:
        return self.backend if self.backend and self.device == "cpu" else f"{self.backend or 'any'} on {self.device}"


def places(
    of_backends: bool, listed: tuple[str, ...], missing: Callable[[str, torch.device], str] = available
) -> list[Place]:
    """A place for every backend that can run on a listed device; without `of_backends` one for every device.

    A GPU that is not here has places too, which pytest skips: what is missing there cannot be known."""
    if not of_backends:
        return [Place("", device) for device in listed]
    here = [device for device in listed if device == "cpu" or torch.cuda.is_available()]
    return [
        Place(backend, device)
        for device in listed
        for backend in BACKENDS[device]
        if device not in here or not missing(backend, torch.device(device))
    ]


def generator(seed: int = 0) -> torch.Generator:
    """A generator of the default device, which a test's place has set."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)
