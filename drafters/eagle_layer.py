"""What the foreign forms of an EAGLE-3 checkpoint have in common: a Llama layer and its tables.

Both describe the layer by settings named as in transformers' ``LlamaConfig``. Knows nothing of the
rest of their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specdec.drafters.eagle_head import EagleConfig, EagleHead

# Kinds of positions whose frequencies depend on the length the verifier was trained with.
_STRETCHED = ("yarn", "llama3")
# What a head can have elsewhere and EagleHead has not: the setting, and the values that mean none.
_WITHOUT: Mapping[str, tuple[Any, ...]] = {
    "num_hidden_layers": (1,),
    "hidden_act": ("silu",),
    "model_type": ("llama",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "bias": (False, None),
    "qkv_bias": (False, None),
    "norm_before_fc": (False, None),
    "fc_norm": (False, None),
    "use_aux_norm": (False, None),
    "norm_output": (False, None),
    "quantization_config": (None,),
    "layer_types": (["full_attention"], [], None),
}


def refuse_others(path: str, settings: Mapping[str, Any]) -> None:
    """Refuse a head that computes something that EagleHead does not.

    Raises:
        ValueError: naming the setting.
    """
    for name, plain in _WITHOUT.items():
        if name in settings and settings[name] not in plain:
            raise ValueError(
                f"{path}: {name} = {settings[name]!r} is not supported; EAGLE heads here have "
                f"{name} = {plain[0]!r}"
            )


def layer_geometry(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`EagleConfig` that the settings of the layer give.

    Raises:
        ValueError: one is missing, or says what EagleHead cannot do.
    """
    refuse_others(path, settings)
    wanted = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if missing := [name for name in wanted if settings.get(name) is None]:
        raise ValueError(f"{path}: its config lacks {', '.join(missing)}")
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    return {
        **{name: settings[name] for name in wanted},
        "num_key_value_heads": settings.get("num_key_value_heads") or heads,
        "head_dim": settings.get("head_dim") or hidden // heads,
        "rms_norm_eps": settings.get("rms_norm_eps", 1e-6),
        "rope_parameters": read_rope(settings),
    }


def layer_settings(config: EagleConfig, max_positions: int) -> dict[str, Any]:
    """The inverse of :func:`layer_geometry`, without the positions.

    Args:
        config: of the head.
        max_positions: tokens that the verifier can read.
    """
    return {
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": False,
    }


def read_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters``, from the legacy ``rope_theta`` and ``rope_scaling`` if need be."""
    legacy = dict(settings.get("rope_scaling") or {})
    parameters = {**legacy, **(settings.get("rope_parameters") or {})}
    kind = parameters.pop("type", None)
    parameters["rope_type"] = parameters.get("rope_type") or kind or "default"
    if parameters["rope_type"] == "mrope":  # Qwen2-VL's name of a default with sections
        parameters["rope_type"] = "default"
    parameters.setdefault("rope_theta", settings.get("rope_theta") or 10000.0)
    if settings.get("partial_rotary_factor") is not None:
        parameters.setdefault("partial_rotary_factor", settings["partial_rotary_factor"])
    if parameters["rope_type"] in _STRETCHED and settings.get("max_position_embeddings"):
        parameters.setdefault(
            "original_max_position_embeddings", settings["max_position_embeddings"]
        )
    return parameters


def legacy_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` as ``rope_theta``, ``rope_scaling`` and, if there is one,
    ``partial_rotary_factor``.
    """
    scaling = dict(parameters)
    legacy = {"rope_theta": scaling.pop("rope_theta")}
    if "partial_rotary_factor" in scaling:
        legacy["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    plain = set(scaling) <= {"rope_type"} and scaling.get("rope_type", "default") == "default"
    return {**legacy, "rope_scaling": None if plain else scaling}


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that EagleHead gives them."""
    layer = "layers.0."
    return {
        f"midlayer.{name.removeprefix(layer)}" if name.startswith(layer) else name: tensor
        for name, tensor in tensors.items()
    }


def complete_tables(path: str, config: EagleConfig, state: dict[str, Tensor]) -> None:
    """Add the tables of tokens that may be left out, ``d2t`` and ``t2d``, to ``state``.

    Raises:
        ValueError: ``d2t`` is left out though it is needed.
    """
    size = config.draft_vocab_size
    if "d2t" not in state:
        if size != config.vocab_size:
            raise ValueError(
                f"{path} proposes {size} of {config.vocab_size} tokens and lacks d2t, which says "
                "which"
            )
        state["d2t"] = torch.zeros(size, dtype=torch.long)
    if "t2d" not in state:
        spoken = _spoken(path, config, state["d2t"])
        state["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
        state["t2d"][spoken] = True


def assemble(path: str, config: EagleConfig, state: dict[str, Tensor]) -> EagleHead:
    """The head of ``config`` with exactly these tensors, in the type they were saved in.

    Raises:
        ValueError: tensors are missing or left over, of another shape, or the tables disagree.
    """
    # Of a size that anybody may have written down: made only once the tensors are known to have it.
    with torch.device("meta"):
        expected = EagleHead(config).state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if left_over := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{path} has tensors that no EAGLE head has: {', '.join(left_over)}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(state[name].shape)}, its config says "
                f"{tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise ValueError(f"{path}: {name} is of type {state[name].dtype}, not {tensor.dtype}")
    tables = {name: state[name].to(expected[name].dtype) for name in ("d2t", "t2d")}
    marked = torch.zeros_like(tables["t2d"])
    marked[_spoken(path, config, tables["d2t"])] = True
    if not torch.equal(marked, tables["t2d"]):
        raise ValueError(f"{path}: d2t and t2d do not mean the same tokens")
    head = EagleHead(config)
    head.load_state_dict({**state, **tables}, assign=True)
    return head.eval()


def _spoken(path: str, config: EagleConfig, d2t: Tensor) -> Tensor:
    """The tokens that ``d2t`` means, int64 ``(draft_vocab,)``, once they can be right."""
    if len(d2t) != config.draft_vocab_size:
        raise ValueError(
            f"{path}: d2t is ({len(d2t)},), its config says ({config.draft_vocab_size},)"
        )
    spoken = d2t.long() + torch.arange(len(d2t))
    if len(spoken) and (int(spoken.min()) < 0 or int(spoken.max()) >= config.vocab_size):
        raise ValueError(
            f"{path}: d2t leads to token {int(spoken.max())} of {config.vocab_size}; it has to be "
            "the difference between a token and its number in lm_head, not the token"
        )
    if (spoken.diff() <= 0).any():
        raise ValueError(f"{path}: the tokens of d2t are not in ascending order")
    return spoken
