"""Logistic regression with an L2 penalty, with hidden units if wanted, and frequencies that never
decrease.

Full-batch and in float64: there are few features, and the result must not depend on an optimiser's
settings. Knows nothing of what features and labels mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import gelu

from specdec.training.ranking import auroc

PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0)


class Scorer(Protocol):
    """What has been fitted."""

    def score(self, features: Tensor) -> Tensor:
        """Log-odds ``(T,)`` of features ``(T, F)``, float32."""


_S = TypeVar("_S", bound=Scorer)


class Line(NamedTuple):
    """A score ``features @ weight + bias``: float32 ``(F,)`` and ``()``. Standardisation is folded
    in.
    """

    weight: Tensor
    bias: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Log-odds ``(T,)`` of features ``(T, F)``."""
        return features.float() @ self.weight + self.bias


class Curve(NamedTuple):
    """A line and M hidden units beside it, ``out · gelu(units · x + offset)``: float32 ``(M, F)``,
    ``(M,)`` and ``(M,)``. Standardisation is folded in.
    """

    line: Line
    units: Tensor
    offset: Tensor
    out: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Log-odds ``(T,)`` of features ``(T, F)``."""
        bent = gelu(features.float() @ self.units.T + self.offset) @ self.out
        return self.line.score(features) + bent


def fit(features: Tensor, label: Tensor, penalty: float) -> Line:
    """Logistic regression on standardised features.

    Args:
        features: ``(T, F)``, any float dtype.
        label: bool ``(T,)``, of both kinds.
        penalty: half of it times the squared length of the weights is added to the mean loss.

    Raises:
        ValueError: all labels are alike.
    """
    return fit_curve(features, label, penalty, units=0).line


def fit_curve(
    features: Tensor, label: Tensor, penalty: float, *, units: int = 16, seed: int = 0
) -> Curve:
    """The same with hidden units, whose weights are penalised alike. There may be several minima;
    ``seed`` settles from where one is looked for.
    """
    if bool(label.all()) or not bool(label.any()):
        raise ValueError(
            f"all of {len(label)} tokens to learn from are of one kind; more questions are needed"
        )
    x, y = features.double(), label.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    # A feature that never changes says nothing; its weight is pulled to 0.
    scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, torch.inf)
    x = (x - mean) / scale
    width = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    straight, bias = x.new_zeros(width), x.new_zeros(())
    inner = torch.randn(units, width, generator=generator, dtype=x.dtype) / width**0.5
    offset = x.new_zeros(units)
    out = torch.randn(units, generator=generator, dtype=x.dtype) / max(units, 1) ** 0.5
    weights = (straight, inner, out)
    every = [tensor.requires_grad_() for tensor in (*weights, bias, offset)]
    optimiser = torch.optim.LBFGS(
        every, max_iter=500, history_size=20, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = x @ straight + bias + gelu(x @ inner.T + offset) @ out
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        for weight in weights:
            value = value + penalty / 2 * weight.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found, within = straight.detach() / scale, inner.detach() / scale
    line = Line(found.float(), (bias.detach() - found @ mean).float())
    offset = (offset.detach() - within @ mean).float()
    return Curve(line, within.float(), offset, out.detach().float())


def choose(
    fit: Callable[[Tensor, Tensor, float], _S],
    features: Tensor,
    label: Tensor,
    validating: Tensor,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[float, _S]:
    """The penalty with which what is fitted to the others ranks the ``validating`` ones best, and
    what was fitted. ``validating``: bool ``(T,)``.
    """
    tried = []
    for penalty in penalties:
        found = fit(features[~validating], label[~validating], penalty)
        area = float(auroc(found.score(features[validating]), label[validating]))
        tried.append((area, penalty, found))
    _, penalty, found = max(tried, key=lambda each: each[0])
    return penalty, found


def quantile_table(score: Tensor, label: Tensor, edges: int = 33) -> tuple[Tensor, Tensor]:
    """How often the label is true around quantiles of a score: never decreasing, the closest such
    frequencies in least squares.

    Args:
        score: ``(T,)``.
        label: bool ``(T,)``.
        edges: how many quantiles.

    Returns:
        the quantiles, strictly increasing, and the frequencies, both float32 ``(K,)``, 2 ≤ K ≤
        ``edges``.

    Raises:
        ValueError: the score is the same everywhere.
    """
    # Of equal scores the true ones come first, so that they are pooled with the others.
    order = label.int().argsort(descending=True)
    order = order[score[order].argsort(stable=True)]
    score, frequency = score[order].float(), isotonic(label[order].double())
    places = torch.linspace(0, len(score) - 1, edges).round().long()
    at = score[places].unique()  # sorted
    if len(at) < 2:
        raise ValueError("a score that is the same for all tokens tells none apart")
    return at, frequency[torch.searchsorted(score, at)].float().clamp(0, 1)


def isotonic(values: Tensor) -> Tensor:
    """The closest sequence in least squares that never decreases: neighbours that are out of order
    are pooled. float64 ``(T,)``.
    """
    means, sizes = list[float](), list[int]()
    for value in values.tolist():
        means.append(value)
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mean, size = means.pop(), sizes.pop()
            sizes[-1] += size
            means[-1] += (mean - means[-1]) * size / sizes[-1]
    return torch.tensor(means, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
