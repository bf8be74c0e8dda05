"""Families that read an image as one or more square tiles."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from support.families.prompts import (
    END,
    IMAGE,
    PAD,
    SPLIT,
    START,
    VIDEO,
    Eyes,
    Inputs,
    Picture,
    noise,
)
from support.families.towers import SIGLIP, TEXT, VISION, redraw

Built = tuple[PreTrainedModel, Eyes]


def _tile(pictures: list[Picture]) -> Inputs:
    return {"pixel_values": torch.stack([noise(picture, 3, 16, 16) for picture in pictures])}


def _tiles(pictures: list[Picture]) -> Inputs:
    """One tile, or two."""
    return {"pixel_values": torch.cat([noise(p, 1 + p.size, 3, 16, 16) for p in pictures])}


def llava() -> Built:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config=SIGLIP,
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    eyes = Eyes(lambda picture: [IMAGE] * 16, _tile)
    return transformers.LlavaForConditionalGeneration(config), eyes


def _anyres(pictures: list[Picture]) -> Inputs:
    """A small view of the whole and two tiles, beside or above each other. Videos of three frames
    stand alone.
    """
    if pictures[0].video:
        return {"pixel_values_videos": torch.stack([noise(p, 3, 3, 16, 16) for p in pictures])}
    return {
        "pixel_values": torch.stack([noise(picture, 3, 3, 16, 16) for picture in pictures]),
        "image_sizes": torch.tensor([_ANYRES[picture.size] for picture in pictures]),
    }


_ANYRES = [[16, 32], [32, 16]]  # height, width
_ANYRES_TOKENS = [4 + 2 * (4 + 1), 4 + 4 * (2 + 1)]  # with a line break behind each row


def llava_next() -> Built:
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "mistral", **TEXT, "head_dim": 16, "sliding_window": 12},
        vision_config={**SIGLIP, "patch_size": 8},
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=_ANYRES,
    )
    eyes = Eyes(lambda picture: [IMAGE] * _ANYRES_TOKENS[picture.size], _anyres, sizes=2)
    return transformers.LlavaNextForConditionalGeneration(config), eyes


def llava_onevision() -> Built:
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={**SIGLIP, "patch_size": 8},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_ANYRES,
    )

    def tokens(picture: Picture) -> list[int]:
        # A frame is pooled to one token; a line break ends the video.
        return [VIDEO] * 4 if picture.video else [IMAGE] * _ANYRES_TOKENS[picture.size]

    eyes = Eyes(tokens, _anyres, sizes=2, videos=True, mixed=True)
    return transformers.LlavaOnevisionForConditionalGeneration(config), eyes


def internvl() -> Built:
    vision = VISION | {"image_size": [16, 16], "patch_size": [4, 4]}
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "internvl_vision", **vision},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )
    eyes = Eyes(lambda picture: [IMAGE] * 4 * (1 + picture.size), _tiles, sizes=2)
    return transformers.InternVLForConditionalGeneration(config), eyes


def _rows_of_tiles(pictures: list[Picture]) -> Inputs:
    return {"pixel_values": _tiles(pictures)["pixel_values"][None]}


def smolvlm() -> Built:
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION},
        image_token_id=IMAGE,
        pad_token_id=PAD,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    eyes = Eyes(_split_tiles, _rows_of_tiles, sizes=2, by_row=frozenset({"pixel_values"}))
    return transformers.SmolVLMForConditionalGeneration(config), eyes


def idefics3() -> Built:
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    eyes = Eyes(_split_tiles, _rows_of_tiles, sizes=2, by_row=frozenset({"pixel_values"}))
    return transformers.Idefics3ForConditionalGeneration(config), eyes


def _split_tiles(picture: Picture) -> list[int]:
    tile = [IMAGE] * 4
    return [*tile, *[SPLIT, *tile] * picture.size]


def llama4() -> Built:
    """With chunks shorter than the prompts, and a temperature that grows every eight tokens."""
    config = transformers.Llama4Config(
        text_config={
            **TEXT,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 12,
            "floor_scale": 8,
            "attn_scale": 0.5,
        },
        vision_config={
            **VISION,
            "intermediate_size": 128,  # hidden size / pixel_shuffle_ratio²
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )

    def tokens(picture: Picture) -> list[int]:
        return [START, *_split_tiles(picture), END]

    model = transformers.Llama4ForConditionalGeneration(config)
    redraw(model, "experts.gate_up_proj", "experts.down_proj")
    return model, Eyes(tokens, _tiles, sizes=2)


def mllama() -> Built:
    """The image is in no token: layers of their own attend to it. Gates that are born shut are
    opened.
    """
    tiles = [[1, 1], [1, 2]]
    text = {**TEXT, "bos_token_id": 2, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.MllamaConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 2,
            "supported_aspect_ratios": tiles,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
        image_token_index=IMAGE,
    )

    def pixels(pictures: list[Picture]) -> Inputs:
        images = torch.zeros(1, len(pictures), 2, 3, 16, 16)
        mask = torch.zeros(1, len(pictures), 2, dtype=torch.long)
        for place, picture in enumerate(pictures):
            images[0, place, : 1 + picture.size] = noise(picture, 1 + picture.size, 3, 16, 16)
            mask[0, place, : 1 + picture.size] = 1
        ratios = torch.tensor([[1 + picture.size for picture in pictures]])
        return {"pixel_values": images, "aspect_ratio_ids": ratios, "aspect_ratio_mask": mask}

    model: Any = transformers.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    redraw(model, "class_embedding", "embedding.weight", "gated_positional_embedding.embedding")
    by_row = frozenset({"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"})
    return model, Eyes(lambda picture: [IMAGE], pixels, _reach, sizes=2, by_row=by_row)


def _reach(ids: Tensor, pictures: list[Picture]) -> Inputs:
    """Words see the images right before them: all that stand side by side there."""
    if not pictures:
        return {}
    tokens = ids[0].tolist()
    mask = torch.zeros(1, len(tokens), len(pictures), 2, dtype=torch.long)
    seen: list[int] = []  # images, by number
    count = 0
    for place, token in enumerate(tokens):
        if token == IMAGE:
            seen = [*seen, count] if place and tokens[place - 1] == IMAGE else [count]
            count += 1
        for image in seen:
            mask[0, place, image, : 1 + pictures[image].size] = 1
    return {"cross_attention_mask": mask}
