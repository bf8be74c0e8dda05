"""Tokenizer, image processor and chat template of the embedded LVLM, as one `LlavaProcessor`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from specdec.training import curriculum, dialogues, lvlm, scenes
from specdec.training.wording import Dialogue

TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def corpus(scenes_per_kind: int = 400) -> Iterator[str]:
    """Questions and answers of training scenes, the text the tokenizer is fitted to."""
    rng = random.Random(0)
    for seed in range(scenes_per_kind):
        for kind, tasks in dialogues.TASKS.items():
            scene = scenes.make_scene(seed, "train", kind)
            made = [
                turn
                for task in tasks
                for turn in dialogues.about(scene, task, seed, seed % 4 == 0).turns
            ]
            for turn in made + curriculum.brief(scene, rng):
                yield turn.question
                yield turn.answer
        pair = [scenes.make_scene(2 * seed + i, "train", "shapes") for i in range(2)]
        for turn in dialogues.about_pair(pair[0], pair[1], seed).turns:
            yield turn.question
            yield turn.answer


def build_processor(scenes_per_kind: int = 400) -> LlavaProcessor:
    """A processor fitted to the corpus; the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=lvlm.VOCABULARY,
        special_tokens=list(lvlm.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(scenes_per_kind), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        extra_special_tokens={"image_token": "<image>"},
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": scenes.SIZE, "width": scenes.SIZE}
    images = SiglipImageProcessorPil(
        size=side, image_mean=[lvlm.MEAN] * 3, image_std=[lvlm.STD] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=scenes.PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=0,
    )


def messages(
    dialogue: Dialogue, images: list[Image.Image] | None = None
) -> list[dict[str, Any]]:  # Any: HF's chat form
    """The dialogue up to its last question, in the form that `apply_chat_template` takes."""
    shown: list[Image.Image] | list[None] = (
        [None] * len(dialogue.scenes) if images is None else images
    )
    content: list[dict[str, Any]] = [
        {"type": "image", **({"image": i} if i is not None else {})} for i in shown
    ]
    chat: list[dict[str, Any]] = []
    for i, turn in enumerate(dialogue.turns):
        text = {"type": "text", "text": turn.question}
        chat.append({"role": "user", "content": [*(content if i == 0 else []), text]})
        if i + 1 < len(dialogue.turns):
            chat.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return chat
