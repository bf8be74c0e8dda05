"""Trained estimators of visual reliance as a folder: tensors in safetensors, facts in JSON.

Knows no model: whether a folder is for this one shows by the fingerprint that the caller brings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from specdec.files import read_json
from specdec.reliance import Attention, Combined, Layer, Probe, Reliance

Kind = Literal["probe", "attention", "combined"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TENSORS, FACTS = "reliance.safetensors", "reliance.json"
VERSION = 1
# The tensors that each kind is made of.
_PARTS: Mapping[Kind, tuple[str, ...]] = {
    "probe": ("probe.weight", "probe.bias"),
    "attention": ("attention.weight", "attention.bias", "attention.edges", "attention.frequencies"),
    "combined": ("combined.weight", "combined.bias"),
}
_FACTS: Mapping[str, type] = {
    **dict.fromkeys(("fingerprint", "verifier", "drafter", "tensors_sha256"), str),
    **dict.fromkeys(("hidden_size", "probe_units", "layers", "heads"), int),
    "kinds": list,
}
_LAYER = tuple(f"probe.layer.{name}" for name in Layer._fields)
_TRAIN = "`specdec train-probe` trains one for this model"


def save_reliance(
    folder: str | PathLike[str],
    probe: Probe,
    combined: Combined | None,
    *,
    fingerprint: str,
    verifier: str,
    drafter: str,
    layers: int,
    heads: int,
    facts: Mapping[str, Any],  # JSON values
) -> None:
    """Write the files, each under another name until it is complete.

    Args:
        folder: made if it is not there.
        probe: the probe.
        combined: the combination with it, and so the attention that is part of it; ``None`` for a
            verifier that gives no visual mass.
        fingerprint: of the verifier.
        verifier: its name.
        drafter: the drafter's name.
        layers: of the verifier's text tower.
        heads: query heads of all its attention layers together; 0 without visual mass.
        facts: figures, and how it was trained.
    """
    tensors = {"probe.weight": probe.weight, "probe.bias": probe.bias}
    if probe.layer is not None:
        tensors |= zip(_LAYER, probe.layer, strict=True)
    if combined is not None:
        attention = combined.attention
        tensors |= {
            "attention.weight": attention.weight,
            "attention.bias": attention.bias,
            "attention.edges": attention.edges,
            "attention.frequencies": attention.frequencies,
            "combined.weight": combined.weight,
            "combined.bias": combined.bias,
        }
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    settings = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "verifier": verifier,
        "drafter": drafter,
        "hidden_size": len(probe.weight),
        "probe_units": 0 if probe.layer is None else len(probe.layer.out),
        "layers": layers,
        "heads": heads,
        "kinds": ["probe"] if combined is None else list(_PARTS),
        # Of two files that are replaced one after the other, one may be of an earlier training.
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        **facts,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in (
        (TENSORS, data),
        (FACTS, (json.dumps(settings, indent=2) + "\n").encode()),
    ):
        unfinished = Path(folder) / f"{name}.tmp"
        unfinished.write_bytes(content)
        unfinished.replace(Path(folder) / name)


def load_reliance(
    folder: str | PathLike[str],
    kind: Kind = "probe",
    *,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
) -> Reliance:
    """A trained estimator.

    Args:
        folder: what ``specdec train-probe`` wrote.
        kind: "probe", "attention" or "combined".
        fingerprint: of the model that it is to be used with, from
            :func:`specdec.verifiers.fingerprint.fingerprint`; ``None`` asks no questions.
        device: where its tensors are put.

    Raises:
        ValueError: there is no such kind, it is not there, its files are not what they say, or it
            was trained for another model.
    """
    if kind not in KINDS:
        raise ValueError(f"reliance {kind!r} is not known; known: {', '.join(KINDS)}")
    settings = read_facts(folder)
    if kind not in settings["kinds"]:
        raise ValueError(
            f"{folder} holds {', '.join(settings['kinds'])}, and {kind} was asked for; attention "
            "and combined take a verifier that gives visual mass"
        )
    if fingerprint not in (None, settings["fingerprint"]):
        raise ValueError(
            f"{folder} was trained for {settings['verifier']} with fingerprint "
            f"{settings['fingerprint'][:12]}, the model here has {str(fingerprint)[:12]}; {_TRAIN}"
        )
    tensors = {name: tensor.to(device) for name, tensor in _tensors(folder, settings).items()}
    layer = Layer(*(tensors[name] for name in _LAYER)) if settings["probe_units"] else None
    probe = Probe(tensors["probe.weight"], tensors["probe.bias"], layer)
    if kind == "probe":
        return probe
    try:
        attention = Attention(*(tensors[name] for name in _PARTS["attention"]))
    except ValueError as error:
        raise ValueError(f"{Path(folder) / TENSORS}: {error}; {_TRAIN}") from error
    if kind == "attention":
        return attention
    return Combined(probe, attention, *(tensors[name] for name in _PARTS["combined"]))


def read_facts(folder: str | PathLike[str]) -> dict[str, Any]:  # Any: JSON values
    """What is recorded beside the tensors.

    Raises:
        ValueError: nothing is there, or nothing that this release reads.
    """
    file = Path(folder) / FACTS
    try:
        settings = read_json(file)
    except OSError:
        raise ValueError(f"there is no {file}; {_TRAIN}") from None
    version = settings.get("version")
    if version != VERSION:
        raise ValueError(f"{file} is of version {version}, this specdec reads {VERSION}; {_TRAIN}")
    for name, kind in _FACTS.items():
        # True is an int to Python, and no number of anything.
        if not isinstance(settings.get(name), kind) or settings[name] is True:
            raise ValueError(f"{file} says {name} = {settings.get(name)!r:.60}; {_TRAIN}")
    if not set(map(str, settings["kinds"])) <= set(KINDS):
        raise ValueError(f"{file} is about {settings['kinds']!r:.60}; known: {', '.join(KINDS)}")
    return settings


def _tensors(folder: str | PathLike[str], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """All of them, of the right shapes.

    Raises:
        ValueError: they are not those that the facts are about.
    """
    file = Path(folder) / TENSORS
    try:
        data = file.read_bytes()
        tensors = load(data)
    except OSError:
        raise ValueError(f"there is no {file}; {_TRAIN}") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}; {_TRAIN}") from error
    if hashlib.sha256(data).hexdigest() != settings["tensors_sha256"]:
        raise ValueError(f"{file} is not the one that {FACTS} beside it was written for; {_TRAIN}")
    edges = tensors["attention.edges"].shape if "attention.edges" in tensors else (0,)
    hidden_size, units = settings["hidden_size"], settings["probe_units"]
    shapes: dict[str, tuple[int, ...]] = {"probe.weight": (hidden_size,)}
    shapes |= zip(_LAYER, ((units, hidden_size), (units,), (units,)), strict=True)
    shapes |= {"attention.weight": (settings["heads"],), "combined.weight": (3,)}
    shapes |= dict.fromkeys(("attention.edges", "attention.frequencies"), tuple(edges))
    parts = [_PARTS[kind] for kind in settings["kinds"]] + ([_LAYER] if units else [])
    for name in (name for part in parts for name in part):
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != shapes.get(name, ()):
            raise ValueError(
                f"{file}: {name} has shape {shape}, {FACTS} speaks of {shapes.get(name, ())}; "
                f"{_TRAIN}"
            )
        if tensors[name].dtype != torch.float32 or not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{file}: {name} is not of finite float32 numbers; {_TRAIN}")
    return tensors
