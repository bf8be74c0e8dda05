"""Fresh drafters that are models of their own: small language models, small LVLMs.

Knows verifiers by their configs and, of an LVLM, the weights of its vision tower.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

# By model type: the vision tower, and parts within it that fit it to the text tower's width.
_TOWERS = {
    "llava": ("model.vision_tower.", ()),
    "qwen2_5_vl": ("model.visual.", ("model.visual.merger.",)),
}


@dataclass(frozen=True)
class Size:
    """Geometry of a drafter's text tower. The defaults make 0.6 million parameters with 1,024
    tokens.

    One wide layer: on a CPU a step costs what its number of operations costs, hardly what their
    size does, and a second layer found no more in a few thousand answers.
    """

    layers: int = 1
    hidden: int = 192
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 2


def build(verifier: PreTrainedModel, size: Size, seed: int) -> LlamaForCausalLM:
    """A freshly initialised language model for ``verifier``: its vocabulary, its special tokens."""
    text, generation = verifier.config.get_text_config(decoder=True), verifier.generation_config
    config = LlamaConfig(
        vocab_size=text.vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=text.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=generation.bos_token_id if generation else None,
        eos_token_id=generation.eos_token_id if generation else None,
        pad_token_id=generation.pad_token_id if generation else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).float()
    return model


def build_small_lvlm(verifier: PreTrainedModel, size: Size, seed: int = 0) -> PreTrainedModel:
    """An LVLM of the verifier's family that takes its inputs: the verifier's vision tower, copied
    and frozen, and a fresh projector and text tower, in fp32.

    Raises:
        ValueError: no small one of the verifier's family can be made, or its positions do not fit
            heads of this size.
    """
    kind = verifier.config.model_type
    if kind not in _TOWERS:
        raise ValueError(
            f"no small LVLM can be made of {type(verifier).__name__} ({kind}), only of "
            f"{', '.join(_TOWERS)}; distil a drafter of kind 'eagle' or 'text_only'"
        )
    config = deepcopy(verifier.config)
    _shrink(config.get_text_config(decoder=True), size)
    config.tie_word_embeddings = True
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = size.hidden
    # Any: the classes of all families are made from a config, but their common base is abstract.
    family: Any = type(verifier)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = family(config).float()
    model.generation_config = deepcopy(verifier.generation_config)
    tower, fresh = _TOWERS[kind]
    own = dict(model.named_parameters())
    for name, weight in verifier.named_parameters():
        if name.startswith(tower) and not name.startswith(fresh):
            own[name].data.copy_(weight)
            own[name].requires_grad_(False)
    return model


def _shrink(text: PretrainedConfig, size: Size) -> None:
    turning = size.hidden // size.heads // 2
    sections = (text.rope_parameters or {}).get("mrope_section")
    if sections:
        scaled = [turning * section / sum(sections) for section in sections]
        if any(section % 1 for section in scaled):
            raise ValueError(
                f"the verifier shares out its positions as {sections}, which heads of "
                f"{2 * turning} cannot; choose a width and a number of heads that divide evenly"
            )
        shared = [int(section) for section in scaled]
        text.rope_parameters = {**text.rope_parameters, "mrope_section": shared}
    text.hidden_size = size.hidden
    text.intermediate_size = size.intermediate
    text.num_hidden_layers = size.layers
    text.num_attention_heads = size.heads
    text.num_key_value_heads = size.kv_heads
    text.tie_word_embeddings = True
    if getattr(text, "head_dim", None) is not None:
        text.head_dim = size.hidden // size.heads
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: size.layers]
