"""Attention over paged keys and values, and copies within them. Knows tensors only."""

from specdec.kernels.batch import Beside, TreeBatch, TreeRequest
from specdec.kernels.dense import attention_weights, dense_attention
from specdec.kernels.dispatch import Backend, backend, forced
from specdec.kernels.packed import MAX_SCRATCH
from specdec.kernels.reference import Attended

__all__ = [
    "MAX_SCRATCH",
    "Attended",
    "Backend",
    "Beside",
    "TreeBatch",
    "TreeRequest",
    "attention_weights",
    "backend",
    "dense_attention",
    "forced",
]
