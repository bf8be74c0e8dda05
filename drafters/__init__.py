"""Drafters: one module each; they never import one another."""

from specdec.drafters.ensemble import EnsembleDrafter
from specdec.drafters.loading import load_drafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.self_pruned import SelfPrunedDrafter
from specdec.drafters.text_only import TextOnlyDrafter
from specdec.drafters.vision_pruned import VisionPrunedDrafter

__all__ = [
    "EnsembleDrafter",
    "NgramDrafter",
    "SelfPrunedDrafter",
    "TextOnlyDrafter",
    "VisionPrunedDrafter",
    "load_drafter",
]
