"""A request's text in the verifier's pages, as a drafter may read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from specdec.cache import SequenceKV
from specdec.runtime.paged_model import PagedModel


class Source(NamedTuple):
    """Attributes:
    paged: the verifier's model over its pages.
    sequence: the request's; its scratch nodes are the verifier's. To be read only.
    offset: int64 ``(R,)``: position = logical index + offset, for tokens behind the prompt.
    visual: logical places of the prompt's visual tokens, in order.
    """

    paged: PagedModel
    sequence: SequenceKV
    offset: Tensor
    visual: Sequence[int]
