"""What SGLang and vLLM make of a raw EAGLE-3 folder, written a second time from their readers.

Every setting that one of them reads is read here, and nothing else.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

SETTINGS = {
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "torch_dtype",
    "draft_vocab_size",
    "target_hidden_size",
    "norm_before_residual",
    "eagle_aux_hidden_state_layer_ids",
    "eagle_config",
    "specdec",
}


class RawEagle(NamedTuple):
    """A folder that was read strictly."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


def read_strictly(folder: Path, *, embeddings: bool = False) -> RawEagle:
    """Read a folder and compare settings, names, shapes and types with what engines expect."""
    settings = json.loads((folder / "config.json").read_text())
    assert settings.keys() == SETTINGS
    assert settings["architectures"] == ["LlamaForCausalLMEagle3"]
    assert settings["model_type"] == "llama"
    assert settings["num_hidden_layers"] == 1
    assert settings["hidden_act"] == "silu"
    # True makes SGLang take the embeddings for the head.
    for off in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        assert settings[off] is False, off
    assert isinstance(settings["norm_before_residual"], bool)
    eagle = settings["eagle_config"]
    assert eagle.keys() == {"use_aux_hidden_state", "eagle_aux_hidden_state_layer_ids"}
    assert eagle["use_aux_hidden_state"] is True
    # vLLM: inputs of layers. SGLang: outputs of layers.
    assert hidden_states(settings, "vllm") == hidden_states(settings, "sglang")
    assert len(hidden_states(settings, "vllm")) == 3
    tensors = load_file(folder / "model.safetensors")
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    assert found == expected_tensors(settings, embeddings=embeddings)
    return RawEagle(settings, tensors)


def hidden_states(settings: dict[str, Any], engine: str) -> list[int]:
    """Which of transformers' hidden states of the verifier an engine takes."""
    name = "eagle_aux_hidden_state_layer_ids"
    if engine == "vllm":
        return list(settings[name])
    return [layer + 1 for layer in settings["eagle_config"][name]]


def expected_tensors(
    settings: dict[str, Any], *, embeddings: bool
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor."""
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]
    queries = settings["num_attention_heads"] * settings["head_dim"]
    keys = settings["num_key_value_heads"] * settings["head_dim"]
    draft, vocabulary = settings["draft_vocab_size"], settings["vocab_size"]
    weights = {
        "fc": (hidden, 3 * settings["target_hidden_size"]),
        "midlayer.input_layernorm": (hidden,),
        "midlayer.hidden_norm": (hidden,),
        "midlayer.post_attention_layernorm": (hidden,),
        "midlayer.self_attn.q_proj": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj": (hidden, queries),
        "midlayer.mlp.gate_proj": (inner, hidden),
        "midlayer.mlp.up_proj": (inner, hidden),
        "midlayer.mlp.down_proj": (hidden, inner),
        "norm": (hidden,),
        "lm_head": (draft, hidden),
        **({"embed_tokens": (vocabulary, hidden)} if embeddings else {}),
    }
    dtype = getattr(torch, settings["torch_dtype"])
    tables = {"d2t": ((draft,), torch.int64), "t2d": ((vocabulary,), torch.bool)}
    return {f"{name}.weight": (shape, dtype) for name, shape in weights.items()} | tables


def forward(raw: RawEagle, embeds: Tensor, states: Tensor) -> Tensor:
    """Logits over the verifier's vocabulary, ``(T, vocab)``, −inf where nothing is proposed.

    Args:
        raw: the folder.
        embeds: of tokens 1 … T, ``(T, hidden)``.
        states: the verifier's at tokens 0 … T − 1, ``(T, 3 * target_hidden)``.
    """
    settings, weights = raw
    layer = "midlayer."

    def project(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T

    def norm(name: str, x: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x / (mean + settings["rms_norm_eps"]).sqrt() * weights[f"{name}.weight"]

    fused = project("fc", states)
    normed = norm(f"{layer}hidden_norm", fused)
    x = torch.cat([norm(f"{layer}input_layernorm", embeds), normed], -1)
    size, group = settings["head_dim"], settings["num_attention_heads"]
    group //= settings["num_key_value_heads"]
    q, k, v = (project(f"{layer}self_attn.{name}_proj", x).split(size, -1) for name in "qkv")
    heads = []
    for number, query in enumerate(q):
        key, value = k[number // group], v[number // group]
        scores = _turned(settings, query) @ _turned(settings, key).T / math.sqrt(size)
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(later, -math.inf).softmax(-1) @ value)
    residual = normed if settings["norm_before_residual"] else fused
    mixed = residual + project(f"{layer}self_attn.o_proj", torch.cat(heads, -1))
    inner = norm(f"{layer}post_attention_layernorm", mixed)
    gate = project(f"{layer}mlp.gate_proj", inner)
    gated = gate / (1 + (-gate).exp()) * project(f"{layer}mlp.up_proj", inner)
    hidden = mixed + project(f"{layer}mlp.down_proj", gated)
    proposed = project("lm_head", norm("norm", hidden))
    logits = torch.full((len(embeds), settings["vocab_size"]), -math.inf)
    for number, offset in enumerate(weights["d2t"].tolist()):
        logits[:, number + offset] = proposed[:, number]
    return logits


def _turned(settings: dict[str, Any], x: Tensor) -> Tensor:
    """Turn ``x`` ``(T, D)`` by its places."""
    assert settings["rope_scaling"] is None
    half = x.shape[-1] // 2
    turned = torch.empty_like(x)
    for pair in range(half):
        angles = torch.arange(len(x)) / settings["rope_theta"] ** (2 * pair / x.shape[-1])
        one, other = x[:, pair], x[:, pair + half]
        turned[:, pair] = one * angles.cos() - other * angles.sin()
        turned[:, pair + half] = other * angles.cos() + one * angles.sin()
    return turned
