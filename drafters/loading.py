"""Saved drafters: a transformers model folder with a ``drafter.json`` beside the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from specdec.drafters.calibration import Calibration
from specdec.drafters.checkpoint_files import find, not_finite, refuse_hollow
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_files import eagle_form, read_eagle
from specdec.drafters.selection import check_ratio
from specdec.drafters.text_only import TextOnlyDrafter
from specdec.drafters.tokenizers import refuse_other_tokenizer
from specdec.drafters.vision_pruned import VisionPrunedDrafter
from specdec.files import read_json, refuse_endless
from specdec.interfaces import Drafter
from specdec.runtime import whole_embeddings

CONFIG_NAME = "drafter.json"
FORMAT_VERSION = 1


def load_drafter(path: str | PathLike[str], model: PreTrainedModel | None = None) -> Drafter:
    """Load a drafter and check that it fits ``model``.

    Args:
        path: a folder, or a hub id, with a saved drafter, with an EAGLE-3 head in the form of other
            engines, or with any causal language model.
        model: the verifier that it is for; it is put on that model's device. One without weights,
            on the meta device, will do to see whether it fits.

    Raises:
        ValueError: nothing loadable lies there, its kind or format is unknown, or it does not fit.
    """
    there = Path(path).exists()
    if not there and not _may_be_hub_id(path):
        raise ValueError(
            f"{path}: there is no such folder; expected that of a saved drafter or of a causal "
            "language model, or a hub id, owner/name"
        )
    try:
        return _load(path, model)
    # Files of strangers make loaders raise whatever they stumble over, with no word of the file.
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        told = f"{type(error).__name__}: {error}"
        where = "" if there else "there is no such folder here, and from the hub "
        raise ValueError(f"{path}: {where}no drafter could be loaded: {told}") from error


def _may_be_hub_id(path: str | PathLike[str]) -> bool:
    """Whether it may name something elsewhere, and not only a path that is wrong."""
    parts = Path(path).parts
    if not isinstance(path, str) or path.startswith((".", "/", "~")) or not 1 <= len(parts) <= 2:
        return False
    return len(parts) == 1 or not Path(parts[0]).exists()


def _load(path: str | PathLike[str], model: PreTrainedModel | None) -> Drafter:
    if eagle_form(path) is not None:
        return _eagle(path, model)
    if model is not None:
        refuse_other_tokenizer(str(path), model.name_or_path)
    settings = _settings(Path(path))
    kind, version = settings.get("kind"), settings.get("format_version")
    load = _LOADERS.get(str(kind))
    if load is None:
        known = ", ".join(map(repr, ("eagle", *_LOADERS)))
        raise ValueError(f"{path}: drafter kind {kind!r} is not known; there is {known}")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: drafter format {version}, this specdec reads {FORMAT_VERSION}")
    return load(path, settings, model)


# A folder or hub id, the contents of its drafter.json, and the verifier if there is one.
Loader = Callable[[str | PathLike[str], Mapping[str, Any], PreTrainedModel | None], Drafter]


def _load_text_only(
    path: str | PathLike[str], settings: Mapping[str, Any], verifier: PreTrainedModel | None
) -> Drafter:
    calibration = _calibration(path, settings)
    return TextOnlyDrafter(
        _load_model(AutoModelForCausalLM, path, verifier), calibration=calibration
    )


def _load_vision_pruned(
    path: str | PathLike[str], settings: Mapping[str, Any], verifier: PreTrainedModel | None
) -> Drafter:
    ratio = settings.get("ratio")
    if not isinstance(ratio, (int, float)):
        raise ValueError(f"{path}: {CONFIG_NAME} says ratio={ratio!r}; expected a number in [0, 1]")
    calibration = _calibration(path, settings)
    model = _load_model(AutoModelForImageTextToText, path, verifier)
    return VisionPrunedDrafter(model, ratio, calibration=calibration)


_LOADERS: Mapping[str, Loader] = {
    "text_only": _load_text_only,
    "vision_pruned": _load_vision_pruned,
}


def _calibration(path: str | PathLike[str], settings: Mapping[str, Any]) -> Calibration:
    try:
        return Calibration.from_dict(settings.get("calibration"))
    except ValueError as error:
        raise ValueError(f"{path}: {CONFIG_NAME}: {error}") from error


def _load_model(
    kind: Any,  # one of transformers' auto classes, which have no common type
    path: str | PathLike[str],
    verifier: PreTrainedModel | None,
) -> PreTrainedModel:
    """The model in a folder, complete, where the verifier is."""
    if config := find(str(path), "config.json"):
        refuse_endless(config, read_json(config))
    with torch.device("meta"):
        bare = kind.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    refuse_hollow(str(path), bare)
    loaded: Any = kind.from_pretrained(
        path,
        dtype="auto",
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, report = loaded  # a pair, which the annotation does not say
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path}: the weights lack {', '.join(missing)}; transformers would have filled them "
            "with random numbers"
        )
    if odd := not_finite(model.state_dict()):
        raise ValueError(f"{path}: {odd} has values that are no numbers, or infinite")
    model.eval()
    drafter: PreTrainedModel = _beside(model, verifier)
    return drafter


def _eagle(path: str | PathLike[str], model: PreTrainedModel | None) -> EagleDrafter:
    """An EAGLE-3 head in any of the forms that are known."""
    layers: int | None = None
    embeddings: Any = None
    if model is not None:
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        embeddings = whole_embeddings(model)
    head, known = read_eagle(path, verifier_layers=layers)
    return EagleDrafter(_beside(head, model), embeddings, calibration=_calibration(path, known))


_Network = TypeVar("_Network", bound=nn.Module)


def _beside(network: _Network, verifier: PreTrainedModel | None) -> _Network:
    """The network where the verifier is, unless that is nowhere."""
    if verifier is None or verifier.device.type == "meta":
        return network
    return network.to(verifier.device)


def save_drafter(
    model: PreTrainedModel, path: str | PathLike[str], *, verifier: str, **facts: Any
) -> None:
    """Save a text-only drafter so that :func:`load_drafter` finds it.

    Args:
        model: the causal language model.
        path: the folder to write.
        verifier: name of the verifier that it was trained for.
        **facts: JSON values to record: data, seeds, figures.
    """
    model.save_pretrained(path)
    _write(path, "text_only", verifier=verifier, **facts)


def save_vision_pruned(
    model: PreTrainedModel,
    path: str | PathLike[str],
    *,
    verifier: str,
    ratio: float,
    **facts: Any,
) -> None:
    """Save a vision-language model so that :func:`load_drafter` makes a
    :class:`VisionPrunedDrafter` of it.

    Args:
        model: the small vision-language model.
        path: the folder to write.
        verifier: name of the verifier that it is for.
        ratio: share of visual tokens that it keeps.
        **facts: JSON values to record: data, seeds, figures.
    """
    model.save_pretrained(path)
    _write(path, "vision_pruned", verifier=verifier, ratio=check_ratio(ratio), **facts)


def _write(path: str | PathLike[str], kind: str, **facts: Any) -> None:
    settings = {"format_version": FORMAT_VERSION, "kind": kind, **facts}
    (Path(path) / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n")


def _settings(path: Path) -> dict[str, Any]:
    """The contents of ``drafter.json``; any causal language model without one drafts text-only."""
    file = path / CONFIG_NAME
    if not file.is_file():
        return {"format_version": FORMAT_VERSION, "kind": "text_only"}
    return read_json(file)
