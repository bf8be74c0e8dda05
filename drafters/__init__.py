"""Drafters: one module each; they never import one another."""

from specdec.drafters.loading import load_drafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.self_pruned import SelfPrunedDrafter
from specdec.drafters.text_only import TextOnlyDrafter

__all__ = ["NgramDrafter", "SelfPrunedDrafter", "TextOnlyDrafter", "load_drafter"]
