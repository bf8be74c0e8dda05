"""The drafter that an option names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specdec.commands.checkpoint import stored_config
from specdec.commands.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specdec.interfaces import Drafter


def pick_drafter(name: str, model: PreTrainedModel) -> Drafter | None:
    """The drafter that `--drafter` means, checked against the verifier.

    Args:
        name: `ngram`, `self_pruned`, `none` or the folder of a saved drafter or language model.
        model: the verifier, with weights or without.

    Raises:
        UserError: there is none of that name, or it does not fit.
    """
    from specdec.drafters import NgramDrafter, SelfPrunedDrafter, load_drafter
    from specdec.drafters.eagle_files import eagle_form
    from specdec.verifiers.spec import read_spec

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
        try:
            if eagle_form(folder) is None:
                stored_config(folder)
            drafter = load_drafter(folder, model)
        except (OSError, ValueError) as error:
            raise UserError(f"--drafter {name} cannot be loaded: {reason(error)}") from error
    try:
        drafter.check(read_spec(model))
    except ValueError as error:
        raise UserError(f"--drafter {name} does not fit: {reason(error)}") from error
    return drafter
