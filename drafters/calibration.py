"""How probable it is that a drafted token is accepted, by the drafter's own probability of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any  # JSON values

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probability that a token is accepted, which the drafter gives the probability q:

        sigmoid(slope · logit(q) + shift)

    The identity until it has been measured (``specdec distill`` does).
    """

    slope: float = 1.0
    shift: float = 0.0

    def log_accepted(self, log_q: Tensor) -> Tensor:
        """Its logarithm, of the logarithm of q; any shape."""
        if self.slope == 1.0 and self.shift == 0.0:
            return log_q
        logit = log_q - torch.log1p(-log_q.exp().clamp_max(1 - 1e-6))
        return torch.nn.functional.logsigmoid(self.slope * logit + self.shift)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """The inverse of :meth:`to_dict`; ``None`` is the identity.

        Raises:
            ValueError: these are no finite numbers, or more probable tokens would be accepted less.
        """
        if values is None:
            return cls()
        pair = [values.get("slope"), values.get("shift")] if isinstance(values, dict) else []
        numbers = [each for each in pair if isinstance(each, (int, float)) and math.isfinite(each)]
        if len(numbers) != 2 or numbers[0] <= 0:
            raise ValueError(
                f"calibration {values}: expected a slope above 0 and a shift, finite numbers"
            )
        return cls(*numbers)
