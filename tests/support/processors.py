"""A processor for `families.build("llava")`, and questions for it: words w2 … w149, noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from support.families import EOS, IMAGE, PAD, VOCAB

TEMPLATE = (
    "w2 {% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)


def build() -> LlavaProcessor:
    """The processor. An image becomes 16 visual tokens."""
    words = {f"w{i}": i for i in range(VOCAB)}
    for name, number in (("<pad>", PAD), ("<eos>", EOS), ("<image>", IMAGE)):
        del words[f"w{number}"]
        words[name] = number
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w4"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=fast,
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=0,
    )


def image(seed: int) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def messages(seed: int, images: int = 1) -> list[dict[str, Any]]:
    """One user turn of three to seven words behind its images."""
    words = np.random.default_rng(seed).integers(5, 140, 3 + seed % 5)
    text = {"type": "text", "text": " ".join(f"w{word}" for word in words)}
    return [{"role": "user", "content": [*[{"type": "image"}] * images, text]}]
