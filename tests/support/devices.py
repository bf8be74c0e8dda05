"""Where kernel tests run: in Triton's interpreter where there is no GPU, else on the GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

_INTERPRETER = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs triton, and no GPU: kernels then run in its interpreter",
)
DEVICES = [
    pytest.param("cpu", marks=_INTERPRETER),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
