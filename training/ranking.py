"""How well a score tells two kinds of things apart. Knows nothing of what they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Figure(NamedTuple):
    """An area under the ROC curve with its 95 % interval; all nan where there is one kind only."""

    auroc: float
    low: float
    high: float


def auroc(score: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """How likely it is that a thing of the kind has a higher score than one that is not; ties count
    half.

    Args:
        score: ``(T,)``, any float dtype.
        label: bool ``(T,)``.
        weight: ``(..., T)``, how often each thing counts; ``None`` is once.

    Returns:
        float64 ``(...)``; nan where one of the kinds is missing.
    """
    weight = torch.ones(len(score)) if weight is None else weight
    order = score.argsort()
    _, place = score[order].unique_consecutive(return_inverse=True)
    weight = weight[..., order].double()
    positive, negative = weight * label[order], weight * ~label[order]
    groups = int(place[-1]) + 1 if len(place) else 0
    empty = weight.new_zeros((*weight.shape[:-1], groups))
    tied = place.expand_as(weight)
    wins = empty.scatter_add(-1, tied, positive)
    losses = empty.scatter_add(-1, tied, negative)
    below = losses.cumsum(-1) - losses / 2
    return (wins * below).sum(-1) / (positive.sum(-1) * negative.sum(-1))


def figure(
    score: Tensor, label: Tensor, group: Tensor, *, resamples: int = 1000, seed: int = 0
) -> Figure:
    """The area with a bootstrap interval that draws whole groups: tokens of one answer are not
    independent of each other.

    Args:
        score: ``(T,)``.
        label: bool ``(T,)``.
        group: int64 ``(T,)``: which group each thing belongs to.
        resamples: how many are drawn.
        seed: of the draws.
    """
    _, member = group.unique(return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    if count == 0 or bool(label.all()) or not bool(label.any()):
        return Figure(float("nan"), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    areas = []
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        weight = torch.bincount(drawn, minlength=count)[member]
        areas.append(auroc(score, label, weight))
    spread = torch.stack(areas)
    low, high = spread[~spread.isnan()].quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Figure(float(auroc(score, label)), low, high)
