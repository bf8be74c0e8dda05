"""How much each node's next token depends on the image, by the estimators that rules name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.acceptance import Rule
from specdec.interfaces import Verified
from specdec.reliance import Evidence, Need
from specdec.sampling import total_variation
from specdec.tree import DraftTree

if TYPE_CHECKING:
    from specdec.engine.request import Request


# Of each node; ``None`` where nobody asks, and an error where it cannot be estimated.
Estimate = Sequence[float] | ValueError | None
_NO_Q = (
    "acceptance estimates reliance from the drafter's distributions, and this drafter gives none; "
    "use another estimator or another drafter"
)


def needs(rule: Rule | None) -> frozenset[Need]:
    """What the rule's estimator reads."""
    return frozenset() if rule is None or rule.reliance is None else rule.reliance.needs


def estimates(
    requests: Sequence[Request], trees: Sequence[DraftTree], verified: Verified
) -> list[Estimate]:
    """Per request what is known of the visual reliance of its nodes."""
    rules = [request.decoding.rule for request in requests]
    asked = {id(rule.reliance): rule.reliance for rule in rules if rule and rule.reliance}
    if not asked:
        return [None] * len(requests)
    divergence = None
    if any("divergence" in needs(rule) for rule in rules):
        divergence = torch.cat(_divergences(requests, trees, verified.logits))
    evidence = Evidence(
        hidden=verified.hidden,
        visual_mass=verified.visual_mass,
        divergence=divergence,
        nodes=len(verified.logits),
    )
    values = {key: reliance.values(evidence).tolist() for key, reliance in asked.items()}
    found: list[Estimate] = []
    start = 0
    for rule, tree in zip(rules, trees, strict=True):
        known = values.get(id(rule.reliance)) if rule else None
        if "divergence" in needs(rule) and tree.q is None and len(tree) > 1:
            found.append(ValueError(_NO_Q))
        else:
            found.append(None if known is None else known[start : start + len(tree)])
        start += len(tree)
    return found


def _divergences(
    requests: Sequence[Request], trees: Sequence[DraftTree], logits: Tensor
) -> list[Tensor]:
    """Per tree float32 ``(n,)``: the total variation between verifier and drafter behind each node,
    at the request's temperature, greedy ones at 1; 1 where nothing is drafted.
    """
    found = []
    blocks = logits.split([len(tree) for tree in trees])
    for request, tree, block in zip(requests, trees, blocks, strict=True):
        divergence = torch.ones(len(tree), device=logits.device)
        inner = [node for node, below in enumerate(tree.topology.children) if below]
        if inner and tree.q is not None and "divergence" in needs(request.decoding.rule):
            # Most trees are numbered so that leaves come last: then nothing is copied.
            leading = inner == list(range(len(inner)))
            rows: list[int] | slice = slice(len(inner)) if leading else inner
            p = (block[rows].float() / (request.view.temperature or 1.0)).softmax(-1)
            divergence[inner] = total_variation(p, tree.q[rows].to(p.device)).float()
        found.append(divergence)
    return found
