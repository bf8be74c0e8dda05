"""The card of a distilled drafter: data, recipe, figures. Knows `drafter.json` only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # JSON values


def card(verifier: str, facts: Mapping[str, Any]) -> str:
    """A model card in Markdown, of the facts that a distillation records."""
    plan = facts["plan"]
    kind = plan["kind"]
    if kind == "eagle":
        kind = f"eagle, vision {plan['geometry']['vision']}"
    data = plan["data"] or "the generator of the embedded model"
    data = "a folder of its own" if data == "own" else data
    lines = [
        "---",
        "library_name: specdec",
        "tags: [speculative-decoding]",
        "---",
        f"# A drafter for {verifier}",
        "",
        f"Kind: {kind}; {facts['parameters']:,} parameters. `specdec distill` made it, for this "
        "verifier alone:",
        "",
        "```python",
        'out = specdec.generate(model, drafter="this folder", tree="auto", **inputs)',
        "```",
        "",
        "## Data",
        f"{facts['answers']:,} answers, {facts['answer_tokens']:,} tokens, which {verifier} gave "
        f"itself, greedy and sampled, to prompts from {data}.",
        "",
        "## Recipe",
        f"{facts['training_steps']:,} steps of {plan['training']['batch']} answers in "
        f"{facts['training_minutes']} minutes, peak learning rate {plan['training']['rate']}, seed "
        f"{plan['training']['seed']}. All options are in `drafter.json` under `plan`.",
        "",
        "## Figures",
        f"Greedy, by the engine, on {facts['acceptance'][0]['questions']} prompts that were kept "
        "apart. τ is the mean acceptance length, the verifier's own token included.",
        "",
        "| | τ | accepted by position |",
        "|---|---|---|",
    ]
    for row in facts["acceptance"]:
        steps = max(row["num_spec_steps"], 1)
        shares = " ".join(f"{count / steps:.2f}" for count in row["num_accepted_tokens_per_pos"])
        tau = row["mean_acceptance_length"]
        lines.append(f"| chain of {row['chain']} | {tau:.2f} | {shares} |")
    by_task = facts["acceptance"][-1].get("mean_acceptance_length_by_task", {})
    if by_task:
        lines += ["", f"| task | τ, chain of {facts['acceptance'][-1]['chain']} |", "|---|---|"]
        lines += [f"| {task} | {tau:.2f} |" for task, tau in sorted(by_task.items())]
    if by_modality := facts["acceptance_by_modality"]:
        lines += ["", "| tokens that depend on | drafted | accepted |", "|---|---|---|"]
        for name, what in (("visual", "the image"), ("language", "words alone")):
            if found := by_modality.get(name):
                share = found["draft_acceptance_rate"]
                lines.append(f"| {what} | {found['num_draft_tokens']:,} | {share:.0%} |")
    return "\n".join(lines) + "\n"
