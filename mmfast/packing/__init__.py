"""From examples to Packs: tree (what begins alike), plan (who runs what, when), Pack (flat tensors)."""

from mmfast.data.symbols import response_key
from mmfast.families.layout import Layout
from mmfast.packing.build import build_pack
from mmfast.packing.loader import Loaded, PackLoader
from mmfast.packing.pack import Pack
from mmfast.packing.plan import Plan, PlanSettings, StepPlan

__all__ = ["Layout", "Loaded", "Pack", "PackLoader", "Plan", "PlanSettings", "StepPlan", "build_pack", "response_key"]
