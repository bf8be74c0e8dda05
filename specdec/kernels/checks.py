"""What the tree-attention kernel takes. Knows shapes, dtypes and devices; reads no data."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.kernels.batch import Beside, TreeBatch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_HEAD_DIM = 256


def check_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    first: Tensor | None,
    sinks: Tensor | None,
    beside: Beside | None,
) -> None:
    """Of the arguments of tree attention.

    Raises:
        ValueError: something does not fit, with both sides named.
    """
    heads, nodes, dim = query.shape[1:]
    if query.shape[0] != 1 or nodes != batch.nodes:
        raise ValueError(f"query has shape {tuple(query.shape)}, the batch {batch.nodes} nodes")
    if keys.shape[:3] != values.shape[:3] or keys.shape[3] != dim or heads % keys.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)} and values "
            f"{tuple(values.shape)} do not fit: (1, Hq, N, D), (1, Hkv, slots, D), "
            "(1, Hkv, slots, Dv) with Hkv dividing Hq are expected"
        )
    if query.dtype not in DTYPES or keys.dtype != query.dtype or values.dtype != query.dtype:
        raise ValueError(
            f"query is {query.dtype}, keys {keys.dtype}, values {values.dtype}; the kernel takes "
            f"one of {', '.join(map(str, DTYPES))} for all three"
        )
    if max(dim, values.shape[3]) > MOST_HEAD_DIM:
        raise ValueError(f"head size {max(dim, values.shape[3])} is over {MOST_HEAD_DIM}")
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        _check_layout(name, tensor, query)
    if first is not None and first.numel() != nodes:
        raise ValueError(f"first has {first.numel()} entries for {nodes} nodes")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks has shape {tuple(sinks.shape)} for {heads} query heads")
    if beside is not None:
        _check_beside(keys, values, batch, beside)


def _check_beside(keys: Tensor, values: Tensor, batch: TreeBatch, beside: Beside) -> None:
    """Against keys, values and batch that have been checked."""
    for name, own, other in (("keys", keys, beside.keys), ("values", values, beside.values)):
        expected = (1, own.shape[1], beside.keys.shape[2], own.shape[3])
        if other.shape != expected:
            raise ValueError(
                f"{name} beside have shape {tuple(other.shape)}; {expected} are expected beside "
                f"{name} of shape {tuple(own.shape)}"
            )
        _check_layout(f"{name} beside", other, keys)
    if beside.keys.dtype not in DTYPES or beside.values.dtype != beside.keys.dtype:
        raise ValueError(
            f"keys beside are {beside.keys.dtype}, values beside {beside.values.dtype}; the kernel "
            f"takes one of {', '.join(map(str, DTYPES))} for both"
        )
    if beside.batch.starts != batch.starts:
        raise ValueError(
            f"the batch beside has requests from rows {beside.batch.starts}, the batch from "
            f"{batch.starts}"
        )
    if any(request.depths for request in beside.batch.requests):
        raise ValueError("requests of a batch beside have no scratch nodes, these have some")


def _check_layout(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.stride(3) != 1:
        raise ValueError(f"{name} must be contiguous in the last dimension")
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, query on {other.device}")
