"""A fidelity measurement for readers: a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdec.eval.fidelity_report import COLUMNS, cells, title, verdicts

Json = Mapping[str, Any]  # Any: JSON values

_HEAD = """# What relaxed acceptance gains, and what it costs

{machine}; {questions} held-out questions about images whose facts are known, drafts of a chain of
{tree}. Written by `python -m specdec.eval.fidelity` ([as recorded](results/fidelity.json)).

*Retained* is a policy's share of facts (or of answers with every fact right) over that of lossless
acceptance on the same questions; an answer that was cut off states nothing. *τ* is tokens a step of
the verifier. *Speedup* is the time a token of the verifier without a drafter over that of the
policy, in steps, prefill excluded, median over questions. *Similarity* is to the lossless answer,
word by word; sampled answers of all policies use the same random numbers. *Relaxed* is the share of
tokens that lossless acceptance would have refused, *spent* what an answer spent of the bound: nats
of regret when greedy, total variation when sampled.

Families named by an estimator and γ alone are `specdec.Relaxed` as it is unless told otherwise:
with all guards, and a floor of 0.1. *No guards*, *floor 0* and *uniform* leave something out, to
show what it is good for: uniform has neither weights nor guards. The *oracle* knows which tokens
the image decides, which nobody does: it shows what a better estimator could gain. 95 % bootstrap
intervals over questions.

![accuracy retained against mean acceptance length](fidelity.png)
"""


def markdown(result: Json) -> str:
    """The page."""
    machine = result["machine"]
    parts = [
        _HEAD.format(
            machine=f"{machine['cpu']}, {machine['cores']} cores, {result['dtype']}",
            questions=result["questions"],
            tree=result["tree"],
        )
    ]
    for at, found in result["results"].items():
        parts.append(f"## {title(at).capitalize()}\n")
        parts.append("".join(f"- {line}\n" for line in verdicts(found)))
        rows = [["policy", *COLUMNS], ["---", *["--:"] * len(COLUMNS)]]
        rows += [cells(row) for row in found["policies"]]
        parts.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(parts)


_COLOURS = {
    "random": "#777777",
    "uniform": "#b07d2b",
    "typical": "#8c564b",
    "top 10": "#c49c94",
    "FLy": "#e377c2",
    "probe": "#1f77b4",
    "attention": "#2ca02c",
    "divergence": "#9467bd",
    "combined": "#d62728",
    "oracle": "#000000",
}


def plot(result: Json, path: Path) -> None:
    """A panel per temperature: accuracy retained against τ, a line per family."""
    from matplotlib.figure import Figure

    found = result["results"]
    figure = Figure(figsize=(7.5 * len(found), 6.5), layout="constrained")
    for axes, (at, each) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        families: dict[str, list[Json]] = {}
        for row in each["policies"]:
            families.setdefault(row["family"], []).append(row)
        (lossless,) = families.pop("lossless")
        for name, rows in families.items():
            _line(axes, name, [lossless, *rows])
        for level in (0.995, 0.95):
            axes.axhline(100 * level, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set(
            title=title(at),
            xlabel="mean acceptance length τ",
            ylabel="grounded accuracy retained, %",
            ylim=(70, 112),
        )
        axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _line(axes: Any, name: str, rows: list[Json]) -> None:
    colour = next(shade for prefix, shade in _COLOURS.items() if name.startswith(prefix))
    marks = {"floor 0.01": "--", "floor 0": ":", "no guards": "-.", "graded": "--"}
    style = next((style for mark, style in marks.items() if mark in name), "-")
    values = [100 * row["fields_retained"]["value"] for row in rows]
    low = [100 * row["fields_retained"]["low"] for row in rows]
    high = [100 * row["fields_retained"]["high"] for row in rows]
    errors = [
        [value - edge for value, edge in zip(values, low, strict=True)],
        [edge - value for value, edge in zip(values, high, strict=True)],
    ]
    axes.errorbar(
        [row["tau"]["value"] for row in rows],
        values,
        yerr=errors,
        fmt="o",
        linestyle=style,
        color=colour,
        markersize=3,
        linewidth=1.2,
        elinewidth=0.5,
        label=name,
    )
