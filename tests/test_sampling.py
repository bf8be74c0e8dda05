"""Sampling helpers: robustness against rounding, and exact laws of sibling draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from specdec.sampling import (
    children_from_uniforms,
    draw,
    normalised,
    residual,
    sample_children,
    total_variation,
)
from specdec.tree import Siblings

ALMOST_ONE = 1 - 2.0**-53
Q = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])

weights = st.lists(
    st.one_of(st.just(0.0), st.floats(2.0**-100, 1.0, width=32)), min_size=1, max_size=12
).filter(any)


@given(p=weights, u=st.one_of(st.floats(0, 1), st.sampled_from([0.0, ALMOST_ONE, 1.0])))
def test_draw_is_the_inverse_of_the_cdf(p: list[float], u: float) -> None:
    """A token of zero probability must never come out: it may be one that a grammar forbids."""
    token = draw(torch.tensor(p), u)
    assert p[token] > 0
    cdf = np.cumsum(np.array(p, dtype=np.float64))
    reached = np.nonzero(cdf > u * cdf[-1])[0]
    assert token == (reached[0] if len(reached) else np.nonzero(np.array(p))[0][-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draw_at_the_ends_of_a_large_vocabulary(dtype: torch.dtype) -> None:
    """float32 cumulative sums saturate long before 152 000 tokens; the ends show it first."""
    p = torch.zeros(152_064, dtype=dtype)
    p[1000:-1000] = 1.0
    assert draw(p, 0.0) == 1000
    assert draw(p, 0.5) == 152_064 // 2
    assert draw(p, ALMOST_ONE) == 152_064 - 1001
    assert draw(p, 1.0) == 152_064 - 1001


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_draw_refuses_what_is_no_distribution(bad: float) -> None:
    with pytest.raises(ValueError, match="all 3 probabilities are zero"):
        draw(torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="nan or infinite"):
        draw(torch.tensor([0.5, bad, 0.5]), 0.1)


def test_normalised_leaves_empty_rows_empty() -> None:
    rows = normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_residual() -> None:
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    q = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64)
    kept = p.clone()
    assert residual(p, q).tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=1e-15)
    assert torch.equal(p, kept), "the caller's p was changed"


def test_residual_of_equal_distributions_is_the_target() -> None:
    """0 / 0 would hand nan to the next draw."""
    p = normalised(torch.rand(1000))
    assert torch.equal(residual(p, p.clone()), p)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_residual_of_different_widths_counts_missing_tokens_as_zero(width: int) -> None:
    p = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    q = torch.full((width,), 1 / width, dtype=torch.float64)
    wide_p, wide_q = torch.zeros(5).double(), torch.zeros(5).double()
    wide_p[:3], wide_q[:width] = p, q
    expected = (wide_p - wide_q).clamp_min(0)
    assert torch.allclose(residual(p, q), (expected / expected.sum())[:3], atol=1e-15)


def sibling_law(q: torch.Tensor, k: int, mode: Siblings) -> dict[tuple[int, ...], float]:
    """Probability of every tuple of siblings, from the definition of the mode."""
    law = {}
    for siblings in itertools.product(range(len(q)), repeat=k):
        left, probability = q.double().clone(), 1.0
        for token in siblings:
            probability *= float(left[token] / left.sum())
            if mode == "without_replacement":
                left[token] = 0.0
        law[siblings] = probability
    return law


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
def test_siblings_follow_their_law(mode: Siblings) -> None:
    """Every ordered triple has its exact probability.

    Both exact binomial tails of 125 triples at 4e-12 each: false-failure at most 1e-9.
    """
    trials, k = 200_000, 3
    generator = torch.Generator().manual_seed(11)
    drawn = sample_children(Q.expand(trials, -1), k, mode, generator)
    key = (drawn * torch.tensor([25, 5, 1])).sum(-1)
    counts = torch.bincount(key, minlength=125).numpy()
    law = np.array(list(sibling_law(Q, k, mode).values()))
    assert law.sum() == pytest.approx(1)
    tail = np.minimum(binom.cdf(counts, trials, law), binom.sf(counts - 1, trials, law))
    assert tail.min() > 4e-12, (counts, law * trials)


def test_an_unsorted_law_would_be_noticed() -> None:
    """The power of the test above: siblings sorted by probability are not drawn siblings."""
    drawn = sample_children(
        Q.expand(200_000, -1), 2, "without_replacement", torch.Generator().manual_seed(11)
    )
    first = (drawn.min(-1).values == 0).sum()  # ids of Q are in order of probability
    assert binom.sf(int(first) - 1, 200_000, 0.5) < 1e-11


def test_rows_are_independent_of_their_batch() -> None:
    q = torch.rand(7, 50)
    uniforms = torch.rand(7, 4, dtype=torch.float64)
    modes: tuple[Siblings, Siblings] = ("with_replacement", "without_replacement")
    for mode in modes:
        together = children_from_uniforms(q, uniforms, mode)
        alone = [children_from_uniforms(row, u, mode) for row, u in zip(q, uniforms, strict=True)]
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("mode", ["deterministic", "without_replacement"])
def test_rows_that_run_out_of_tokens_end_in_minus_one(mode: Siblings) -> None:
    """A token of zero probability drafted as filler has q = 0 and would be wrong to accept."""
    q = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    drawn = sample_children(q, 6, mode, torch.Generator().manual_seed(1)).tolist()
    assert sorted(drawn[0][:2]) == [1, 3]
    assert drawn[0][2:] == [-1] * 4
    assert sorted(drawn[1][:4]) == [0, 1, 2, 3]
    assert drawn[1][4:] == [-1] * 2
    assert drawn[2] == [-1] * 6


def test_deterministic_siblings_are_the_most_probable() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert sample_children(Q, 3, "deterministic", generator).tolist() == [0, 2, 3]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement", "deterministic"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_shapes_and_arguments(mode: Siblings, k: int) -> None:
    q = torch.rand(2, 9)
    kept = q.clone()
    for rows in (q, q[0]):
        drawn = sample_children(rows, k, mode, torch.Generator().manual_seed(5))
        again = sample_children(rows, k, mode, torch.Generator().manual_seed(5))
        assert drawn.shape == (*rows.shape[:-1], k)
        assert drawn.dtype == torch.int64
        assert torch.equal(drawn, again)
    assert torch.equal(q, kept), "the caller's q was changed"


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mode='sorted'; known: deterministic"):
        sample_children(Q, 2, "sorted")  # type: ignore[arg-type]  # what users type


def test_a_drafter_that_yields_nan_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="nan or infinite"):
        sample_children(torch.tensor([0.5, float("nan")]), 1, "with_replacement")


def test_total_variation_of_other_widths() -> None:
    """Tokens that one of the two lacks must count, on either side, and once."""
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    q = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]])
    assert total_variation(p, q).tolist() == [0.25, 0.0]
    assert total_variation(q, p).tolist() == [0.25, 0.0]
    assert total_variation(p[0], q[0]).tolist() == 0.25
    apart = total_variation(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert apart.dtype == torch.float64
    assert apart.tolist() == [[1.0]]
    assert p.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    same = total_variation(p.double(), p.double().clone())
    assert same.tolist() == [0.0, 0.0]
