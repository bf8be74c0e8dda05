from __future__ import annotations

import pytest
import torch

from specdec.training import logistic
from specdec.training.ranking import auroc


def test_a_known_direction_is_found() -> None:
    """Features on very different scales, one of them constant, and a known line behind the labels.

    20 000 samples leave an error of about 0.03 on weights of size one; 0.15 is five times that.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0])
    x = torch.randn(20_000, 4, generator=generator, dtype=torch.float64) * scale + 3 * scale
    x[:, 3] = 7.0
    truth = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    odds = ((x / scale - 3) * truth).sum(1) + 0.3
    label = torch.rand(len(x), generator=generator, dtype=torch.float64) < odds.sigmoid()
    line = logistic.fit(x, label, 1e-6)
    assert line.weight.dtype == torch.float32
    assert ((line.weight * scale).double() - truth).abs().max() < 0.15
    assert line.weight[3] == 0
    assert (line.score(x).double() - odds).abs().max() < 1.0
    shrunk = logistic.fit(x, label, 10.0)
    assert (shrunk.weight * scale).norm() < 0.2 * (line.weight * scale).norm()


def test_fit_is_at_the_minimum() -> None:
    """Against a solver that stops early: the gradient of the penalised loss is zero there."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    label = torch.rand(300, generator=generator) < 0.3
    line = logistic.fit(x, label, 0.1)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    weight = (line.weight.double() * x.std(0, correction=0)).requires_grad_()
    bias = line.bias.double() + line.weight.double() @ x.mean(0)
    logits = standard @ weight + bias
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label.double())
    loss = loss + 0.05 * weight.square().sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-5  # float32 weights


def test_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="all of 4 tokens to learn from are of one kind"):
        logistic.fit(torch.randn(4, 2), torch.ones(4, dtype=torch.bool), 1.0)


def test_hidden_units_find_what_no_line_can() -> None:
    """Kinds that differ in a sign's product. A line is as good as chance, 0.5; the features are far
    from standard, and what is returned takes them as they are."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2000, 3, generator=generator) * 50 + 20
    label = (x[:, 0] - 20) * (x[:, 1] - 20) > 0
    half = torch.arange(2000) < 1000
    for units, low, high in ((0, 0.4, 0.6), (8, 0.97, 1.0)):
        curve = logistic.fit_curve(x[half], label[half], 1e-3, units=units)
        area = float(auroc(curve.score(x[~half]), label[~half]))
        assert low <= area <= high
    again = logistic.fit_curve(x[half], label[half], 1e-3, units=8)
    assert torch.equal(again.units, curve.units)


def test_the_penalty_is_chosen_by_the_others() -> None:
    """Chosen on what was fitted, the weakest penalty would always win. Here there is noise in many
    features, so a strong one does better."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 80, generator=generator)
    label = x[:, 0] + 2 * torch.randn(200, generator=generator) > 0
    validating = torch.arange(200) % 2 == 0
    penalty, line = logistic.choose(logistic.fit, x, label, validating)
    assert penalty > logistic.PENALTIES[0]
    again = logistic.fit(x[~validating], label[~validating], penalty)
    assert torch.equal(line.weight, again.weight)


def test_isotonic_pools_what_is_out_of_order() -> None:
    values = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert logistic.isotonic(values).tolist() == [0.0] + [0.5] * 6 + [1.0]
    rising = torch.tensor([0.1, 0.2, 0.2, 0.9], dtype=torch.float64)
    assert logistic.isotonic(rising).tolist() == rising.tolist()


def test_isotonic_is_the_closest() -> None:
    """No other sequence of the same steps that never decreases is closer."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(12, generator=generator, dtype=torch.float64)
    found = logistic.isotonic(values)
    best = (found - values).square().sum()
    assert bool((found.diff() >= 0).all())
    for _ in range(500):
        other = found + 0.05 * torch.randn(12, generator=generator, dtype=torch.float64)
        other = other.cummax(0).values
        assert (other - values).square().sum() >= best - 1e-12


def test_quantile_table_says_how_often() -> None:
    """Frequencies of the wrong end, or a table that falls. 4 000 labels drawn with the frequency of
    their score: 0.1 is several times the error of a pooled block."""
    generator = torch.Generator().manual_seed(4)
    score = torch.rand(4000, generator=generator)
    label = torch.rand(4000, generator=generator) < score
    edges, frequencies = logistic.quantile_table(score, label, 9)
    assert edges.dtype == frequencies.dtype == torch.float32
    assert len(edges) == 9
    assert (edges[0], edges[-1]) == (score.min(), score.max())
    assert bool((edges.diff() > 0).all())
    assert bool((frequencies.diff() >= 0).all())
    assert (frequencies - edges).abs().max() < 0.1
    with pytest.raises(ValueError, match="the same for all"):
        logistic.quantile_table(torch.ones(5), torch.ones(5).bool())


@pytest.mark.parametrize("first", [0, 1, 2])
def test_equal_scores_have_one_frequency(first: int) -> None:
    """Which of them came first must not matter."""
    label = torch.arange(4) == first
    label[3] = True
    edges, frequencies = logistic.quantile_table(torch.tensor([1.0, 1.0, 1.0, 2.0]), label)
    assert edges.tolist() == [1.0, 2.0]
    assert frequencies.tolist() == pytest.approx([1 / 3, 1])
