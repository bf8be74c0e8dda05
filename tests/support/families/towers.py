"""What the small towers of all families have in common."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from support.families.prompts import EOS, PAD, VOCAB

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def sharpen(model: PreTrainedModel, factor: float = 8.0) -> PreTrainedModel:
    """Scale the weight matrices up in place, so that the logits differ by more than rounding.

    Token embeddings shrink instead: else the last token alone would choose the next one.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(0.3 if "embed_tokens" in name else factor)
    return model


def redraw(model: PreTrainedModel, *names: str, std: float = 0.02) -> None:
    """Draw parameters that a new model leaves at zero or empty."""
    for name, parameter in model.named_parameters():
        if name.endswith(names):
            torch.nn.init.normal_(parameter, std=std)
