"""The drafter that an option names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.commands.checkpoint import LOADING_ERRORS, stored_config
from specdec.commands.errors import UserError, reason

if TYPE_CHECKING:
    import torch

    from specdec.interfaces import Drafter, VerifierSpec


def pick_drafter(name: str, spec: VerifierSpec, device: torch.device | str) -> Drafter | None:
    """The drafter that `--drafter` means, checked against the verifier.

    Args:
        name: `ngram`, `self_pruned`, `none` or the folder of a saved drafter or language model.
        spec: the verifier's.
        device: where a drafter's model is put.

    Raises:
        UserError: there is none of that name, or it does not fit.
    """
    from safetensors import SafetensorError

    from specdec.drafters import (
        NgramDrafter,
        SelfPrunedDrafter,
        TextOnlyDrafter,
        VisionPrunedDrafter,
        load_drafter,
    )

    if name == "none":
        return None
    drafter: Drafter = SelfPrunedDrafter() if name == "self_pruned" else NgramDrafter()
    if name not in ("ngram", "self_pruned"):
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(
                f"--drafter {name}: no such folder; expected the folder of a saved drafter or of a "
                "causal language model, ngram, self_pruned or none"
            )
        stored_config(folder)
        try:
            drafter = load_drafter(folder)
        except (SafetensorError, *LOADING_ERRORS) as error:
            raise UserError(f"--drafter {name} cannot be loaded: {reason(error)}") from error
        if isinstance(drafter, (TextOnlyDrafter, VisionPrunedDrafter)):
            network: Any = drafter.model  # transformers wraps `to` without its signature
            network.to(device)
    try:
        drafter.check(spec)
    except ValueError as error:
        raise UserError(f"--drafter {name} does not fit: {reason(error)}") from error
    return drafter
