"""The form in which the speculators package keeps EAGLE-3 heads, which vLLM serves by itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    own_names,
    refuse_others,
)
from specdec.drafters.eagle_raw import IDS, default_layers

VERSION = "0.9.0"  # the package's release whose form this is
# The verifier's own, which training keeps beside the head.
_VERIFIERS = ("verifier_lm_head.weight", "verifier_norm.weight")


def is_speculators(settings: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of the speculators package."""
    return "speculators_model_type" in settings


def read_speculators(
    path: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    verifier_layers: int | None,
) -> tuple[EagleHead, str | None]:
    """The head, and its verifier's name.

    Raises:
        ValueError: it is incomplete, or not of a kind that EagleHead is.
    """
    kind = settings["speculators_model_type"]
    if kind != "eagle3":
        raise ValueError(f"{path}: speculators_model_type {kind!r} is not 'eagle3'")
    layer = settings.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ValueError(f"{path}: its config lacks transformer_layer_config")
    refuse_others(path, settings)
    if "norm_before_residual" not in settings:
        warnings.warn(
            f"{path} does not say norm_before_residual; read as false, as speculators does, while "
            "vLLM takes it to be true",
            stacklevel=3,
        )
    # The package takes a layer without a type for one of Qwen3.
    geometry = layer_geometry(path, {"model_type": "qwen3", **layer})
    kept = {name: tensor for name, tensor in tensors.items() if name not in _VERIFIERS}
    state = own_names(kept)
    ids = settings.get(IDS)
    config = EagleConfig(
        **geometry,
        draft_vocab_size=settings.get("draft_vocab_size", 32000),
        target_hidden_size=settings.get("target_hidden_size") or geometry["hidden_size"],
        layers=tuple(ids) if ids else default_layers(path, verifier_layers),
        norm_before_residual=bool(settings.get("norm_before_residual", False)),
        own_embeddings="embed_tokens.weight" in state,
    )
    complete_tables(path, config, state)
    verifier = (settings.get("speculators_config") or {}).get("verifier") or {}
    return assemble(path, config, state), verifier.get("name_or_path")


def export_speculators(
    head: EagleHead,
    path: Path,
    verifier: VerifierFacts,
    *,
    tokens: int = 3,
    dtype: torch.dtype | None = None,
    embeddings: Tensor | None = None,
) -> None:
    """Write a folder that ``vllm serve`` takes by itself.

    Args:
        head: with ``vision`` "hidden".
        path: the folder, made if need be.
        verifier: see :func:`specdec.drafters.eagle_export.read_verifier`.
        tokens: that vLLM drafts unless told otherwise.
        dtype: of the weights; None keeps it.
        embeddings: the verifier's, ``(vocab, hidden)``, to write along for a head that reads them.
            vLLM does without; the package does not: it leaves what is missing uninitialised.

    Raises:
        ValueError: other engines cannot run this head, or it is not for this verifier.
    """
    refuse_unportable(head, verifier)
    config = head.config
    tensors = cast(head, dtype)
    if embeddings is not None and not config.own_embeddings:
        tensors["embed_tokens.weight"] = embeddings.to(tensors["fc.weight"].dtype)
    if config.draft_vocab_size == config.vocab_size:  # the form has no tables then
        del tensors["d2t"], tensors["t2d"]
    renamed = {
        f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name: t
        for name, t in tensors.items()
    }
    dtype_name = str(tensors["fc.weight"].dtype).removeprefix("torch.")
    rope = dict(config.rope_parameters)
    settings: dict[str, Any] = {  # Any: JSON values
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "verifier": {
                "name_or_path": verifier.name,
                "architectures": list(verifier.architectures),
            },
        },
        "transformer_layer_config": {
            **layer_settings(config, verifier.max_positions),
            "rope_parameters": rope,
            "rope_theta": rope["rope_theta"],  # for vLLM with transformers 4
            "dtype": dtype_name,
        },
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        IDS: list(config.layers),
        "tie_word_embeddings": False,
        "dtype": dtype_name,
    }
    write_checkpoint(path, renamed, "config.json", settings)
