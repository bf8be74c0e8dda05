"""Files of EAGLE drafters: specdec's own, and those of other engines to read."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal

from specdec.drafters.checkpoint_files import find, read_tensors, write_checkpoint
from specdec.drafters.eagle_head import EagleConfig, EagleHead
from specdec.drafters.eagle_layer import assemble
from specdec.drafters.eagle_raw import is_raw, read_raw
from specdec.drafters.eagle_speculators import is_speculators, read_speculators
from specdec.files import read_json, refuse_endless

SETTINGS = "drafter.json"
KIND = "eagle"
FORMAT_VERSION = 1
_OWN = ("format_version", "kind", "eagle")

Form = Literal["native", "raw", "speculators"]


def save_eagle(
    head: EagleHead, path: str | PathLike[str], *, verifier: str, **facts: Any
) -> None:  # Any: JSON values
    """Save a head: ``model.safetensors``, then ``drafter.json``.

    Args:
        head: in any type.
        path: the folder, made if need be; what was there is replaced.
        verifier: name of the verifier that it was trained for.
        **facts: JSON values to record: data, seeds, figures.

    Raises:
        ValueError: a fact has a name that the format uses.
    """
    if taken := [name for name in _OWN if name in facts]:
        raise ValueError(f"facts cannot be named {', '.join(taken)}")
    settings = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "verifier": verifier,
        "eagle": head.config.to_dict(),
        **facts,
    }
    write_checkpoint(Path(path), head.state_dict(), SETTINGS, settings)


def eagle_form(path: str | PathLike[str]) -> Form | None:
    """Which form of an EAGLE drafter lies in a folder or under a hub id, as its settings tell.

    Raises:
        ValueError: its settings are no JSON.
    """
    form, _ = _recognise(str(path))
    return form


def read_eagle(
    path: str | PathLike[str], *, verifier_layers: int | None = None
) -> tuple[EagleHead, dict[str, Any]]:  # Any: JSON values
    """Read a head of any form, on the CPU, in the type that it was saved in.

    Args:
        path: a folder, or a hub id.
        verifier_layers: layers of the verifier's text tower, for checkpoints that do not say which
            of them they read.

    Returns:
        The head, and what is known of it: ``verifier`` (None if it was not recorded), the facts it
        was saved with, and ``form`` if it is that of other engines.

    Raises:
        ValueError: no head lies there, it is incomplete or damaged, or not one that specdec runs.
    """
    where = str(path)
    form, settings = _recognise(where)
    if form is None:
        raise ValueError(
            f"{where} holds no EAGLE drafter: neither a {SETTINGS} of kind {KIND!r} nor a "
            "config.json of an EAGLE-3 checkpoint"
        )
    if form == "native":
        return _read_native(where, settings)
    read = read_raw if form == "raw" else read_speculators
    head, verifier = read(where, settings, read_tensors(where), verifier_layers)
    return head, {"verifier": verifier, "form": form}


def _recognise(path: str) -> tuple[Form | None, dict[str, Any]]:
    if own := find(path, SETTINGS):
        settings = read_json(own)
        head = settings.get("eagle")
        refuse_endless(own, head if isinstance(head, dict) else {})
        return ("native" if settings.get("kind") == KIND else None), settings
    if foreign := find(path, "config.json"):
        settings = read_json(foreign)
        refuse_endless(foreign, settings)
        if is_speculators(settings):
            return "speculators", settings
        if is_raw(settings):
            return "raw", settings
    return None, {}


def _read_native(path: str, settings: dict[str, Any]) -> tuple[EagleHead, dict[str, Any]]:
    version = settings.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: drafter format {version}, this specdec reads {FORMAT_VERSION}")
    if not isinstance(settings.get("eagle"), dict):
        raise ValueError(f"{path}: {SETTINGS} lacks the settings of the head, 'eagle'")
    try:
        config = EagleConfig.from_dict(settings["eagle"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    head = assemble(path, config, read_tensors(path))
    facts = {name: value for name, value in settings.items() if name not in _OWN}
    return head, {"verifier": None, **facts}
