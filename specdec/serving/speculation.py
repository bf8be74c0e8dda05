"""The operator's policy of acceptance, and what a request may make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec.policies import Acceptance, Relaxed
from specdec.serving.errors import refused
from specdec.serving.schema import Speculation


class Policy:
    """How drafts are accepted, unless a request wants them accepted more strictly.

    Args:
        acceptance: the engine's, which has read its file.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self.lossless = acceptance == "lossless"
        self._relaxed = acceptance if isinstance(acceptance, Relaxed) else None
        self._name = type(acceptance).__name__

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """What clients are told."""
        if self.lossless:
            return {"kind": "lossless"}
        if (policy := self._relaxed) is None:
            return {"kind": "rule", "rule": self._name}
        reliance = policy.reliance
        return {
            "kind": "relaxed",
            "epsilon": policy.epsilon,
            "gamma": policy.gamma,
            "budget": policy.budget,
            "reliance": reliance if isinstance(reliance, str) else type(reliance).__name__,
        }

    def wanted(self, asked: Speculation | None) -> Acceptance | None:
        """What a request wants; ``None``: the operator's.

        Raises:
            ApiError: it is looser than the operator's.
        """
        if asked is None:
            return None
        given = {
            name: value
            for name in ("epsilon", "gamma", "budget")
            if (value := getattr(asked, name)) is not None
        }
        if asked.policy == "lossless":
            if given:
                raise refused(
                    f"specdec.{next(iter(given))}: policy lossless has none", "specdec.policy"
                )
            return "lossless"
        if not given:
            return None
        if self._relaxed is None:
            raise refused(
                f"specdec.{next(iter(given))}: this server's policy is "
                f"{self.describe()['kind']}, which has none",
                f"specdec.{next(iter(given))}",
            )
        return self._tightened(self._relaxed, given)

    def _tightened(self, policy: Relaxed, given: dict[str, float]) -> Relaxed:
        looser = {
            "epsilon": given.get("epsilon", 0.0) > policy.epsilon,
            "gamma": given.get("gamma", policy.gamma) < policy.gamma,
            "budget": policy.budget is not None
            and given.get("budget", policy.budget) > policy.budget,
        }
        for name, is_looser in looser.items():
            if is_looser:
                raise refused(
                    f"specdec.{name}={given[name]:g} is looser than this server's "
                    f"{getattr(policy, name):g}; a request may only be stricter",
                    f"specdec.{name}",
                )
        return replace(
            policy,
            epsilon=given.get("epsilon", policy.epsilon),
            gamma=given.get("gamma", policy.gamma),
            budget=given.get("budget", policy.budget),
        )
