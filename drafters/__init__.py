"""Drafters: one module each; they never import one another."""

from specdec.drafters.ensemble import EnsembleDrafter
from specdec.drafters.loading import load_drafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.text_only import TextOnlyDrafter

__all__ = ["EnsembleDrafter", "NgramDrafter", "TextOnlyDrafter", "load_drafter"]
