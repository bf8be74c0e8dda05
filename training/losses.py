"""Losses between a verifier p and a drafter q, over whole vocabularies but a few rows at a time.

    tv = ½ Σ |p − q|  =  1 − Σ min(p, q)      1 − the probability that a drafted token is accepted
    kl = Σ p log(p / q)
    ce = −log q(argmax p)

A drafter may speak a part S of the vocabulary only, so q = 0 elsewhere. In ``tv`` p is left as it
is: what the verifier wants to say outside S is a loss that no q can avoid. ``kl`` and ``ce`` would
be infinite there; they compare with p renormalised over S, and leave places out where the
verifier's argmax is not in S, as EAGLE-3 does (2503.01840).

Logits ``(N, V)`` of all rows are never there at once. The gradient is computed together with the
loss, chunk by chunk, so logits are computed once; backward only scales it (as in Liger-Kernel's
fused linear losses, 2410.10989). Knows no drafter and no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("tv", "kl", "ce")
ELEMENTS = 1 << 24  # of one chunk's logits, unless told otherwise
TINY = 1e-6

Mixture = Mapping[str, float]
# Logits of the drafter (n, Vd) and numbers of their rows (n,) to losses (n,).
Judge = Callable[[Tensor, Tensor], Tensor]


def check_mixture(mixture: Mixture) -> None:
    """
    Raises:
        ValueError: an unknown loss, or weights that are not positive.
    """
    if unknown := set(mixture) - set(KINDS):
        raise ValueError(f"unknown losses {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    if not mixture or min(mixture.values()) < 0 or max(mixture.values()) == 0:
        raise ValueError(f"weights of losses must be positive, got {dict(mixture)}")


class Target(NamedTuple):
    """What a verifier says at n places, as far as a drafter of Vd tokens can say it.

    Attributes:
        p: ``(n, Vd)``, its probabilities; of all of them ``mass`` ``(n,)``.
        information: ``(n,)``, Σ p log p of p renormalised.
        argmax: int64 ``(n,)``, the drafter's number of the most probable of these tokens.
        heard: bool ``(n,)``, whether that is the verifier's most probable token.
    """

    p: Tensor
    mass: Tensor
    information: Tensor
    argmax: Tensor
    heard: Tensor

    def rows(self, which: Tensor) -> Target:
        """Some of the places."""
        return self if len(which) == len(self.p) else Target(*(each[which] for each in self))


def target_of(teacher: Tensor, spoken: Tensor | None) -> Target:
    """Of a verifier's logits ``(n, V)``.

    Args:
        spoken: int64 ``(Vd,)``, the verifier's number of each of the drafter's tokens; ``None``:
            the same vocabulary.
    """
    every = teacher.to(torch.promote_types(teacher.dtype, torch.float32)).softmax(-1)
    p = every if spoken is None else every[:, spoken]
    mass = p.sum(-1).clamp_min(TINY)  # where it is nothing, the argmax is not heard either
    top, argmax = p.max(-1)
    information = torch.xlogy(p, p).sum(-1) / mass - mass.log()
    return Target(p, mass, information, argmax, top == every.amax(-1))


def divergence(student: Tensor, teacher: Target, mixture: Mixture) -> Tensor:
    """Losses ``(n,)`` between logits of a drafter ``(n, Vd)`` and what a verifier says."""
    log_q = _log_softmax(student)
    total = log_q.new_zeros(len(log_q))
    if weight := mixture.get("tv", 0.0):
        total = total + weight * (1 - torch.minimum(teacher.p, log_q.exp()).sum(-1))
    if weight := mixture.get("ce", 0.0):
        total = total - weight * (teacher.heard * log_q.gather(1, teacher.argmax[:, None])[:, 0])
    if weight := mixture.get("kl", 0.0):
        crossed = (teacher.p * log_q).sum(-1) / teacher.mass
        total = total + weight * (teacher.heard * (teacher.information - crossed))
    return total


def top_divergence(student: Tensor, top_ids: Tensor, top_p: Tensor, mixture: Mixture) -> Tensor:
    """Losses ``(n,)`` when only the verifier's K most probable tokens are known, most probable
    first; all others are one class.

    Args:
        student: logits ``(n, V)``.
        top_ids: int64 ``(n, K)``.
        top_p: ``(n, K)``.
    """
    log_q = _log_softmax(student).gather(1, top_ids)
    q, p = log_q.exp(), top_p.to(log_q.dtype)
    rest_p, rest_q = (1 - p.sum(-1)).clamp_min(0), (1 - q.sum(-1)).clamp_min(TINY)
    total = log_q.new_zeros(len(log_q))
    if weight := mixture.get("tv", 0.0):
        shared = torch.minimum(p, q).sum(-1) + torch.minimum(rest_p, rest_q)
        total = total + weight * (1 - shared)
    if weight := mixture.get("kl", 0.0):
        known = (torch.xlogy(p, p) - p * log_q).sum(-1)
        total = total + weight * (known + torch.xlogy(rest_p, rest_p) - rest_p * rest_q.log())
    if weight := mixture.get("ce", 0.0):
        total = total - weight * log_q[:, 0]
    return total


def chunked_loss(
    student_hidden: Tensor,
    student_head: Tensor | nn.Module,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    spoken: Tensor | None,
    mixture: Mixture,
    weights: Tensor,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Σ weight · loss over all rows, a scalar, with gradients for the drafter.

    Args:
        student_hidden: ``(N, h)``, or ``(N, k, h)`` for k drafts of the same place, whose verifier
            logits are then computed once.
        student_head: weight ``(Vd, h)``, or a module that makes logits of hidden states.
        teacher_hidden: ``(N, H)``.
        teacher_head: ``(V, H)``; gets no gradient.
        spoken: see :func:`target_of`.
        weights: ``(N,)`` or ``(N, k)``.
        softcap: of the verifier's logits.
        chunk: rows at a time.

    Raises:
        ValueError: see :func:`check_mixture`.
    """
    check_mixture(mixture)
    rows = chunk or max(1, ELEMENTS // len(teacher_head))

    def target(part: slice) -> Judge:
        logits = F.linear(teacher_hidden[part].to(teacher_head.dtype), teacher_head)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        says = target_of(logits, spoken)
        return lambda said, which: divergence(said, says.rows(which), mixture)

    return _total(student_hidden, student_head, target, weights, rows)


def top_loss(
    student_hidden: Tensor,
    student_head: Tensor | nn.Module,
    top_ids: Tensor,
    top_p: Tensor,
    mixture: Mixture,
    weights: Tensor,
    *,
    chunk: int | None = None,
) -> Tensor:
    """As :func:`chunked_loss`, from the verifier's most probable tokens ``(N, K)``.

    Args:
        student_hidden: ``(N, h)``.
        weights: ``(N,)``.

    Raises:
        ValueError: see :func:`check_mixture`.
    """
    check_mixture(mixture)
    rows = chunk or max(1, ELEMENTS // _spoken_by(student_head))

    def target(part: slice) -> Judge:
        ids, p = top_ids[part], top_p[part]
        return lambda said, which: top_divergence(said, ids[which], p[which], mixture)

    return _total(student_hidden, student_head, target, weights, rows)


def _spoken_by(head: Tensor | nn.Module) -> int:
    return len(head) if isinstance(head, Tensor) else max(len(p) for p in head.parameters())


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _total(
    hidden: Tensor,
    head: Tensor | nn.Module,
    target: Callable[[slice], Judge],
    weights: Tensor,
    rows: int,
) -> Tensor:
    trained = [head] if isinstance(head, Tensor) else list(head.parameters())
    say = head if isinstance(head, nn.Module) else (lambda x, weight=head: F.linear(x, weight))
    hidden, weights = (hidden[:, None], weights[:, None]) if hidden.ndim == 2 else (hidden, weights)
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in (hidden, *trained))
    job = _Job(say, target, weights, rows, wanted)
    apply: Any = _Chunked.apply  # torch does not annotate it
    loss: Tensor = apply(job, hidden, *trained)
    return loss


class _Job:
    """What :class:`_Chunked` does besides its tensors."""

    def __init__(
        self,
        say: Callable[[Tensor], Tensor],
        target: Callable[[slice], Judge],
        weights: Tensor,
        rows: int,
        wanted: bool,
    ) -> None:
        self.say, self.target, self.weights = say, target, weights
        self.rows, self.wanted = rows, wanted


class _Chunked(torch.autograd.Function):
    # Any: autograd's context takes whatever attributes are set; gradients may be missing.
    @staticmethod
    def forward(ctx: Any, job: _Job, hidden: Tensor, *trained: Tensor) -> Tensor:
        total = torch.zeros(
            (), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        learning = [each for each in trained if each.requires_grad] if job.wanted else []
        gradients = [torch.zeros_like(each) for each in learning]
        into = torch.zeros_like(hidden) if job.wanted else None
        for start in range(0, len(hidden), job.rows):
            part = slice(start, start + job.rows)
            judge = job.target(part)
            for step in range(hidden.shape[1]):
                weight = job.weights[part, step]
                which = weight.nonzero()[:, 0]
                if not len(which):
                    continue
                piece = hidden[part, step][which].detach()
                with torch.set_grad_enabled(job.wanted):
                    piece.requires_grad_(job.wanted)
                    loss = (judge(job.say(piece), which) * weight[which]).sum()
                total += loss.detach()
                if into is not None:
                    first, *others = torch.autograd.grad(loss, [piece, *learning])
                    into[part, step][which] = first
                    for gradient, other in zip(gradients, others, strict=True):
                        gradient += other
        ctx.into = into
        found = iter(gradients)
        ctx.gradients = [
            next(found) if job.wanted and each.requires_grad else None for each in trained
        ]
        return total

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        (scale,) = given
        into, gradients = ctx.into, ctx.gradients
        return (None, into * scale, *(None if g is None else g * scale for g in gradients))
