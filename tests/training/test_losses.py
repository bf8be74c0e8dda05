"""Losses in chunks: what a dense double loop says, in a fraction of its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from specdec.training.losses import (
    Mixture,
    chunked_loss,
    divergence,
    target_of,
    top_divergence,
    top_loss,
)

MIXTURES: list[Mixture] = [{"tv": 1.0}, {"kl": 1.0}, {"ce": 1.0}, {"tv": 1.0, "ce": 0.1, "kl": 0.3}]


def _naive(student: Tensor, teacher: Tensor, spoken: list[int], mixture: Mixture) -> Tensor:
    """One row, from the definitions: q is zero wherever the drafter cannot speak."""
    p, said = teacher.softmax(-1), student.softmax(-1)
    q = torch.zeros_like(p)
    for number, token in enumerate(spoken):
        q = q.index_add(0, torch.tensor([token]), said[number : number + 1])
    loss = mixture.get("tv", 0.0) * (p - q).abs().sum() / 2
    if int(p.argmax()) in spoken:
        among = p[spoken] / p[spoken].sum()
        loss = loss - mixture.get("ce", 0.0) * q[int(p.argmax())].log()
        terms = [x * (x / y).log() for x, y in zip(among, said, strict=True)]
        loss = loss + mixture.get("kl", 0.0) * sum(terms, torch.zeros(()))
    return loss


def _case(drafts: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (7, drafts, 5), head (9, 5), teacher states (7, 6), head (13, 6), weights."""
    torch.manual_seed(0)
    hidden, head, states, teacher = (
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((7, drafts, 5), (9, 5), (7, 6), (13, 6))
    )
    weights = torch.rand(7, drafts, dtype=torch.float64) * (torch.rand(7, drafts) > 0.2)
    return hidden.requires_grad_(), head.requires_grad_(), states, teacher, weights


SPOKEN = [0, 1, 3, 4, 6, 7, 9, 11, 12]


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda m: "+".join(m))
@pytest.mark.parametrize("drafts", [1, 3])
def test_loss_and_gradients_against_the_dense_one(mixture: Mixture, drafts: int) -> None:
    """A chunk's border, a missing token of the vocabulary, or a weight that hits another row would
    show in the value or in a gradient. 1e-10: float64. The drafts share the verifier's logits.
    """
    hidden, head, states, teacher, weights = _case(drafts)
    wanted = sum(
        weights[row, draft]
        * _naive(hidden[row, draft] @ head.T, teacher @ states[row], SPOKEN, mixture)
        for row in range(7)
        for draft in range(drafts)
    )
    assert isinstance(wanted, Tensor)
    for chunk in (1, 3, None):
        loss = chunked_loss(
            hidden if drafts > 1 else hidden[:, 0],
            head,
            states,
            teacher,
            torch.tensor(SPOKEN),
            mixture,
            weights if drafts > 1 else weights[:, 0],
            chunk=chunk,
        )
        torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
        ours = torch.autograd.grad(3 * loss, (hidden, head), retain_graph=True)
        theirs = torch.autograd.grad(3 * wanted, (hidden, head), retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_loss() -> None:
    """Central differences; ``tv`` has corners, which random rows do not hit."""
    hidden, head, states, teacher, weights = _case()

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        mixture, spoken = {"tv": 1.0, "kl": 0.5}, torch.tensor(SPOKEN)
        return chunked_loss(hidden, head, states, teacher, spoken, mixture, weights, chunk=2)

    assert torch.autograd.gradcheck(loss, (hidden, head))


def test_a_head_of_several_layers_learns() -> None:
    """The norm before the matrix is part of the head; frozen weights get no gradient."""
    hidden, _, states, teacher, weights = _case()
    module = nn.Sequential(nn.RMSNorm(5), nn.Linear(5, 13)).double()
    module[1].bias.requires_grad_(False)
    learning = [each for each in module.parameters() if each.requires_grad]
    loss = chunked_loss(hidden, module, states, teacher, None, {"kl": 1.0}, weights, chunk=2)
    dense = divergence(module(hidden[:, 0]), target_of(states @ teacher.T, None), {"kl": 1.0})
    wanted = (dense * weights[:, 0]).sum()
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    for one, other in zip(learning, torch.autograd.grad(wanted, learning), strict=True):
        torch.testing.assert_close(one.grad, other)
    assert module[1].bias.grad is None


def test_a_soft_cap_is_the_verifiers() -> None:
    hidden, head, states, teacher, weights = _case()
    mixture, spoken = {"tv": 1.0}, torch.tensor(SPOKEN)
    loss = chunked_loss(hidden, head, states, teacher, spoken, mixture, weights, softcap=2.0)
    capped = 2 * torch.tanh(states @ teacher.T / 2)
    dense = divergence(hidden[:, 0] @ head.T, target_of(capped, spoken), mixture)
    torch.testing.assert_close(loss, (dense * weights[:, 0]).sum())


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda m: "+".join(m))
def test_most_probable_tokens_against_a_loop(mixture: Mixture) -> None:
    """The probability beyond the K tokens counts as one class. With all tokens given it is the
    whole divergence; 1e-4: the class that is left has no probability, but for a tiny one.
    """
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 10).double(), torch.randn(6, 10).double()
    p, ids = teacher.softmax(-1).topk(4)
    ours = top_divergence(student, ids, p, mixture)
    for row in range(6):
        q = student[row].softmax(-1)[ids[row]]
        full_p = torch.cat([p[row], 1 - p[row].sum()[None]])
        full_q = torch.cat([q, 1 - q.sum()[None]])
        wanted = mixture.get("tv", 0) * (full_p - full_q).abs().sum() / 2
        wanted = wanted + mixture.get("kl", 0) * (full_p * (full_p / full_q).log()).sum()
        wanted = wanted - mixture.get("ce", 0) * q[0].log()
        torch.testing.assert_close(ours[row], wanted, rtol=1e-6, atol=1e-8)
    p, ids = teacher.softmax(-1).topk(10)
    whole = divergence(student, target_of(teacher, None), mixture)
    torch.testing.assert_close(top_divergence(student, ids, p, mixture), whole, rtol=0, atol=1e-4)


