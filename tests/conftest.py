"""What every test runs under: no network, no GPU unless asked for, repeatable randomness."""

from __future__ import annotations

import os

# Before anything imports transformers: a test that needs a hub is broken, not slow.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter; they are what they are once imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Examples are drawn from a fixed seed, so that a red run is red again; no deadline, since times on
# a shared machine say nothing.
hypothesis.settings.register_profile("specdec", deadline=None, derandomize=True)
hypothesis.settings.load_profile("specdec")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="torch sees no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Torch's global generator starts every test in the same state, whatever ran before."""
    torch.manual_seed(0)
