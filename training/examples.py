"""An answer as drafters learn from it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from specdec.training.features import Features


class Example(NamedTuple):
    """An answer of A tokens behind its prompt.

    ``tokens``: int64 ``(T,)``, prompt then answer, visual placeholders included. ``visual``: bool
    ``(T,)``. ``top_ids`` int64 and ``top_p`` fp32 ``(A, K)``: the verifier's K most probable tokens
    at each place of the answer, most probable first, at temperature 1.
    """

    tokens: Tensor
    prompt_length: int
    visual: Tensor
    top_ids: Tensor
    top_p: Tensor
    temperature: float
    task: str
    features: Features | None


def without_visual(example: Example) -> Example:
    """The answer as a drafter that sees no image reads it."""
    kept = ~example.visual
    return example._replace(
        tokens=example.tokens[kept],
        prompt_length=int(kept[: example.prompt_length].sum()),
        visual=example.visual[kept],
        features=None,
    )
