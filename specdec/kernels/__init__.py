"""Attention over paged keys and values, and copies within them. Knows tensors only."""

from specdec.kernels.batch import Beside, TreeBatch, TreeRequest
from specdec.kernels.dispatch import Backend, backend, forced
from specdec.kernels.reference import Attended, dense_attention

__all__ = [
    "Attended",
    "Backend",
    "Beside",
    "TreeBatch",
    "TreeRequest",
    "backend",
    "dense_attention",
    "forced",
]
