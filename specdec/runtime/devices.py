"""Where parts of a model run that accelerate has spread over devices, or put aside."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module that has weights of its own wants its inputs.

    Weights that accelerate has put aside, in memory or on disk, are on the meta device between two
    forwards; its hook knows where they will run.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    there = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return device if there is None else torch.device(there)
