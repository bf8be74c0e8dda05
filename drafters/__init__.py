"""Drafters: one module each; they never import one another."""

from specdec.drafters.loading import load_drafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.text_only import TextOnlyDrafter

__all__ = ["NgramDrafter", "TextOnlyDrafter", "load_drafter"]
