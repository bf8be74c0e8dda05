"""Decayed least squares of two numbers. Knows nothing of what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KEEP = 0.99  # weight of a measurement after the next one


class Fit:
    """What a part of steps takes: ``y = x₀ + x₁ · size``.

    Args:
        certain: how sure a guess is: inverse variances, in those of a measurement.
    """

    def __init__(self, certain: tuple[float, float]) -> None:
        self._certain = np.diag(certain)
        self._guess: NDArray[np.float64] = np.zeros(2)
        self._squares = np.zeros((2, 2))
        self._products = np.zeros(2)
        self._found: tuple[float, float] | None = None

    @property
    def weight(self) -> float:
        """Measurements; those of long ago count less."""
        return float(self._squares[0, 0])

    @property
    def found(self) -> tuple[float, float]:
        """The estimate. What is larger takes no less, or as large as possible would seem to pay."""
        if self._found is None:
            left = self._certain + self._squares
            right = self._certain @ self._guess + self._products
            at_all, more = np.linalg.solve(left, right).tolist()
            self._found = (at_all, more) if more >= 0 else (float(right[0] / left[0, 0]), 0.0)
        return self._found

    def guess(self, at_all: float, more: float) -> None:
        """What x is before anything is measured. It stays as the ridge of the regression, so that
        what is not varied for long returns to it instead of drifting.
        """
        self._guess = np.array([at_all, more])
        self._found = None

    def learn(self, size: float, y: float) -> None:
        """Take in a measurement."""
        x = np.array([1.0, size])
        self.fade(_KEEP)
        self._squares += np.outer(x, x)
        self._products += x * y

    def fade(self, keep: float) -> None:
        """Trust what was measured less."""
        self._squares *= keep
        self._products *= keep
        self._found = None
