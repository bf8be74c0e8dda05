"""Rotary positions of a drafter's layer, as the verifier's layers have them.

Knows positions of one row, and those of three (time, height, width) whose frequencies are shared
out between the rows: in sections (Qwen2-VL, 2409.12191) or in turns (Qwen3-VL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class Rope(nn.Module):
    """Cosines and sines of positions.

    Args:
        head_dim: size of a head; with ``partial_rotary_factor`` only its first part turns.
        parameters: transformers' ``rope_parameters`` of the layer.

    Raises:
        ValueError: a kind that depends on the length of the text, or is not known.
    """

    frequencies: Tensor
    rows: Tensor

    def __init__(self, head_dim: int, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        kind = parameters.get("rope_type", "default")
        if kind in ("dynamic", "longrope") or kind not in (*ROPE_INIT_FUNCTIONS, "default"):
            raise ValueError(
                f"rope_type {kind!r} is not one that a drafter can share with its verifier; use "
                "one that does not read the verifier's keys, with rope_type 'default'"
            )
        if not 0 < parameters["rope_theta"] < math.inf:
            raise ValueError(f"rope_theta {parameters['rope_theta']} is no finite number above 0")
        turning = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        self.scaling = 1.0
        if kind == "default":
            powers = torch.arange(0, turning, 2, dtype=torch.float32) / turning
            frequencies = 1.0 / parameters["rope_theta"] ** powers
        else:
            config = PretrainedConfig()
            config.head_dim = head_dim
            config.hidden_size, config.num_attention_heads = head_dim, 1  # yarn asks for a default
            config.rope_parameters = dict(parameters)
            config.max_position_embeddings = parameters.get("original_max_position_embeddings", 0)
            frequencies, self.scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        self.register_buffer("frequencies", frequencies, persistent=False)
        rows = _rows(parameters, len(frequencies))
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of positions ``(R, T)`` or ``(R, B, T)``: cosines and sines ``(1 or B, 1, T, turning)``.
        Rows before the last three, as Qwen's text row, are not looked at.
        """
        if positions.ndim == 2:
            positions = positions[:, None]
        turning = positions[-3:].to(self.frequencies.device)
        rows = self.rows.clamp_max(len(turning) - 1)
        angles = turning[rows].permute(1, 2, 0).float() * self.frequencies  # (B, T, D / 2)
        both = torch.cat([angles, angles], -1)[:, None]
        return (both.cos() * self.scaling).to(dtype), (both.sin() * self.scaling).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x`` ``(B, H, T, D)``, its first halves against its second halves."""
    size = cos.shape[-1]
    turning, rest = x[..., :size], x[..., size:]
    one, other = turning.chunk(2, -1)
    turned = turning * cos + torch.cat([-other, one], -1) * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _rows(parameters: Mapping[str, Any], count: int) -> Tensor:
    """Which row of positions each frequency goes by, int64 ``(count,)``."""
    sections = parameters.get("mrope_section")
    if not sections:
        return torch.zeros(count, dtype=torch.long)
    if parameters.get("mrope_interleaved"):
        rows = torch.zeros(count, dtype=torch.long)
        for row in (1, 2):
            rows[row : 3 * sections[row] : 3] = row
        return rows
    return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
