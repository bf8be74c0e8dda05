"""Costs of steps, measured on models of random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from specdec.drafters import SelfPrunedDrafter, load_drafter
from specdec.eval import filled as filling
from specdec.eval import suite
from specdec.eval.filled import Filled
from specdec.eval.graphs import FixedForward, graph_times
from specdec.eval.known_configs import known_config
from specdec.eval.random_models import random_eagle, random_model, toy
from specdec.eval.step_costs import DraftTime, StepCosts, StepTime, measure_costs

COSTS = StepCosts(
    "model",
    "drafter",
    64,
    (StepTime(1, 32, 1, 4.0), StepTime(1, 32, 5, 6.0), StepTime(2, 32, 1, 5.0)),
    (DraftTime(1, 32, 1, 1.0), DraftTime(1, 32, 4, 2.5)),
)


@cache
def small() -> PreTrainedModel:
    return random_model(toy(known_config("qwen2.5-vl-7b")), torch.float32, "cpu")


def test_everything_asked_for_is_measured() -> None:
    """A batch, context, tree or depth that is left out, or a plain step that is not among them."""
    costs = measure_costs(
        small(),
        contexts=[20, 40],
        nodes=[3, 2],
        batches=[1, 2],
        rounds=1,
        drafter=random_eagle(small()),
        depths=[1, 2],
    )
    cases = [(batch, context) for context in (20, 40) for batch in (1, 2)]
    assert [step[:3] for step in costs.steps] == [(*c, nodes) for c in cases for nodes in (1, 2, 3)]
    assert [each[:3] for each in costs.drafts] == [(*c, depth) for c in cases for depth in (1, 2)]
    assert all(each.ms > 0 for each in (*costs.steps, *costs.drafts))
    # Keys and values of 3 layers, 2 heads, 16 components of 4 bytes each.
    assert costs.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4


@pytest.mark.parametrize("folder", [suite.DRAFTER, suite.EAGLES[1]], ids=["text-only", "shared"])
def test_saved_drafters_are_timed(folder: Any) -> None:
    """Drafters that leave the image out, or read it in the verifier's pages, get no text."""
    model, _ = suite.load_verifier(suite.MODEL)
    drafter = load_drafter(folder, model)
    seen = []
    propose = type(drafter).propose

    class Watched(type(drafter)):  # type: ignore[misc]  # a class known only now
        def propose(self, batch: Any) -> Any:
            trees = propose(self, batch)
            seen.append({len(tree) for tree in trees})
            return trees

    drafter.__class__ = Watched
    costs = measure_costs(
        model, contexts=[60], nodes=[3], batches=[2], rounds=1, drafter=drafter, depths=[2],
        visual=32,
    )  # fmt: skip
    assert [draft.depth for draft in costs.drafts] == [2]
    assert seen == [{3}] * 3


def test_drafters_that_need_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="self_pruned reads prompts with their pixels"):
        measure_costs(
            small(), contexts=[20], nodes=[2], batches=[1], rounds=1, drafter=SelfPrunedDrafter()
        )


@torch.no_grad()
def test_copied_texts_are_read_like_the_first() -> None:
    """Keys copied to the wrong pages, or texts that share pages and are read only once."""
    filled = Filled(small(), 37, 3)
    tokens = filled.nodes(2)[0].tokens
    batch = [nodes._replace(tokens=tokens) for nodes in filled.nodes(2)]
    logits = filled.step(batch).unflatten(0, (3, 2))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=0)
    pages = [page for sequence in filled.sequences for page in sequence.pages]
    assert len(pages) == len(set(pages))
    assert [sequence.length for sequence in filled.sequences] == [37] * 3


def test_keys_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "free_bytes", lambda device: 1 << 20)
    with pytest.raises(ValueError, match=r"keys of 64 requests with 20 tokens .* 0\.0 GiB are"):
        Filled(small(), 20, 64)


def test_between_measured_points_lies_a_line_and_beyond_nothing() -> None:
    """Costs made up for trees that nobody timed."""
    assert COSTS.step_ms(1, 32, 3) == 5.0
    assert COSTS.draft_ms(1, 32, 2) == 1.5
    assert COSTS.draft_ms(1, 32, 0) == 0.0
    with pytest.raises(ValueError, match="nodes 9 is wanted, nodes 1 to 5 measured"):
        COSTS.step_ms(1, 32, 9)
    with pytest.raises(ValueError, match="4 requests with 32 tokens: nodes 1 is wanted, nodes non"):
        COSTS.step_ms(4, 32, 1)


class Watch(TorchDispatchMode):
    """Notes what a CUDA graph cannot hold: numbers read back, tensors made of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "item"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "llava-1.5-7b"])
@torch.no_grad()
def test_a_fixed_forward_repeats_itself_without_the_host(name: str) -> None:
    """Nodes that move on from run to run; something that is read back or made on the host within a
    forward, which a graph would keep as it was at capture, or could not hold at all."""
    model = random_model(toy(known_config(name)), torch.float32, "cpu")
    filled = Filled(model, 37, 2)
    forward = FixedForward(filled, 3)
    first: Tensor = forward().clone()
    watch = Watch()
    with watch:
        again = forward()
    assert torch.equal(first, again)
    assert watch.seen == []
    tokens = [nodes.tokens for nodes in forward._batch]
    forward.close()
    batch = [n._replace(tokens=t) for n, t in zip(filled.nodes(3), tokens, strict=True)]
    with watch:
        torch.testing.assert_close(filled.step(batch), first, atol=1e-5, rtol=0)
    assert watch.seen != []  # it does see what an ordinary forward brings along


def test_a_cpu_has_no_graphs() -> None:
    """A time that is no graph's, under its name."""
    found = graph_times(Filled(small(), 20, 1), 2, 1)
    assert found == {"graph": None, "graph_refused": "there are no CUDA graphs on cpu"}


@pytest.mark.gpu
def test_a_graph_gives_what_the_forward_gives() -> None:
    """A capture that the runtime does not allow, or that reads stale page tables."""
    model = random_model(toy(known_config("llava-1.5-7b")), torch.float32, "cuda")
    found = graph_times(Filled(model, 37, 2), 3, 2)
    assert found["graph"] is not None, found
