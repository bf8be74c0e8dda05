"""Geometry of three published vision-language models, to measure their speed without their weights.

Values are those of the ``config.json`` that each is published with: Qwen/Qwen2.5-VL-7B-Instruct and
Qwen/Qwen2.5-VL-3B-Instruct (Bai et al., 2502.13923, table 1), llava-hf/llava-1.5-7b-hf (Liu et al.,
2310.03744: Vicuna-7B behind CLIP ViT-L/14 at 336 pixels). What is not named here is transformers'
default for the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import LlavaConfig, PretrainedConfig, Qwen2_5_VLConfig

# Any: what transformers' configs take.
_QWEN_TEXT: dict[str, Any] = {
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    # 16, 24 and 24 of a head's 64 frequencies turn by time, height and width.
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [16, 24, 24],
    },
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN_7B: dict[str, Any] = {
    "text_config": {
        **_QWEN_TEXT,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {**_QWEN_VISION, "out_hidden_size": 3584},
    "tie_word_embeddings": False,
}
_QWEN_3B: dict[str, Any] = {
    "text_config": {
        **_QWEN_TEXT,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "vision_config": {**_QWEN_VISION, "out_hidden_size": 2048},
    "tie_word_embeddings": True,
}
_LLAVA_7B: dict[str, Any] = {
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 32001,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "image_token_index": 32000,
    "image_seq_length": 576,
}
_KNOWN: Mapping[str, tuple[type[PretrainedConfig], Mapping[str, Any]]] = MappingProxyType(
    {
        "qwen2.5-vl-7b": (Qwen2_5_VLConfig, _QWEN_7B),
        "qwen2.5-vl-3b": (Qwen2_5_VLConfig, _QWEN_3B),
        "llava-1.5-7b": (LlavaConfig, _LLAVA_7B),
    }
)
NAMES = tuple(_KNOWN)


def known_config(name: str) -> PretrainedConfig:
    """The config of one of :data:`NAMES`, the caller's own.

    Raises:
        ValueError: another name.
    """
    if name not in _KNOWN:
        raise ValueError(f"{name!r} is no known geometry; there is {', '.join(NAMES)}")
    kind, values = _KNOWN[name]
    return kind.from_dict(dict(values))
