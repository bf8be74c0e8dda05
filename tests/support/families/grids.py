"""Families that read an image as a grid of patches, of whatever size it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from support.families.prompts import END, IMAGE, SPLIT, START, VIDEO, Eyes, Inputs, Picture, noise
from support.families.towers import MROPE, TEXT, redraw

Built = tuple[PreTrainedModel, Eyes]
GRIDS = [(4, 6), (4, 4)]  # patches, height and width; four become a token
FRAMES = 2
VIDEO_START, VIDEO_END = 155, 156


def _grid(picture: Picture) -> tuple[int, int, int]:
    return (FRAMES if picture.video else 1, *GRIDS[picture.size])


def _patches(*shape: int) -> Callable[[list[Picture]], Inputs]:
    """Patches ``(n, *shape)`` of all pictures one behind the other."""

    def pixels(pictures: list[Picture]) -> Inputs:
        grids = [_grid(picture) for picture in pictures]
        counts = [frames * height * width for frames, height, width in grids]
        rows = [noise(p, n, *shape) for p, n in zip(pictures, counts, strict=True)]
        kind = ("pixel_values_videos", "video") if pictures[0].video else ("pixel_values", "image")
        return {kind[0]: torch.cat(rows), f"{kind[1]}_grid_thw": torch.tensor(grids)}

    return pixels


def _types(ids: Tensor, pictures: list[Picture]) -> Inputs:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def _whole_video(picture: Picture) -> list[int]:
    frames, height, width = _grid(picture)
    token = VIDEO if picture.video else IMAGE
    return [START, *[token] * (frames * height * width // 4), END]


def _frame_by_frame(picture: Picture) -> list[int]:
    """A word for the time before each frame of a video."""
    frames, height, width = _grid(picture)
    token = VIDEO if picture.video else IMAGE
    frame = [START, *[token] * (height * width // 4), END]
    return (
        [part for time in range(frames) for part in (130 + time, *frame)] if frames > 1 else frame
    )


_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "tie_word_embeddings": False,
}
_PATCH = 3 * 2 * 4 * 4  # channels, frames of a pair, height, width
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 4}
_LEARNED = {**_TOWER, "out_hidden_size": 64, "num_position_embeddings": 64}


def qwen2_vl() -> Built:
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
        },
        **_IDS,
    )
    eyes = Eyes(_whole_video, _patches(_PATCH), _types, sizes=2, videos=True, mixed=True)
    return transformers.Qwen2VLForConditionalGeneration(config), eyes


def qwen2_5_vl() -> Built:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            **_TOWER,
            "out_hidden_size": 64,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **_IDS,
    )
    eyes = Eyes(_whole_video, _patches(_PATCH), _types, sizes=2, videos=True, mixed=True)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), eyes


def qwen3_vl() -> Built:
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": MROPE},
        vision_config={**_LEARNED, "depth": 3, "deepstack_visual_indexes": [0, 1]},
        **_IDS,
    )
    eyes = Eyes(_frame_by_frame, _patches(_PATCH), _types, sizes=2, videos=True, mixed=True)
    return transformers.Qwen3VLForConditionalGeneration(config), eyes


def qwen3_vl_moe() -> Built:
    config = transformers.Qwen3VLMoeConfig(
        text_config={
            **TEXT,
            "head_dim": 16,
            "rope_parameters": MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        vision_config={**_LEARNED, "depth": 3, "deepstack_visual_indexes": [0, 1]},
        **_IDS,
    )
    eyes = Eyes(_frame_by_frame, _patches(_PATCH), _types, sizes=2, videos=True, mixed=True)
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    redraw(model, "experts.gate_up_proj", "experts.down_proj")
    return model, eyes


def qwen3_5() -> Built:
    """Every other layer keeps a state instead of keys."""
    rope: dict[str, Any] = MROPE | {"partial_rotary_factor": 0.5, "mrope_interleaved": True}
    config = transformers.Qwen3_5Config(
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "rope_parameters": rope,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        vision_config=_LEARNED,
        **_IDS,
    )
    eyes = Eyes(_frame_by_frame, _patches(_PATCH), _types, sizes=2, videos=True, mixed=True)
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        # States that are forgotten at once would prove nothing, and their norm magnifies rounding.
        if name.endswith("A_log"):
            torch.nn.init.uniform_(parameter, -4.0, -1.0)
        if name.endswith("in_proj_a.weight"):
            torch.nn.init.normal_(parameter, std=0.002)
    return model, eyes


def glm4v() -> Built:
    """A video's frames are image tokens too; what they are is told by what is around them."""
    config = transformers.Glm4vConfig(
        text_config={**TEXT, "rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
        vision_config={**_TOWER, "image_size": 16, "out_hidden_size": 64},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
    )

    def tokens(picture: Picture) -> list[int]:
        frame = _frame_by_frame(picture._replace(video=False))
        if not picture.video:
            return frame
        times = [[*frame, 130 + time] for time in range(FRAMES)]
        return [VIDEO_START, *(token for time in times for token in time), VIDEO_END]

    def types(ids: Tensor, pictures: list[Picture]) -> Inputs:
        within = (ids == VIDEO_START).cumsum(-1) - (ids == VIDEO_END).cumsum(-1)
        return {"mm_token_type_ids": ((ids == IMAGE) * (1 + within)).int()}

    eyes = Eyes(tokens, _patches(_PATCH), types, sizes=2, videos=True)
    return transformers.Glm4vForConditionalGeneration(config), eyes


def mistral3() -> Built:
    """Pixtral's tower; a token breaks the line behind each row of an image."""
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, "head_dim": 16, "sliding_window": 12},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
        },
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )

    def tokens(picture: Picture) -> list[int]:
        height, width = GRIDS[picture.size]
        rows = [IMAGE] * (width // 2) + [SPLIT]
        return [*(rows * (height // 2))[:-1], END]

    def pixels(pictures: list[Picture]) -> Inputs:
        images = torch.zeros(len(pictures), 3, 16, 24)
        sizes = [(4 * height, 4 * width) for height, width in (GRIDS[p.size] for p in pictures)]
        for image, picture, (height, width) in zip(images, pictures, sizes, strict=True):
            image[:, :height, :width] = noise(picture, 3, height, width)
        return {"pixel_values": images, "image_sizes": torch.tensor(sizes)}

    eyes = Eyes(tokens, pixels, sizes=2)
    return transformers.Mistral3ForConditionalGeneration(config), eyes


MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


def kimi_k25() -> Built:
    """Keys and values are cached as latents and expanded afterwards."""
    config = transformers.Kimi_K25Config(
        text_config={"model_type": "deepseek_v3", **TEXT, **MLA},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        projection_hidden_size=32,
        **_IDS,
    )
    model = transformers.Kimi_K25ForConditionalGeneration(config)
    redraw(model, "experts.gate_up_proj", "experts.down_proj", "position_embeddings")
    return model, Eyes(_whole_video, _patches(3, 4, 4), sizes=2)
