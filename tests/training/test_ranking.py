from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from specdec.training.ranking import auroc, figure


def by_pairs(score: Tensor, label: Tensor, weight: Tensor | None = None) -> float:
    """Every pair of the two kinds, one by one."""
    weights = [1.0] * len(score) if weight is None else weight.tolist()
    won = pairs = 0.0
    for i, j in itertools.product(range(len(score)), repeat=2):
        if label[i] and not label[j]:
            counts = weights[i] * weights[j]
            pairs += counts
            won += counts * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return won / pairs


def test_hand_computed_area_with_ties() -> None:
    """Ties counted as wins, or as losses. Positives 3, 2; negatives 2, 1: 3 beats both, 2 ties with
    one and beats the other: 3.5 of 4."""
    score, label = torch.tensor([2.0, 3.0, 1.0, 2.0]), torch.tensor([True, True, False, False])
    assert float(auroc(score, label)) == 3.5 / 4
    assert float(auroc(-score, label)) == 0.5 / 4


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_area_is_the_share_of_pairs(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (40,), generator=generator).float()
    label = torch.rand(40, generator=generator) < 0.3
    weight = torch.randint(3, (40,), generator=generator)
    assert float(auroc(score, label)) == pytest.approx(by_pairs(score, label), abs=1e-12)
    found = auroc(score, label, torch.stack([weight, torch.ones_like(weight)]))
    assert found.tolist() == pytest.approx(
        [by_pairs(score, label, weight), by_pairs(score, label)], abs=1e-12
    )


def test_one_kind_only_has_no_area() -> None:
    score = torch.tensor([1.0, 2.0])
    assert auroc(score, torch.tensor([True, True])).isnan()
    for label in (torch.tensor([True, True]), torch.tensor([False, False])):
        assert all(math.isnan(value) for value in figure(score, label, torch.tensor([0, 1])))
    assert math.isnan(figure(score[:0], label[:0], torch.tensor([])).auroc)


def test_interval_draws_groups_not_tokens() -> None:
    """Tokens of one answer say the same thing again and again; drawn one by one they would make the
    interval look narrow. Here each is repeated 25 times, which must change nothing."""
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(60, generator=generator) < 0.5
    score = label + torch.randn(60, generator=generator)
    group = torch.arange(60)
    once = figure(score, label, group, resamples=200)
    often = figure(*(each.repeat_interleave(25) for each in (score, label, group)), resamples=200)
    assert often == pytest.approx(once, abs=1e-12)
    assert once.low < once.auroc < once.high
    assert once.high - once.low > 0.1
