"""Checkpoints: what is loaded is what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specdec.training import checkpoint


def test_an_optimizer_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    """Integer keys turned into strings, moments shared with the weights, a step count that is
    lost.
    """

    def steps(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, first: int) -> None:
        for step in range(first, first + 3):
            torch.manual_seed(step)
            layer(torch.randn(5, 4)).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, resumed = (torch.nn.Linear(4, 3) for _ in range(2))
    resumed.load_state_dict(straight.state_dict())
    optimizers = [torch.optim.AdamW(layer.parameters(), 0.1) for layer in (straight, resumed)]
    steps(straight, optimizers[0], 0)
    steps(resumed, optimizers[1], 0)
    file = tmp_path / "state.safetensors"
    checkpoint.save(file, {"layer": resumed.state_dict(), "opt": optimizers[1].state_dict()})
    steps(straight, optimizers[0], 3)
    state = checkpoint.load(file)
    again = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(again.parameters(), 0.5)
    again.load_state_dict(state["layer"])
    optimizer.load_state_dict(state["opt"])
    steps(again, optimizer, 3)
    assert torch.equal(again.weight, straight.weight)


def test_nesting_comes_back(tmp_path: Path) -> None:
    state = {"a": {1: [torch.arange(3), None, 2.5]}, "b": "text", "c": {}, "d": True}
    file = tmp_path / "state.safetensors"
    checkpoint.save(file, state)
    back = checkpoint.load(file)
    assert torch.equal(back["a"][1][0], torch.arange(3))
    assert back["a"][1][1:] == [None, 2.5]
    assert {name: back[name] for name in "bcd"} == {"b": "text", "c": {}, "d": True}
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_failed_save_leaves_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    checkpoint.save(file, {"step": 1})
    with pytest.raises(TypeError):
        checkpoint.save(file, {"step": object()})
    assert checkpoint.load(file) == {"step": 1}
