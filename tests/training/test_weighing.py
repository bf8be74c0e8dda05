"""Weights of tokens by what depends on the image."""

from __future__ import annotations

import math

import pytest
import torch

from specdec.reliance import Probe
from specdec.training.answers import Teacher
from specdec.training.batches import EagleCollator
from specdec.training.weighing import ByReliance, by_reliance
from support import answers


def test_a_token_weighs_by_the_state_behind_the_one_before_it() -> None:
    """Read a place too early or too late, every weight is another one; the batch has them too."""
    example = answers.example("..ii..", answer=5, seed=3)
    assert example.features is not None
    probe = Probe(torch.linspace(-1, 1, answers.HIDDEN), torch.tensor(0.2))
    weigh = ByReliance(probe, 4.0)
    expected = []
    for place in range(example.prompt_length, len(example.tokens)):
        state = example.features.last[place - 1].float().tolist()
        score = sum(w * x for w, x in zip(probe.weight.tolist(), state, strict=True)) + 0.2
        expected.append(1 + 3 / (1 + math.exp(-score)))
    assert weigh(example).tolist() == pytest.approx(expected, rel=1e-5)
    batch = EagleCollator(answers.head().config, 1, weigh=weigh)([example])
    assert batch["weights"][:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert float(batch["total"]) == pytest.approx(sum(expected), rel=1e-5)


def test_without_a_probe_nothing_is_weighed(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=r"need a probe: .*train-probe"):
        by_reliance(teacher.model, 2.0)
