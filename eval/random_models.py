"""Models with random weights: what they say is noise, how long they take is not.

Nothing is read but a config, so a model of any size is there in seconds, on the device at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_head import EagleConfig, EagleHead
from specdec.eval.known_configs import NAMES, known_config
from specdec.runtime import free_bytes

_SMALL: dict[str, int] = {  # a model that a CPU runs in milliseconds
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
}
_SMALL_VISION: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 56,
    "out_hidden_size": 64,
}


def config_of(source: str | Path | PretrainedConfig) -> PretrainedConfig:
    """A config: one itself, that of a local folder, or one of the known geometries by name.

    Raises:
        ValueError: there is none.
    """
    if isinstance(source, PretrainedConfig):
        return source
    if str(source) in NAMES:
        return known_config(str(source))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source}: no config could be read ({error}); give a folder with a config.json, or "
            f"one of {', '.join(NAMES)}"
        ) from None
    return config


def random_model(
    source: str | Path | PretrainedConfig, dtype: torch.dtype, device: torch.device | str
) -> PreTrainedModel:
    """A vision-language model with random weights, made where it is to be.

    Args:
        source: as for :func:`config_of`.
        dtype: of the weights.
        device: where to.

    Raises:
        ValueError: there is no config, it is not one of a vision-language model, or the weights do
            not fit into the memory that is free.
    """
    config, device = config_of(source), torch.device(device)
    try:
        with torch.device("meta"):
            plan = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ValueError(
            f"{type(config).__name__} is no config of a vision-language model that transformers "
            f"can build: {error}"
        ) from None
    needed, free = parameter_bytes(plan), free_bytes(device)
    if needed > free:
        raise ValueError(
            f"the weights of {type(plan).__name__} take {needed / 2**30:.1f} GiB in {dtype}, and "
            f"{free / 2**30:.1f} GiB are free on {device}; choose a smaller model"
        )
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None  # noise must not end an answer
    ready: PreTrainedModel = model.eval()
    return ready


def toy(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture, small enough for tests: few, narrow layers and 256 tokens."""
    values = config.to_dict()
    for name, small in (("text_config", _SMALL), ("vision_config", _SMALL_VISION)):
        part = values[name]
        part.pop("layer_types", None)
        for key, size in small.items():
            if key in part or (key == "head_dim" and name == "text_config"):
                part[key] = size
        rope = part.get("rope_parameters") or {}
        if "mrope_section" in rope:
            rope["mrope_section"] = [2, 3, 3]
        if "fullatt_block_indexes" in part:
            part["fullatt_block_indexes"] = [1]
    _shrink_tokens(values, values["text_config"]["vocab_size"])
    if "image_seq_length" in values:
        values["image_seq_length"] = (56 // values["vision_config"]["patch_size"]) ** 2
    small_config: PretrainedConfig = type(config).from_dict(values)
    return small_config


def _shrink_tokens(values: dict[str, Any], vocab_size: int) -> None:
    """Special tokens that are beyond the vocabulary become its last ones."""
    free = vocab_size
    for part in (values, values["text_config"]):
        for key, token in part.items():
            special = key.endswith(("_token_id", "_token_index"))
            if special and isinstance(token, int) and token >= vocab_size:
                free -= 1
                part[key] = free


def random_eagle(model: PreTrainedModel) -> EagleDrafter:
    """A drafter with an EAGLE-3 head of random weights, as large as one for this model would be:
    a layer of its width, over three of its layers, for at most 32,000 tokens (Li et al.,
    2503.01840).
    """
    text = model.config.get_text_config(decoder=True)
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    config = EagleConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        draft_vocab_size=min(32000, text.vocab_size),
        target_hidden_size=text.hidden_size,
        layers=tuple(sorted({min(2, layers - 1), layers // 2, max(layers - 3, 0)})),
        rope_parameters=dict(text.rope_parameters),
        rms_norm_eps=text.rms_norm_eps,
    )
    torch.manual_seed(1)
    with model.device:
        head = EagleHead(config).to(model.dtype).eval()
    return EagleDrafter(head, model.get_input_embeddings())


def image_prompt(model: PreTrainedModel, words: int, seed: int = 0) -> dict[str, Tensor]:
    """One row of what ``generate`` takes: noise for an image, always the same one, and ``words``
    tokens behind it, by ``seed``.

    The image is 336 pixels wide and high for LLaVA, 896 × 672 for Qwen2.5-VL; toys see less.

    Raises:
        ValueError: an architecture whose images are laid out in another way.
    """
    config: Any = model.config
    if config.model_type == "llava":
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        shape: tuple[int, ...] = (1, 3, vision.image_size, vision.image_size)
        more = {}
    elif config.model_type == "qwen2_5_vl":
        vision = config.vision_config
        height, width = (48, 64) if vision.hidden_size > 64 else (4, 6)
        tokens = height * width // vision.spatial_merge_size**2
        area = vision.temporal_patch_size * vision.patch_size**2
        shape = (height * width, vision.in_channels * area)
        more = {"image_grid_thw": torch.tensor([[1, height, width]], device=model.device)}
    else:
        raise ValueError(
            f"images for {type(model).__name__} are not made here; there are those for llava and "
            "qwen2_5_vl"
        )
    image = config.image_token_id
    said = text_tokens(model, words, torch.Generator().manual_seed(1 + seed))
    ids = [1, *[image] * tokens, *said]
    row = torch.tensor([ids], device=model.device)
    if more:
        more["mm_token_type_ids"] = (row == image).int()
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask, seen = torch.ones_like(row), pixels.to(model.device, model.dtype)
    return {"input_ids": row, "attention_mask": mask, "pixel_values": seen, **more}


def text_tokens(model: PreTrainedModel, count: int, generator: torch.Generator) -> list[int]:
    """Words at random; special tokens are at either end of a vocabulary."""
    size = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(size // 4, size // 2, (count,), generator=generator)
    numbers: list[int] = tokens.tolist()
    return numbers


def parameter_bytes(model: PreTrainedModel) -> int:
    """What all weights take."""
    return sum(each.numel() * each.element_size() for each in model.parameters())
