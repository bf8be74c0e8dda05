"""What drafters are to achieve, and whether they do, from the table of `eval.drafter_bench`. Pure
computations over a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # JSON values

ALL = "all"
BLIND = "text_only"
GAIN_OF_SIGHT = 1.5  # τ of a drafter that sees, over that of one that does not
POSITIONS = (0.85, 0.72, 0.60)
GAIN_OF_BRANCHING = 1.15  # τ of a dynamic tree, over that of the best chain
DECODE, END_TO_END = 2.8, 2.5  # × transformers' generate


def goals(drafters: Mapping[str, Any]) -> dict[str, Any]:
    """Goal by goal the best figure, who reached it, and whether it is met.

    Args:
        drafters: entries of the record by "drafter, tree".
    """
    tau = {name: _all(entry)["mean_acceptance_length"] for name, entry in drafters.items()}
    split = {name: tuple(name.split(", ", 1)) for name in drafters}
    found: dict[str, Any] = {}
    # A drafter that sees, with each tree against the blind one with the same tree.
    sight = {
        name: _ratio(tau, name, f"{BLIND}, {split[name][1]}")
        for name in drafters
        if split[name][0].startswith(("eagle", "vision_pruned"))
    }
    if sight := {name: ratio for name, ratio in sight.items() if ratio}:
        best = max(sight, key=lambda name: sight[name])
        blind = drafters[f"{BLIND}, {split[best][1]}"]["tasks"]
        found["tau_over_text_only"] = _goal(sight[best], GAIN_OF_SIGHT, best) | {
            "by_task": {
                task: round(
                    row["mean_acceptance_length"] / blind[task]["mean_acceptance_length"], 3
                )
                for task, row in drafters[best]["tasks"].items()
            }
        }
    chains = {name: tau[name] for name in drafters if split[name][1].startswith("chain")}
    if chains:
        # Whose positions count: those of the fastest chain.
        best = max(chains, key=lambda name: _all(drafters[name])["speedup_decode"]["median"])
        shares = _all(drafters[best])["acceptance_per_position"][: len(POSITIONS)]
        found["acceptance_per_position"] = {
            "value": [round(share, 3) for share in shares],
            "goal": POSITIONS,
            "by": best,
            "met": len(shares) == len(POSITIONS)
            and all(share >= goal for share, goal in zip(shares, POSITIONS, strict=True)),
        }
    gains = {}
    for name in drafters:
        if split[name][1].startswith("dynamic"):
            own = [tau[other] for other in chains if split[other][0] == split[name][0]]
            if own:
                gains[name] = tau[name] / max(own)
    if gains:
        best = max(gains, key=lambda name: gains[name])
        found["dynamic_over_chain"] = _goal(gains[best], GAIN_OF_BRANCHING, best)
    for key, goal in (("speedup_decode", DECODE), ("speedup_end_to_end", END_TO_END)):
        speeds = {name: _all(entry)[key]["median"] for name, entry in drafters.items()}
        best = max(speeds, key=lambda name: speeds[name])
        found[key] = _goal(speeds[best], goal, best)
    return found


def _all(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    row: Mapping[str, Any] = entry["tasks"][ALL]
    return row


def _ratio(tau: Mapping[str, float], name: str, other: str) -> float | None:
    return tau[name] / tau[other] if other in tau else None


def _goal(value: float, goal: float, by: str) -> dict[str, Any]:
    return {"value": round(value, 3), "goal": goal, "by": by, "met": value >= goal}
