"""Values of options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec.commands.errors import UserError

if TYPE_CHECKING:
    import torch

    from specdec.engine import Adaptive
    from specdec.tree import Shape


class Precision(StrEnum):
    """The numbers that a model computes with."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    AUTO = "auto"

    @property
    def dtype(self) -> torch.dtype | str:
        """For `from_pretrained`; `auto` is what the checkpoint was saved in."""
        import torch

        dtypes = {
            Precision.BF16: torch.bfloat16,
            Precision.FP16: torch.float16,
            Precision.FP32: torch.float32,
        }
        return dtypes.get(self, "auto")


# What commands that answer a prompt have in common.
ModelOption = Annotated[
    str,
    typer.Option(
        metavar="DIR", help="Folder of a transformers checkpoint; `demo` is the one shipped."
    ),
]
PromptOption = Annotated[str, typer.Option(help="What to ask.")]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="An image to ask about; may be given several times."),
]
DrafterOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|ngram|self_pruned|none",
        help="Who drafts: a saved drafter or language model with the same tokenizer, prompt "
        "look-up, the model itself with a part of the image, or nobody. Default: ngram, and for "
        "the demo model its own drafter.",
    ),
]
TreeOption = Annotated[
    str,
    typer.Option(
        metavar="K|A,B,…|dynamic:N|auto",
        help="Largest draft: a line of K tokens; or A children, B children of each of them, …; or "
        "the N tokens that the drafter is surest of; or as much as is seen to pay.",
    ),
]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="0 takes the most probable token, more samples.")
]
TopPOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Sample from the most probable tokens of this mass."),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Seed for sampling; random if not given.")
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Numbers to compute with; auto: as the checkpoint was saved.")
]
PixelsOption = Annotated[int, typer.Option(min=1, help="Largest image that is decoded, in pixels.")]
AcceptanceOption = Annotated[
    str,
    typer.Option(
        metavar="lossless|FILE",
        help="How drafts are accepted: as the model alone would answer, or by a policy file of "
        "`specdec calibrate`.",
    ),
]


def check_acceptance(text: str) -> str:
    """What `--acceptance` means, for `specdec.generate`.

    Raises:
        UserError: there is no such policy file.
    """
    if text != "lossless" and not Path(text).is_file():
        raise UserError(
            f"--acceptance {text}: no such file; expected lossless or a policy file, which "
            "`specdec calibrate` writes"
        )
    return text


def parse_tree(text: str) -> Shape | Adaptive:
    """The tree that `--tree` means, see :func:`specdec.choice.resolve_tree`.

    Raises:
        UserError: it means none, or one that is too large.
    """
    from specdec.choice import resolve_tree

    try:
        return resolve_tree(text)
    except ValueError as error:
        raise UserError(f"--tree {error}") from error