def test_top_loss_in_chunks() -> None:
    hidden, _, _, _, weights = _case()
    head = nn.Linear(5, 13, bias=False).double()
    p, ids = torch.randn(7, 13).double().softmax(-1).topk(3)
    mixture = {"ce": 0.5, "kl": 0.5}
    wanted = (top_divergence(head(hidden[:, 0]), ids, p, mixture) * weights[:, 0]).sum()
    loss = top_loss(hidden[:, 0], head, ids, p, mixture, weights[:, 0], chunk=2)
    torch.testing.assert_close(loss, wanted)
    for one, other in zip(
        torch.autograd.grad(loss, (hidden, head.weight)),
        torch.autograd.grad(wanted, (hidden, head.weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_nothing_is_computed_for_backward_without_need() -> None:
    hidden, head, states, teacher, weights = _case()
    with torch.no_grad():
        spoken = torch.tensor(SPOKEN)
        loss = chunked_loss(hidden, head, states, teacher, spoken, {"tv": 1.0}, weights)
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("mixture", "reason"), [({"l2": 1.0}, "unknown losses l2"), ({"tv": 0.0}, "positive")]
)
def test_a_bad_mixture_is_named(mixture: Mixture, reason: str) -> None:
    hidden, head, states, teacher, weights = _case()
    with pytest.raises(ValueError, match=reason):
        chunked_loss(hidden, head, states, teacher, None, mixture, weights)


MEASURE = """
import resource, torch
from specdec.training.losses import chunked_loss
torch.manual_seed(0)
V, N, h = 152064, 4096, 64
head = (torch.randn(V, h) / 8).requires_grad_()
teacher = torch.randn(V, h) / 8
hidden, states = torch.randn(N, h).requires_grad_(), torch.randn(N, h)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mixture, weights = {"tv": 1.0, "ce": 0.1}, torch.ones(N)
loss = chunked_loss(hidden, head, states, teacher, None, mixture, weights, chunk=32)
loss.backward()
assert hidden.grad.abs().sum() > 0 and head.grad.abs().sum() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's unit of ru_maxrss")
def test_memory_stays_far_below_the_logits() -> None:
    """Logits of all 4,096 rows over 152,064 tokens are 2.5 GB, once; a loss that keeps them for
    backward needs several times as much.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(run.stdout) < 4096 * 152064 * 4 / 4
