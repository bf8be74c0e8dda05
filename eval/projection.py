"""What speculation would bring, projected from measured costs, and from acceptance that was
measured elsewhere or is assumed.

With p_i the share of steps in which at least i drafted tokens are accepted, a chain of k yields

    τ = 1 + p_1 + … + p_k                                                       tokens a step,

which for independent acceptance at a rate α is Leviathan et al. (2211.17192), eq. 1:

    τ = (1 − α^(k+1)) / (1 − α).

A batch decodes faster by

    speedup = τ · t(1) / (t(n) + t_draft(k))

where t(n) is a step with n nodes a request, t(1) the plain one. With t(n) = t(1) and t_draft(k) =
k·c·t(1) that is their theorem 3.8. What the engine does around forwards is left out on both sides.
Nothing in here is a measured speedup, and everything handed out says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from specdec.eval.bench_record import SCHEMA
from specdec.eval.step_costs import StepCosts
from specdec.stats import AcceptanceStats

_STEPS = 60  # bisections: as exact as floats are


@dataclass(frozen=True)
class Acceptance:
    """How far drafts are accepted.

    Attributes:
        reached: p_i, the share of steps in which at least i drafted tokens are accepted, from i = 1
            on; never rising.
        source: where they come from, for readers.
        rate: beyond them, what share of the drafts is accepted whose parents were.

    Raises:
        ValueError: shares that rise, or are no shares.
    """

    reached: tuple[float, ...]
    source: str
    rate: float

    def __post_init__(self) -> None:
        falling = (1.0, *self.reached, 0.0)
        if any(later > earlier for earlier, later in pairwise(falling)):
            raise ValueError(
                f"acceptance {self.reached}: each position is reached in a share of steps within "
                "[0, 1], and none more often than the one before it"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"an acceptance rate lies within [0, 1], and {self.rate} does not")

    @classmethod
    def constant(cls, rate: float) -> Acceptance:
        """Every draft whose parent was accepted is, at this rate, independently."""
        return cls((), f"assumed: {rate:.3g} of drafts whose parents are accepted", rate)

    @classmethod
    def measured(cls, stats: AcceptanceStats, source: str) -> Acceptance:
        """What was accepted, of steps that drafted. Right of trees of one depth: where some are
        shallower, deep positions count as refused in them.

        Raises:
            ValueError: nothing was drafted.
        """
        steps = stats.num_spec_steps - stats.num_plain_steps
        if steps <= 0 or not stats.num_accepted_tokens_per_pos:
            raise ValueError(f"{source}: nothing was drafted, so there is no acceptance to read")
        reached = tuple(count / steps for count in stats.num_accepted_tokens_per_pos)
        before = (1.0, *reached)[-2]
        return cls(reached, f"measured: {source}", reached[-1] / before if before else 0.0)

    def at(self, position: int) -> float:
        """p_i for i = ``position``, from 1 on."""
        known = len(self.reached)
        if position <= known:
            return self.reached[position - 1]
        return (self.reached[-1] if known else 1.0) * self.rate ** (position - known)

    def tokens(self, depth: int) -> float:
        """τ: tokens to expect of a step with a chain of ``depth``."""
        return 1.0 + sum(self.at(position) for position in range(1, depth + 1))


class Tree(NamedTuple):
    """How much is drafted for each request: ``nodes`` count the root."""

    depth: int
    nodes: int


class Projection(NamedTuple):
    """One case: what was measured, what is projected from it, and what a drafter has to reach.

    Attributes:
        batch: requests that share a step.
        context: tokens that each has.
        tree: what is drafted for each.
        plain_ms: measured: t(1).
        verify_ms: measured: t(n).
        draft_ms: t_draft(k).
        draft_source: "measured", or "assumed".
        tokens: projected: τ.
        speedup: projected.
        tokens_per_second: projected, of all requests together.
        break_even: the acceptance rate at which the projected speedup is 1; ``None``: none is
            enough.
        wish: a speedup that is wanted.
        wished: the acceptance rate that it takes, likewise.
    """

    batch: int
    context: int
    tree: Tree
    plain_ms: float
    verify_ms: float
    draft_ms: float
    draft_source: str
    tokens: float
    speedup: float
    tokens_per_second: float
    break_even: float | None
    wish: float
    wished: float | None

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """By what is measured and what is projected, ready for ``json.dumps``."""
        return {
            "batch": self.batch,
            "context": self.context,
            "depth": self.tree.depth,
            "nodes": self.tree.nodes,
            "measured": {"plain_ms": self.plain_ms, "verify_ms": self.verify_ms},
            "drafting": {"draft_ms": self.draft_ms, "source": self.draft_source},
            "projected": {
                "mean_acceptance_length": self.tokens,
                "speedup": self.speedup,
                "tokens_per_second": self.tokens_per_second,
                "acceptance_rate_to_break_even": self.break_even,
                "wished_speedup": self.wish,
                "acceptance_rate_for_wished_speedup": self.wished,
            },
        }


def project(
    costs: StepCosts,
    acceptance: Acceptance,
    batch: int,
    context: int,
    tree: Tree,
    *,
    wish: float = 2.0,
    level: float = 0.0,
) -> Projection:
    """The projected speedup of one case.

    Args:
        costs: measured here.
        acceptance: per position, of trees like this one.
        batch: how many requests share a step; one of those measured.
        context: how many tokens each has; likewise.
        tree: what is drafted for each.
        wish: a speedup to find the acceptance for.
        level: what a level of drafts is assumed to take, in plain steps, where nobody's was
            measured: c in the paper.

    Raises:
        ValueError: it was not measured, or the tree is deeper than it has nodes.
    """
    if not 0 < tree.depth < tree.nodes:
        raise ValueError(
            f"a tree of depth {tree.depth} has at least {tree.depth + 1} nodes, the root included; "
            f"{tree.nodes} were asked for"
        )
    plain = costs.step_ms(batch, context, 1)
    verify = costs.step_ms(batch, context, tree.nodes)
    draft = costs.draft_ms(batch, context, tree.depth) or tree.depth * level * plain
    tokens = acceptance.tokens(tree.depth)
    per_token = plain / (verify + draft)  # speedup if a step yielded one token
    return Projection(
        batch,
        context,
        tree,
        plain,
        verify,
        draft,
        draft_source="measured" if costs.drafts else "assumed",
        tokens=tokens,
        speedup=tokens * per_token,
        tokens_per_second=1000 * batch * tokens / (verify + draft),
        break_even=rate_for(1.0 / per_token, tree.depth),
        wish=wish,
        wished=rate_for(wish / per_token, tree.depth),
    )


def rate_for(tokens: float, depth: int) -> float | None:
    """The acceptance rate α at which a chain of ``depth`` yields that many tokens a step; ``None``
    if even accepting everything yields fewer.
    """
    if tokens > depth + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = Acceptance.constant(middle).tokens(depth) >= tokens
        low, high = (low, middle) if enough else (middle, high)
    return high


def projections(
    costs: StepCosts,
    acceptance: Acceptance,
    trees: Sequence[Tree],
    *,
    wish: float = 2.0,
    level: float = 0.0,
) -> list[Projection]:
    """Every batch and context that was measured, with each of the trees."""
    cases = dict.fromkeys((step.batch, step.context) for step in costs.steps)
    return [
        project(costs, acceptance, batch, context, tree, wish=wish, level=level)
        for batch, context in cases
        for tree in trees
    ]


def from_record(record: Mapping[str, Any], method: str | None = None) -> Acceptance:
    """What a method of a benchmark's record accepted, over all its questions.

    Args:
        record: of schema ``specdec.bench/1``.
        method: its name; ``None`` is the only one that drafted.

    Raises:
        ValueError: it is no such record, or has no such method.
    """
    schema = record.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"schema {schema!r}: expected a record of {SCHEMA}")
    found = {
        each["name"]: acceptance
        for each in record.get("methods", ())
        if (acceptance := (each.get("overall") or {}).get("acceptance"))
        and acceptance.get("num_draft_tokens")
    }
    if method is None and len(found) == 1:
        (method,) = found
    if method is None or method not in found:
        names = ", ".join(map(repr, found)) or "none"
        raise ValueError(f"method {method!r}: those that drafted in this record are {names}")
    return Acceptance.measured(AcceptanceStats.from_dict(found[method]), method)
