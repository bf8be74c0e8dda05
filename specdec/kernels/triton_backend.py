"""The Triton kernels, gathered as a backend. Importing it imports triton."""

from specdec.kernels.paged_copy import move, store
from specdec.kernels.tree_attention import tree_attention

__all__ = ["move", "store", "tree_attention"]
