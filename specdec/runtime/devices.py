"""Where parts of a model run that accelerate has spread over devices, or put aside; and how much
memory is free there.
"""

from __future__ import annotations

import os

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


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, what torch keeps for later included."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
