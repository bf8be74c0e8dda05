"""What a benchmark compares: ways to decode, from drafters, trees, policies, batch sizes and
temperatures. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from specdec.choice import resolve_tree
from specdec.engine import Adaptive
from specdec.tree import Dynamic

REFERENCE = "transformers generate"
PLAIN = "specdec, no drafting"
# What others, and a loop written by hand, make of the same models.
RIVALS = ("assisted", "prompt lookup", "chain loop")
LOSSLESS = "lossless"


@dataclass(frozen=True)
class Contender:
    """One way to decode.

    Attributes:
        name: unique among those of its batch size and temperature.
        kind: ``reference``, ``ours``, or one of :data:`RIVALS`.
        drafter: as the user names it; ``None`` drafts nothing.
        tree: as ``tree=`` takes it, in text.
        policy: ``lossless`` or a policy file.
        batch: questions answered together.
        temperature: 0 is greedy.
    """

    name: str
    kind: str
    drafter: str | None
    tree: str | None
    policy: str
    batch: int
    temperature: float

    @property
    def ours(self) -> bool:
        """Whether specdec decodes."""
        return self.kind == "ours"

    @property
    def lossless(self) -> bool:
        """Whether its answers are distributed as the reference's."""
        return self.policy == LOSSLESS

    @property
    def comparable(self) -> bool:
        """Whether its tokens must be the reference's, one by one."""
        return self.lossless and self.temperature == 0

    def public(self) -> dict[str, Any]:  # Any: JSON values
        """For the record."""
        named = {key: value for key, value in asdict(self).items() if key != "kind"}
        policy = Path(self.policy).stem
        return {**named, "policy": policy, "ours": self.ours, "lossless": self.lossless}


@dataclass(frozen=True)
class Plan:
    """A benchmark; two of the same plan measure the same.

    Attributes:
        model: folder of the verifier, or ``demo``.
        data: where questions come from, see :mod:`specdec.eval.questions`.
        count: how many; ``None`` is all.
        seed: of their choice, of what is sampled, and of the bootstrap.
        drafters, trees, policies: every one with every other.
        rivals: of :data:`RIVALS`, with the first text-only drafter among ``drafters``.
        batches, temperatures: likewise.
        dtype, device: of the verifier.
        max_new_tokens: longest answer.
        rounds: times each question is answered.
        bound: gap in logits below which two tokens count as tied; 0 in fp32.
        shown: answers that are kept for the viewer.
    """

    model: str
    data: str
    count: int | None
    seed: int
    tasks: tuple[str, ...]
    drafters: tuple[str, ...]
    trees: tuple[str, ...]
    policies: tuple[str, ...]
    rivals: tuple[str, ...]
    batches: tuple[int, ...]
    temperatures: tuple[float, ...]
    dtype: str
    device: str
    max_new_tokens: int
    rounds: int
    bound: float
    shown: int

    def __post_init__(self) -> None:
        if unknown := set(self.rivals) - set(RIVALS):
            raise ValueError(
                f"no rivals {', '.join(sorted(unknown))}; there are {', '.join(RIVALS)}"
            )
        for policy in self.policies:
            if policy != LOSSLESS and not Path(policy).is_file():
                raise ValueError(
                    f"policy {policy}: neither lossless nor a file that `specdec calibrate` wrote"
                )
        for each in ("batches", "temperatures", "trees", "policies"):
            if not getattr(self, each):
                raise ValueError(f"no {each} to measure")

    def public(self) -> dict[str, Any]:  # Any: JSON values
        """For the record of a run that may be gone on with."""
        return asdict(self)

    def contenders(self, labels: Mapping[str, str]) -> list[list[Contender]]:
        """In groups that take turns: those of one batch size and temperature, the reference first.

        Args:
            labels: what each of the drafters is called.

        Raises:
            ValueError: a tree that is none, or two methods that are the same.
        """
        return [
            self._group(batch, temperature, labels)
            for batch, temperature in product(self.batches, self.temperatures)
        ]

    def _group(self, batch: int, temperature: float, labels: Mapping[str, str]) -> list[Contender]:
        def one(name: str, kind: str, *what: str | None, policy: str = LOSSLESS) -> Contender:
            drafter, tree = what or (None, None)
            return Contender(name, kind, drafter, tree, policy, batch, temperature)

        group = [one(REFERENCE, "reference"), one(PLAIN, "ours")]
        for drafter, tree, policy in product(self.drafters, self.trees, self.policies):
            name = f"{labels[drafter]}, {tree_name(tree)}"
            if policy != LOSSLESS:
                name += f", {Path(policy).stem}"
            group.append(one(name, "ours", drafter, tree, policy=policy))
        names = {"assisted": "transformers assisted, same drafter"}
        names["prompt lookup"] = "transformers prompt lookup"
        names["chain loop"] = "plain chain loop, 4"
        group += [one(names[rival], rival) for rival in self.rivals]
        return _told_apart(group)


def tree_name(tree: str) -> str:
    """What a tree is called.

    Raises:
        ValueError: it is none.
    """
    shape = resolve_tree(tree)
    if isinstance(shape, Adaptive):
        return "adaptive"
    if isinstance(shape, Dynamic):
        form = "chain while sure" if shape.is_chain else "dynamic"
        return f"{form}, {shape.budget} nodes" + (
            f", {shape.depth} deep" if shape.depth != shape.budget else ""
        )
    return f"chain of {shape.depth}" if shape.is_chain else f"tree of {len(shape) - 1}"


def _told_apart(group: list[Contender]) -> list[Contender]:
    """The same, where no two have one name.

    Raises:
        ValueError: two are the same.
    """
    names = [each.name for each in group]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} would be measured twice; leave one of them out")
    return group
