"""What fields of a request do to logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.serving.decoding import Bias, Repeated, check_extra, generator, how, wanted_tokens
from specdec.serving.errors import ApiError
from specdec.serving.schema import ChatRequest


def request(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "a"}]
    return ChatRequest.model_validate({"model": "m", "messages": messages} | fields)


def test_what_was_said_costs_as_often_as_it_was_said() -> None:
    """Would catch a prompt that counts, a presence that counts twice, a frequency that counts
    once: token 1 was said twice and 2 once, 0 in the prompt only.
    """
    ids = torch.tensor([[0, 0, 1, 2, 1]])
    scores = Repeated(frequency=0.5, presence=0.25, prompt=2)(ids, torch.zeros(1, 4))
    assert scores.tolist() == [[0.0, -1.25, -0.75, 0.0]]
    nothing = Repeated(frequency=0.5, presence=0.25, prompt=5)(ids, torch.zeros(1, 4))
    assert nothing.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_biases_are_added() -> None:
    """Would catch a bias of another token, and one that changes the logits it was given."""
    logits = torch.ones(1, 4)
    assert Bias({3: 2.0, 0: -100.0})(torch.zeros(1, 1), logits).tolist() == [[-99.0, 1.0, 1.0, 3.0]]
    assert logits.tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_sampling_is_the_default_and_zero_is_greedy() -> None:
    """Would catch a model's own top_k or temperature in what a client left to the default."""
    assert how(request(), 1, 9) == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert how(request(temperature=0, top_p=0.5), 1, 9) == {"do_sample": False}
    asked = how(request(temperature=0.5, top_p=0.9, top_k=-1, presence_penalty=1), 1, 9)
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.5, 0.9, 0)
    assert len(asked["logits_processor"]) == 1


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_every_seed_is_one(seed: int) -> None:
    """Would catch a seed at the edge of its range at which the second sample crashes."""
    first, second = generator(seed, 0), generator(seed, 1)
    assert first is not None
    assert second is not None
    assert first.initial_seed() != second.initial_seed()
    assert generator(None, 0) is None


def test_what_makes_no_difference_is_ignored() -> None:
    """Would catch clients being refused for what they always send, or a value that asks for
    nothing being taken for one that does.
    """
    check_extra(request(metadata={"a": "b"}, store=True, service_tier="auto", audio=None))
    check_extra(request(response_format={"type": "text"}, tool_choice="auto", best_of=1))
    check_extra(request(parallel_tool_calls=False))
    for name, value in {"echo": 0, "best_of": True, "functions": [], "best_p": 0.1}.items():
        with pytest.raises(ApiError, match=f"^{name} is not supported"):
            check_extra(request(**{name: value}))


def test_the_newer_name_of_a_length_counts() -> None:
    """Would catch the older one winning, and a limit that lets more pass."""
    assert wanted_tokens(request(), 9) == 9
    assert wanted_tokens(request(max_tokens=3, max_completion_tokens=5), 9) == 5
    with pytest.raises(ApiError, match="max_completion_tokens=10 is more than the 9"):
        wanted_tokens(request(max_completion_tokens=10), 9)
