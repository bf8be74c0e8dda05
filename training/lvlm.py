"""The embedded LVLM as plain transformers parts: config, model and pixel transform.

Geometry: 192 px images, 16 px patches, 144 visual tokens; SigLIP tower 160 x 4 layers, two-layer
projector, Qwen2 decoder 256 x 8 layers with 4 query and 2 key/value heads. Pixels are normalised
so that white paper is 0.
"""

from __future__ import annotations

import numpy.typing as npt
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from specdec.training.scenes import PATCH, SIDE, SIZE

VISUAL_TOKENS = SIDE * SIDE
VOCABULARY = 1024
WIDTH, LAYERS, QUERY_HEADS, KEY_HEADS = 256, 8, 4, 2  # of the decoder
PAD, BOS, EOS, USER, ASSISTANT, IMAGE = range(6)
SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>")
MEAN, STD = 1.0, 0.5
EMBED_STD = 0.05  # of a freshly drawn text embedding; visual embeddings are scaled to the same size


def config() -> LlavaConfig:
    """The LVLM's configuration."""
    vision = SiglipVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=QUERY_HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )


def build(seed: int = 0) -> LlavaForConditionalGeneration:
    """A freshly initialised LVLM in fp32."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config())
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBED_STD)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight.copy_(0.5 * _places(160))
    return model


def _places(width: int) -> torch.Tensor:
    """Sines and cosines of row and column (144, width): from there neighbours are easily found."""
    quarter = width // 4
    angles = torch.arange(SIDE)[:, None] * torch.logspace(0.3, -1.5, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # (12, width / 2)
    rows, cols = waves[:, None].expand(SIDE, SIDE, -1), waves[None].expand(SIDE, SIDE, -1)
    return torch.cat([rows, cols], -1).reshape(SIDE * SIDE, width)


def pixels(images: npt.NDArray) -> torch.Tensor:  # type: ignore[type-arg]  # uint8
    """uint8 images (B, H, W, 3) as the processor hands them to the model, (B, 3, H, W) fp32."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def visual(model: LlavaForConditionalGeneration, values: torch.Tensor) -> torch.Tensor:
    """Projected visual tokens (B, 144, 256)."""
    tower = model.model.vision_tower(values, output_hidden_states=True)
    projected: torch.Tensor = model.model.multi_modal_projector(tower.hidden_states[-1])
    return projected
