"""Small vision-language models of real transformers families, with inputs for them.

Weights are random and sharpened, so that greedy answers vary and depend on the image: a model that
repeats one token proves little. No processor is needed: pixels and placeholders are made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from specdec.interfaces import Prompt

VOCAB, IMAGE, PAD, EOS = 160, 150, 0, 1
TEXT = {
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
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


class Family(NamedTuple):
    """Attributes:
    model: the model, in fp32.
    inputs: seed and number of text tokens to what ``generate`` takes, one row, one or two images.
    """

    model: PreTrainedModel
    inputs: Callable[[int, int], dict[str, Tensor]]


def build(name: str) -> Family:
    """The family of that name."""
    torch.manual_seed(1)
    model, inputs = _BUILDERS[name]()
    model.generation_config = transformers.GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    return Family(sharpen(model.eval()), inputs)


def prepare(model: PreTrainedModel, given: dict[str, Tensor], new_tokens: int) -> Prompt:
    """What transformers' ``generate`` would hand to a decoding method."""

    def capture(model: Any, input_ids: Tensor, *, logits_processor: Any, **rest: Any) -> Prompt:
        for name in ("stopping_criteria", "generation_config"):
            del rest[name]
        return Prompt(input_ids, (0,) * len(input_ids), rest)

    prompt: Prompt = type(model).generate(
        model, **given, max_new_tokens=new_tokens, custom_generate=capture
    )
    return prompt


def sharpen(model: PreTrainedModel, factor: float = 8.0) -> PreTrainedModel:
    """Scale the weight matrices up in place, so that the logits differ by more than rounding.

    Token embeddings shrink instead: else the last token alone would choose the next one.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(0.3 if "embed_tokens" in name else factor)
    return model


def causal_lm(seed: int = 0, layers: int = 1, **changes: Any) -> PreTrainedModel:
    """A small text-only model with the same vocabulary: a drafter that knows nothing."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(**TEXT | {"num_hidden_layers": layers} | changes)
    return sharpen(transformers.Qwen2ForCausalLM(config).eval())


def prompt(seed: int, text: int, tokens_per_image: int, wrap: tuple[int, ...] = ()) -> Tensor:
    """Ids ``(1, T)``: some text, one or two images, the rest of the text."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, 140, (text,), generator=generator).tolist()
    image = [*wrap[:1], *[IMAGE] * tokens_per_image, *wrap[1:]]
    images = 1 + seed % 2
    cut = 1 + seed % max(text - 2, 1)
    return torch.tensor([[*words[:cut], *image * images, *words[cut:]]])


def _pixels(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000))


def _llava() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )

    def inputs(seed: int, text: int) -> dict[str, Tensor]:
        return {
            "input_ids": prompt(seed, text, 16),
            "pixel_values": _pixels(seed, 1 + seed % 2, 3, 16, 16),
        }

    return transformers.LlavaForConditionalGeneration(config), inputs


def _internvl() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
    vision = VISION | {"image_size": [16, 16], "patch_size": [4, 4]}
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "internvl_vision", **vision},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )

    def inputs(seed: int, text: int) -> dict[str, Tensor]:
        return {
            "input_ids": prompt(seed, text, 4),
            "pixel_values": _pixels(seed, 1 + seed % 2, 3, 16, 16),
        }

    return transformers.InternVLForConditionalGeneration(config), inputs


def _smolvlm() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION},
        image_token_id=IMAGE,
        pad_token_id=PAD,
        scale_factor=2,
        tie_word_embeddings=False,
    )

    def inputs(seed: int, text: int) -> dict[str, Tensor]:
        return {
            "input_ids": prompt(seed, text, 4),
            "pixel_values": _pixels(seed, 1, 1 + seed % 2, 3, 16, 16),
        }

    return transformers.SmolVLMForConditionalGeneration(config), inputs


def _qwen_inputs(channels: int) -> Callable[[int, int], dict[str, Tensor]]:
    def inputs(seed: int, text: int) -> dict[str, Tensor]:
        images = 1 + seed % 2
        ids = prompt(seed, text, 6, wrap=(152, 153))
        return {
            "input_ids": ids,
            "mm_token_type_ids": (ids == IMAGE).int(),
            "pixel_values": _pixels(seed, images * 24, channels),
            "image_grid_thw": torch.tensor([[1, 4, 6]] * images),
        }

    return inputs


def _qwen2_5_vl() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=151,
        vision_start_token_id=152,
        vision_end_token_id=153,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return model, _qwen_inputs(3 * 2 * 4 * 4)


def _qwen3_vl() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": MROPE},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 3,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=151,
        vision_start_token_id=152,
        vision_end_token_id=153,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return model, _qwen_inputs(3 * 2 * 4 * 4)


def _gemma3() -> tuple[PreTrainedModel, Callable[[int, int], dict[str, Tensor]]]:
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
        vision_config={"vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=152,
        eoi_token_index=153,
        tie_word_embeddings=False,
    )

    def inputs(seed: int, text: int) -> dict[str, Tensor]:
        ids = prompt(seed, text, 4, wrap=(152, 153))
        return {
            "input_ids": ids,
            "token_type_ids": (ids == IMAGE).int(),
            "pixel_values": _pixels(seed, 1 + seed % 2, 3, 16, 16),
        }

    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, inputs


_BUILDERS = {
    "llava": _llava,
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
}
NAMES = tuple(_BUILDERS)
