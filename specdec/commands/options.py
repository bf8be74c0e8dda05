"""Values of options that several commands take."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING

from specdec.commands.errors import UserError

if TYPE_CHECKING:
    import torch

    from specdec.tree import Topology

MAX_TREE = 256  # nodes; a step over more costs more than any of them can save


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


def parse_tree(text: str) -> Topology:
    """The tree that `--tree` means: `4` is a chain of four tokens, `3,2,1` children per level.

    Raises:
        UserError: it means none, or one that is too large.
    """
    from specdec.tree import chain, static

    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) < (0 if len(widths) == 1 else 1):
        raise UserError(
            f"--tree {text}: expected a number of tokens to draft in a line, such as 4, "
            "or the children per level, such as 3,2,1"
        )
    levels = [1] * widths[0] if len(widths) == 1 and widths[0] <= MAX_TREE else widths
    nodes = sum(math.prod(levels[:depth]) for depth in range(1, len(levels) + 1))
    if nodes > MAX_TREE:
        raise UserError(f"--tree {text} has {nodes} drafted tokens, at most {MAX_TREE} are allowed")
    return chain(widths[0]) if len(widths) == 1 else static(widths)
