"""The raw form of EAGLE-3 checkpoints, which SGLang and vLLM read.

Its tensors are named as in :class:`EagleHead`. The layers it reads stand in two places, and mean
two things: vLLM looks at the top of the config first, where id k is the input of layer k,
``hidden_states[k]`` in transformers; SGLang looks into ``eagle_config``, where id k is the output
of layer k, ``hidden_states[k + 1]``. Both are written, each as its reader means it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from specdec.drafters.checkpoint_files import write_checkpoint
from specdec.drafters.eagle_export import VerifierFacts, cast, refuse_unportable
from specdec.drafters.eagle_head import EagleConfig, EagleHead
from specdec.drafters.eagle_layer import (
    assemble,
    complete_tables,
    layer_geometry,
    layer_settings,
    legacy_rope,
    own_names,
)

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
IDS = "eagle_aux_hidden_state_layer_ids"

Engine = Literal["vllm", "sglang"]


def is_raw(settings: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a raw EAGLE-3 checkpoint."""
    architectures = settings.get("architectures")
    named = isinstance(architectures, list) and any(n in ARCHITECTURES for n in architectures)
    return named or "draft_vocab_size" in settings


def read_raw(
    path: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    verifier_layers: int | None,
) -> tuple[EagleHead, str | None]:
    """The head, and its verifier's name where that was recorded.

    Raises:
        ValueError: it is incomplete, or not of a kind that EagleHead is.
    """
    eagle = settings.get("eagle_config") or {}
    if not eagle.get("use_aux_hidden_state", True):
        raise ValueError(f"{path}: use_aux_hidden_state = False is not EAGLE-3")
    geometry = layer_geometry(path, settings)
    state = own_names(tensors)
    config = EagleConfig(
        **geometry,
        draft_vocab_size=settings.get("draft_vocab_size") or geometry["vocab_size"],
        target_hidden_size=settings.get("target_hidden_size") or geometry["hidden_size"],
        layers=_layers(path, settings.get(IDS), eagle.get(IDS), verifier_layers),
        norm_before_residual=bool(settings.get("norm_before_residual", False)),
        own_embeddings="embed_tokens.weight" in state,
    )
    complete_tables(path, config, state)
    return assemble(path, config, state), (settings.get("specdec") or {}).get("verifier")


def default_layers(path: str, verifier_layers: int | None) -> tuple[int, ...]:
    """The hidden states that engines take where a checkpoint does not say which.

    Raises:
        ValueError: it takes the number of the verifier's layers to know.
    """
    if verifier_layers is None:
        raise ValueError(
            f"{path} does not say which layers of the verifier it reads ({IDS}); the number of the "
            "verifier's layers would tell"
        )
    return (2, verifier_layers // 2, verifier_layers - 3)


def export_raw(
    head: EagleHead,
    path: Path,
    verifier: VerifierFacts,
    *,
    engine: Engine,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that vLLM or SGLang loads as the draft model of ``verifier``.

    Args:
        head: with ``vision`` "hidden".
        path: the folder, made if need be.
        verifier: see :func:`specdec.drafters.eagle_export.read_verifier`.
        engine: who is to read it; vLLM can run a little more.
        dtype: of the weights; None keeps it.

    Raises:
        ValueError: the engine cannot run this head, or it is not for this verifier.
    """
    refuse_unportable(head, verifier)
    config = head.config
    if engine == "sglang":
        _refuse_for_sglang(config)
    tensors = cast(head, dtype)
    settings: dict[str, Any] = {  # Any: JSON values
        "architectures": [ARCHITECTURES[0]],
        **layer_settings(config, verifier.max_positions),
        **legacy_rope(config.rope_parameters),
        "torch_dtype": str(tensors["fc.weight"].dtype).removeprefix("torch."),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "norm_before_residual": config.norm_before_residual,
        IDS: list(config.layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            IDS: [layer - 1 for layer in config.layers],
        },
        "specdec": {"verifier": verifier.name},
    }
    write_checkpoint(path, tensors, "config.json", settings)


def _refuse_for_sglang(config: EagleConfig) -> None:
    if config.norm_before_residual:
        raise ValueError(
            "the head has norm_before_residual, which SGLang does not know and would leave out; "
            "vLLM runs it"
        )
    if config.own_embeddings and config.hidden_size == config.target_hidden_size:
        raise ValueError(
            "the head has embeddings of its own, and SGLang puts the verifier's in their place "
            "where both are as wide; vLLM runs it"
        )
    if 0 in config.layers:
        raise ValueError("the head reads the verifier's embeddings, which SGLang does not give")


def _layers(
    path: str, top: list[int] | None, nested: list[int] | None, verifier_layers: int | None
) -> tuple[int, ...]:
    """The layers as transformers counts hidden states."""
    if top:
        return tuple(top)
    if not nested:
        return default_layers(path, verifier_layers)
    if nested[0] == 1:  # of (1, L / 2 - 1, L - 4), outputs of layers
        return tuple(layer + 1 for layer in nested)
    warnings.warn(
        f"{path}: {IDS} = {nested} can mean inputs or outputs of layers; read as inputs, which are "
        f"transformers' hidden states of these numbers. {IDS} at the top of its config says so.",
        stacklevel=4,
    )
    return tuple(nested)
