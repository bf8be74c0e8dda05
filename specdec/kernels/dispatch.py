"""One interface, two backends: Triton for tensors on a CUDA device, else the reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from specdec.kernels import reference
from specdec.kernels.batch import Beside, TreeBatch
from specdec.kernels.reference import Attended

BackendName = Literal["triton", "reference"]
_FORCED: ContextVar[BackendName | None] = ContextVar("specdec_backend", default=None)


class Backend(Protocol):
    """See :mod:`specdec.kernels.reference` for what each of them does."""

    def tree_attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: TreeBatch,
        *,
        scale: float,
        first: Tensor | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        beside: Beside | None = None,
    ) -> Attended: ...

    def store(
        self, keys: Tensor, values: Tensor, batch: TreeBatch, new_keys: Tensor, new_values: Tensor
    ) -> None: ...

    def move(
        self, pools: Sequence[Tensor], source: Sequence[int], target: Sequence[int]
    ) -> None: ...


def backend(device: torch.device) -> Backend:
    """The backend for tensors on ``device``. A CUDA build of torch without triton, as on Windows,
    has the reference.
    """
    name = _FORCED.get()
    if name is None:
        name = "triton" if device.type == "cuda" and has_triton() else "reference"
    if name == "reference":
        return reference
    from specdec.kernels import triton_backend  # `import specdec` must not import triton

    return triton_backend


@cache
def has_triton() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@contextmanager
def forced(name: BackendName) -> Iterator[None]:
    """Within this context every call goes to that backend, wherever the tensors are; for tests and
    comparisons.
    """
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)
