"""The Gemma families: images that see themselves, sliding layers, shared keys, softcaps."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from support.families.prompts import END, IMAGE, START, VIDEO, Eyes, Inputs, Picture, noise
from support.families.towers import SIGLIP, TEXT

Built = tuple[PreTrainedModel, Eyes]
GRIDS = [(4, 6), (4, 4)]  # patches, height and width; four become a token
FRAMES = 2


def _tile(pictures: list[Picture]) -> Inputs:
    return {"pixel_values": torch.stack([noise(picture, 3, 16, 16) for picture in pictures])}


def _wrapped(picture: Picture) -> list[int]:
    return [START, *[IMAGE] * 4, END]


def gemma3() -> Built:
    """With a window shorter than the prompts, so that sliding layers really slide."""
    config = transformers.Gemma3Config(
        text_config={
            **TEXT,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 16,
        },
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        tie_word_embeddings=False,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, Eyes(_wrapped, _tile, _token_types)


def _token_types(ids: Tensor, pictures: list[Picture]) -> Inputs:
    return {"token_type_ids": (ids == IMAGE).int()}


def paligemma() -> Built:
    """Every token of a prompt sees every other."""
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "head_dim": 16},
        vision_config={**SIGLIP, "patch_size": 8},
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
        vocab_size=TEXT["vocab_size"],
        tie_word_embeddings=False,
    )
    eyes = Eyes(lambda picture: [IMAGE] * 4, _tile)
    return transformers.PaliGemmaForConditionalGeneration(config), eyes


# Since transformers 5.2x the frames of all videos are one dimension.
_FLAT_FRAMES = (
    "num_frames_per_video"
    in inspect.signature(transformers.Gemma4ForConditionalGeneration.forward).parameters
)


def _positions(height: int, width: int, most: int) -> Tensor:
    """x and y of each patch, -1 for padding."""
    places = [[x, y] for y in range(height) for x in range(width)]
    return torch.tensor(places + [[-1, -1]] * (most - len(places)))


def _patches(pictures: list[Picture]) -> Inputs:
    frames = [p for p in pictures for _ in range(FRAMES if p.video else 1)]
    most = max(height * width for height, width in GRIDS)
    kind = ("pixel_values_videos", "video") if pictures[0].video else ("pixel_values", "image")
    pixels = [noise(p._replace(seed=p.seed + place), most, 48) for place, p in enumerate(frames)]
    places = [_positions(*GRIDS[picture.size], most) for picture in frames]
    given = {kind[0]: torch.stack(pixels).sigmoid(), f"{kind[1]}_position_ids": torch.stack(places)}
    if pictures[0].video and _FLAT_FRAMES:
        given["num_frames_per_video"] = torch.tensor([FRAMES] * len(pictures))
    elif pictures[0].video:
        given = {name: value.unflatten(0, (-1, FRAMES)) for name, value in given.items()}
    return given


def _frames(picture: Picture) -> list[int]:
    height, width = GRIDS[picture.size]
    token = VIDEO if picture.video else IMAGE
    return [START, *[token] * (height * width // 4), END] * (FRAMES if picture.video else 1)


def _types(ids: Tensor, pictures: list[Picture]) -> Inputs:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def gemma4(**changes: Any) -> Built:
    """With a window shorter than the prompts and wider heads where layers do not slide."""
    config = transformers.Gemma4Config(
        text_config={
            **TEXT,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_hidden_layers": 4,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": TEXT["vocab_size"],
            "final_logit_softcapping": 30.0,
            "use_bidirectional_attention": "vision",
            **changes,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
        audio_token_id=157,
        boa_token_id=158,
        eoa_token_index=159,
        tie_word_embeddings=False,
    )
    model = transformers.Gemma4ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        # Trained models learn this scale; at 1 attention is so sharp that it magnifies rounding.
        if name.endswith("q_norm.weight"):
            torch.nn.init.constant_(parameter, 0.25)
    return model, Eyes(_frames, _patches, _types, sizes=2, videos=True, mixed=True)


def gemma4_shared() -> Built:
    """The last two layers read the keys of those before them."""
    return gemma4(num_kv_shared_layers=2)
