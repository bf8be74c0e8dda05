"""Acceptance statistics: definitions, merging, and the JSON that other tools read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.stats import AcceptanceStats, StepTimes

steps = st.integers(0, 6).flatmap(
    lambda depth: st.tuples(
        st.integers(depth, 4 * depth), st.integers(0, depth), st.just(depth)
    )  # drafted, accepted, draft_depth
)


def recorded(drafts: list[tuple[int, int, int]]) -> AcceptanceStats:
    stats = AcceptanceStats()
    for drafted, accepted, depth in drafts:
        stats.record_step(drafted, accepted, depth)
    return stats


def test_definitions() -> None:
    """τ counts the bonus token and every step, a step that drafted nothing included."""
    stats = recorded([(6, 2, 2), (6, 0, 2), (0, 0, 0), (4, 3, 4)])
    assert stats.num_spec_steps == 4
    assert stats.num_draft_tokens == 16
    assert stats.num_accepted_draft_tokens == 5
    assert stats.acceptance_histogram == {2: 1, 0: 2, 3: 1}
    assert stats.num_accepted_tokens_per_pos == [2, 2, 1, 0]
    assert stats.mean_acceptance_length == pytest.approx(1 + 5 / 4)
    assert stats.draft_acceptance_rate == pytest.approx(5 / 16)


def test_nothing_recorded_divides_by_nothing() -> None:
    stats = AcceptanceStats()
    assert stats.mean_acceptance_length == 1.0
    assert stats.draft_acceptance_rate == 0.0
    assert stats.times.overhead == 0.0


def test_overhead_is_the_share_outside_the_forwards() -> None:
    """Prefill is no part of a step: counting it would hide the loop's own cost behind it."""
    times = StepTimes(prefill=9.0, draft=1.0, verify=2.0, accept=0.5, commit=0.5, model_forward=3.0)
    assert times.step == 4.0
    assert times.overhead == pytest.approx(0.25)


@given(first=st.lists(steps, max_size=8), second=st.lists(steps, max_size=8))
def test_merging_equals_recording_everything(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]
) -> None:
    merged, other = recorded(first), recorded(second)
    before = other.to_dict()
    merged.merge(other)
    assert merged == recorded(first + second)
    assert other.to_dict() == before


@given(drafts=st.lists(steps, max_size=8))
def test_counts_agree_with_one_another(drafts: list[tuple[int, int, int]]) -> None:
    stats = recorded(drafts)
    histogram = stats.acceptance_histogram
    assert sum(histogram.values()) == stats.num_spec_steps
    assert sum(k * v for k, v in histogram.items()) == stats.num_accepted_draft_tokens
    assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_draft_tokens
    assert len(stats.num_accepted_tokens_per_pos) == max((d for _, _, d in drafts), default=0)


def test_json_round_trip() -> None:
    """JSON turns the histogram's integer keys into text; they have to come back as integers."""
    stats = recorded([(3, 1, 3), (3, 3, 3)])
    stats.num_generated_tokens, stats.num_relaxed_tokens = 7, 2
    stats.epsilon_allowed, stats.bound_spent = 1.5, 0.25
    stats.num_prompt_tokens, stats.num_cached_tokens, stats.num_preemptions = 20, 16, 1
    stats.times.merge(StepTimes(draft=0.25, model_forward=0.125))
    stats.times.merge(StepTimes(draft=0.25, prefill=1.0))
    text = json.dumps(stats.to_dict())
    assert AcceptanceStats.from_dict(json.loads(text)) == stats
    assert json.loads(text)["times"]["draft"] == 0.5


def test_names_are_those_of_vllm() -> None:
    """Dashboards read these names; a renamed one would show as zero."""
    assert set(AcceptanceStats().to_dict()) == {
        "mean_acceptance_length",
        "draft_acceptance_rate",
        "num_relaxed_tokens",
        "epsilon_allowed",
        "bound_spent",
        "acceptance_histogram",
        "num_spec_steps",
        "num_plain_steps",
        "num_draft_tokens",
        "num_accepted_draft_tokens",
        "num_accepted_tokens_per_pos",
        "num_generated_tokens",
        "num_prompt_tokens",
        "num_cached_tokens",
        "num_preemptions",
        "times",
    }


def test_reading_what_others_wrote() -> None:
    partial = {"num_spec_steps": 2, "acceptance_histogram": {"1": 2}, "draft_acceptance_rate": 0.5}
    assert AcceptanceStats.from_dict(partial).acceptance_histogram == {1: 2}
    with pytest.raises(ValueError, match=r"unknown statistics \['num_steps'\]"):
        AcceptanceStats.from_dict({"num_steps": 2})


def test_read_stats_share_nothing_with_their_source() -> None:
    values = recorded([(2, 1, 2)]).to_dict()
    AcceptanceStats.from_dict(values).record_step(2, 2, 2)
    assert values["num_accepted_tokens_per_pos"] == [1, 0]
