"""Families that see nothing."""

from __future__ import annotations

import transformers
from transformers import PreTrainedModel

from support.families.grids import MLA
from support.families.towers import TEXT, redraw

Built = tuple[PreTrainedModel, None]


def llama() -> Built:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)), None


def qwen3() -> Built:
    config = transformers.Qwen3Config(**TEXT, head_dim=16)
    return transformers.Qwen3ForCausalLM(config), None


def deepseek_v3() -> Built:
    """Keys and values are cached as latents and expanded afterwards."""
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**TEXT | MLA))
    redraw(model, "experts.gate_up_proj", "experts.down_proj")
    return model, None
