"""What speculation achieved: acceptance counts and where the time went.

Names follow vLLM's per-request ``metrics.speculative_decoding``, so that tools which read those
read these. Knows nothing of engines or models; the engine records, everybody else reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class StepTimes:
    """Wall-clock seconds per phase.

    Attributes:
        prefill: the verifier's forwards over prompts, images included; not part of any step.
        draft: drafters proposing trees.
        verify: the verifier's forward over the trees, packing and masks included.
        accept: logits processors and the acceptance rule.
        commit: moving keys and values, streamers, stopping criteria.
        model_forward: of ``draft`` and ``verify``, the time inside the two models' forwards.
    """

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    accept: float = 0.0
    commit: float = 0.0
    model_forward: float = 0.0

    @property
    def step(self) -> float:
        """Seconds spent in steps: everything but prefill."""
        return self.draft + self.verify + self.accept + self.commit

    @property
    def overhead(self) -> float:
        """Share of the steps spent outside the two models' forwards; 0 before the first step."""
        return 1.0 - self.model_forward / self.step if self.step > 0 else 0.0

    def merge(self, other: StepTimes) -> None:
        """Add the seconds of ``other`` to these."""
        for phase in fields(self):
            setattr(self, phase.name, getattr(self, phase.name) + getattr(other, phase.name))


@dataclass(slots=True)
class AcceptanceStats:
    """Acceptance counts of one request, or of several merged.

    A *step* is one verification of one request's tree, trees that draft nothing included. The token
    that prefill yields belongs to no step. *Draft tokens* are the drafted nodes of a tree, the root
    excluded, so a wide tree has a low ``draft_acceptance_rate`` by construction.

    Attributes:
        num_spec_steps: steps.
        num_plain_steps: those of them that drafted nothing because that would not have paid.
        num_draft_tokens: drafted nodes of all steps.
        num_accepted_draft_tokens: those of them that were accepted; bonus tokens excluded.
        acceptance_histogram: ``{accepted draft tokens in a step: number of such steps}``, sparse.
        num_accepted_tokens_per_pos: entry i: the steps in which a draft token at depth i + 1 was
            accepted; as long as the deepest tree.
        num_generated_tokens: tokens handed out, that of prefill included.
        num_relaxed_tokens: those of them that lossless acceptance would have refused.
        epsilon_allowed: over all of them, the sum of what relaxed acceptance could have spent.
        bound_spent: the sum of what it did spend: total variation when sampling, nats of regret
            when greedy. 0 where nothing is accounted for.
        num_prompt_tokens: tokens of the prompts, visual ones included, padding excluded.
        num_cached_tokens: those of them whose keys were there already.
        num_preemptions: times a request gave its pages up, to be computed again later.
        times: where the time went.
    """

    num_spec_steps: int = 0
    num_plain_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    acceptance_histogram: dict[int, int] = field(default_factory=dict)
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_generated_tokens: int = 0
    num_relaxed_tokens: int = 0
    epsilon_allowed: float = 0.0
    bound_spent: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    times: StepTimes = field(default_factory=StepTimes)

    @property
    def mean_acceptance_length(self) -> float:
        """τ = 1 + accepted / steps: tokens per step, the verifier's own one included.

        The only definition of τ in this package. 1 before the first step. A last step that an
        end-of-sequence token or the length limit cut short counts like any other, with the draft
        tokens that were handed out.
        """
        return 1.0 + self.num_accepted_draft_tokens / max(self.num_spec_steps, 1)

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 where nothing was drafted."""
        return self.num_accepted_draft_tokens / max(self.num_draft_tokens, 1)

    def record_step(self, drafted: int, accepted: int, draft_depth: int) -> None:
        """Count one step.

        Args:
            drafted: nodes of the tree, root excluded.
            accepted: length of the accepted path.
            draft_depth: depth of the tree; 0 if it drafted nothing.
        """
        assert 0 <= accepted <= draft_depth <= drafted, (accepted, draft_depth, drafted)
        self.num_spec_steps += 1
        self.num_draft_tokens += drafted
        self.num_accepted_draft_tokens += accepted
        self.acceptance_histogram[accepted] = self.acceptance_histogram.get(accepted, 0) + 1
        self._reach(draft_depth)
        for position in range(accepted):
            self.num_accepted_tokens_per_pos[position] += 1

    def merge(self, other: AcceptanceStats) -> None:
        """Add the counts and seconds of ``other`` to these."""
        self.num_spec_steps += other.num_spec_steps
        self.num_plain_steps += other.num_plain_steps
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_draft_tokens += other.num_accepted_draft_tokens
        self.merge_tokens(other)
        self.num_prompt_tokens += other.num_prompt_tokens
        self.num_cached_tokens += other.num_cached_tokens
        self.num_preemptions += other.num_preemptions
        for accepted, steps in other.acceptance_histogram.items():
            self.acceptance_histogram[accepted] = self.acceptance_histogram.get(accepted, 0) + steps
        self._reach(len(other.num_accepted_tokens_per_pos))
        for position, steps in enumerate(other.num_accepted_tokens_per_pos):
            self.num_accepted_tokens_per_pos[position] += steps
        self.times.merge(other.times)

    def merge_tokens(self, other: AcceptanceStats) -> None:
        """Add what ``other`` counts of tokens handed out to these."""
        self.num_generated_tokens += other.num_generated_tokens
        self.num_relaxed_tokens += other.num_relaxed_tokens
        self.epsilon_allowed += other.epsilon_allowed
        self.bound_spent += other.bound_spent

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """All of it and the derived rates, ready for ``json.dumps``; histogram keys as text."""
        return {
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            **asdict(self),
            "acceptance_histogram": {
                str(accepted): steps
                for accepted, steps in sorted(self.acceptance_histogram.items())
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AcceptanceStats:  # Any: JSON values
        """The inverse of :meth:`to_dict`; missing counts are 0, derived rates are not read.

        Raises:
            ValueError: an unknown name.
        """
        known = {entry.name for entry in fields(cls)}
        derived = {"mean_acceptance_length", "draft_acceptance_rate"}
        if unknown := values.keys() - known - derived:
            raise ValueError(f"unknown statistics {sorted(unknown)}; known: {sorted(known)}")
        counts = {name: values[name] for name in known & values.keys()}
        histogram = {
            int(key): steps for key, steps in counts.pop("acceptance_histogram", {}).items()
        }
        per_pos = list(counts.pop("num_accepted_tokens_per_pos", ()))
        times = StepTimes(**counts.pop("times", {}))
        return cls(
            **counts,
            acceptance_histogram=histogram,
            num_accepted_tokens_per_pos=per_pos,
            times=times,
        )

    def _reach(self, depth: int) -> None:
        missing = depth - len(self.num_accepted_tokens_per_pos)
        self.num_accepted_tokens_per_pos.extend([0] * missing)
