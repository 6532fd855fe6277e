"""What two manifests differ in; and an engine that is the same on all ranks."""

from __future__ import annotations

import json
from typing import Any

from mmfast.engines.base import Engine
from mmfast.job.runtime import Runtime

TOLD = ("input", "template", "samples", "complete", "counts")  # in a manifest, but nothing that rows must agree in


def agreed(engine: Engine, runtime: Runtime) -> dict[str, Any]:
    """The engine's identity, which must be the same on all ranks."""
    identity, *others = runtime.gather(engine.identity())
    for rank, other in enumerate(others, 1):
        if parts := compare(identity, other):
            raise ValueError(f"rank {rank} has another engine than rank 0: {'; '.join(parts)}")
    return identity


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two manifests differ in, each part by its name with both values; of many parts the first three."""
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    parts = [name for name in {**old, **new} if old.get(name) != new.get(name) and name.split(".")[0] not in TOLD]
    told = [f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}" for name in parts[:3]]
    return told + ([f"and {len(parts) - 3} parts more"] if len(parts) > 3 else [])


def _flat(value: dict[str, Any], under: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, part in value.items():
        out |= _flat(part, f"{under}{name}.") if isinstance(part, dict) and part else {f"{under}{name}": part}
    return out


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
