"""What a run leaves behind for others to load."""

from __future__ import annotations

from pathlib import Path

from mmfast.config import Config
from mmfast.models.scorer import Scorer
from mmfast.runtime import Runtime


def export_run(
    config: Config, runtime: Runtime, scorer: Scorer, folder: Path, metrics: dict[str, float], data: str
) -> None:
    pass
