"""Small models of real transformers families, with inputs for them.

Weights are random and sharpened, so that greedy answers vary and depend on the image: a model that
repeats one token proves little. No processor is needed: pixels and placeholders are made here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import transformers
from transformers import PreTrainedModel

from specdec.interfaces import Prompt
from support.families import gemmas, grids, prompts, texts, tiled
from support.families.prompts import EOS, IMAGE, PAD, VOCAB, Inputs
from support.families.towers import TEXT, VISION, sharpen

__all__ = [
    "CHAINS_ONLY",
    "EOS",
    "IMAGE",
    "NAMES",
    "PAD",
    "SIGHTED",
    "TEXT",
    "VISION",
    "VOCAB",
    "Family",
    "Inputs",
    "build",
    "causal_lm",
    "prepare",
    "sharpen",
]

_SIGHTED = {
    "llava": tiled.llava,
    "llava_next": tiled.llava_next,
    "llava_onevision": tiled.llava_onevision,
    "internvl": tiled.internvl,
    "smolvlm": tiled.smolvlm,
    "idefics3": tiled.idefics3,
    "llama4": tiled.llama4,
    "mllama": tiled.mllama,
    "qwen2_vl": grids.qwen2_vl,
    "qwen2_5_vl": grids.qwen2_5_vl,
    "qwen3_vl": grids.qwen3_vl,
    "qwen3_vl_moe": grids.qwen3_vl_moe,
    "qwen3_5": grids.qwen3_5,
    "glm4v": grids.glm4v,
    "mistral3": grids.mistral3,
    "kimi_k25": grids.kimi_k25,
    "gemma3": gemmas.gemma3,
    "gemma4": gemmas.gemma4,
    "gemma4_shared": gemmas.gemma4_shared,
    "paligemma": gemmas.paligemma,
}
_BLIND = {"llama": texts.llama, "qwen3": texts.qwen3, "deepseek_v3": texts.deepseek_v3}
SIGHTED = tuple(_SIGHTED)
CHAINS_ONLY = frozenset({"qwen3_5"})
NAMES = (*_SIGHTED, *_BLIND)


class MakesInputs(Protocol):
    def __call__(self, seed: int, text: int, layout: str = "inside") -> Inputs:
        """See :func:`support.families.prompts.inputs`."""


class Family(NamedTuple):
    """Attributes:
    model: the model, in fp32.
    inputs: what ``generate`` takes, one row; from a seed, a number of words and where the images
        are.
    layouts: where images may be.
    together: makes a batch of several such inputs.
    """

    model: PreTrainedModel
    inputs: MakesInputs
    layouts: tuple[str, ...]
    together: Callable[[list[Inputs]], Inputs]


def build(name: str) -> Family:
    """The family of that name."""
    torch.manual_seed(1)
    model, eyes = (_SIGHTED | _BLIND)[name]()
    model.generation_config = transformers.GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    layouts = ("none",) if eyes is None else eyes.layouts
    together = partial(prompts.together, by_row=frozenset() if eyes is None else eyes.by_row)
    return Family(sharpen(model.eval()), partial(prompts.inputs, eyes), layouts, together)


def prepare(model: PreTrainedModel, given: Inputs, new_tokens: int) -> Prompt:
    """What transformers' ``generate`` would hand to a decoding method."""

    def capture(model: Any, input_ids: torch.Tensor, *, logits_processor: Any, **rest: Any) -> Any:
        for name in ("stopping_criteria", "generation_config"):
            del rest[name]
        return Prompt(input_ids, (0,) * len(input_ids), rest)

    prompt: Prompt = type(model).generate(
        model, **given, max_new_tokens=new_tokens, custom_generate=capture
    )
    return prompt


def causal_lm(seed: int = 0, layers: int = 1, **changes: Any) -> PreTrainedModel:
    """A small text-only model with the same vocabulary: a drafter that knows nothing."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(**TEXT | {"num_hidden_layers": layers} | changes)
    return sharpen(transformers.Qwen2ForCausalLM(config).eval())
