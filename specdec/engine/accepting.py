"""What became of the trees of a step: deciding over all of them, and telling drafters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdec.engine.request import Request
from specdec.engine.target import Target
from specdec.engine.together import by_batch
from specdec.interfaces import Verified

_DEAR = 20  # 2 to this many logits of a request take longer than those of the nodes on the way


def decide(targets: Sequence[Target], logits: Tensor, *, isolates: bool) -> None:
    """Accept and hand out, each target for itself where its rules allow.

    Args:
        targets: the trees.
        logits: theirs, packed: ``(N, V)``.
        isolates: what goes wrong with one, logits that are no numbers included, becomes the error
            of its request; else it is raised, and logits are not looked at.
    """
    if targets:
        _look_over(targets, logits, isolates=isolates)
    batches = by_batch(targets)
    scores: dict[int, Tensor] = {}
    for together, rows in batches:
        scores |= together.scores(rows)
    for target in targets:
        try:
            target.decide(scores.get(target.request.view.id))
        except Exception as error:
            if not isolates:
                raise
            target.request.finish_reason, target.request.error = "error", error
    for together, _ in batches:
        together.stop()


def tell(targets: Sequence[Target], states: Tensor) -> None:
    """Let the drafter see the states ``(N, layers * H)`` of the tokens that were kept.

    They are copies: a drafter may take them many steps later, and until then a view would hold the
    states of all that was run in this one.
    """
    start = 0
    for target in targets:
        if target.verdict is not None and target.request.drafts:
            kept = target.kept
            if kept[-1:] == (len(kept) - 1,):  # as they come; a slice takes less time than a list
                said = states[start : start + len(kept)].clone()
            else:
                said = states[[start + node for node in kept]]
            target.request.view.states.append(said)
        start += len(target.tree)


def look(running: Sequence[Request], verified: Verified) -> None:
    """Let the drafter see where the verifier looks now, where that was asked for."""
    for request, gaze in zip(running, verified.gaze, strict=bool(verified.gaze)):
        if gaze is not None:
            request.view.gaze = gaze


def _look_over(targets: Sequence[Target], logits: Tensor, *, isolates: bool) -> None:
    """What is found out sooner for all nodes at once than for each that is visited."""
    counts = [len(target.tree) for target in targets]
    dear = logits.device.type == "cpu" and logits.numel() > len(targets) << _DEAR
    found = logits[:, 0]  # a hidden state that is no number makes all of its logits so
    if not dear and any(target.takes_best for target in targets):
        found, indices = logits.max(-1)
        best, start = indices.tolist(), 0
        for target, count in zip(targets, counts, strict=True):
            target.best = best[start : start + count]
            start += count
    if isolates and bool((broken := found.isnan() | found.isposinf()).any()):
        for target, own in zip(targets, broken.split(counts), strict=True):
            target.broken = frozenset(own.nonzero().flatten().tolist())
