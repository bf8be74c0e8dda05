"""Plain and speculative decoding of the same questions: equal tokens first, then the times.

Knows nothing of terminals but the table that it makes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.table import Table

import specdec
from specdec.eval.timing import Check, Inputs, Method, Run, Said, check, interleaved
from specdec.stats import AcceptanceStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specdec.engine import Emission
    from specdec.interfaces import Drafter

ROUNDS = 2
# Two tokens whose logits are closer than this count as tied below fp32, where forwards over one and
# over several tokens round differently. In fp32 nothing does.
TIE = 0.25


class NotEqual(Exception):
    """Speculative tokens are not those of plain decoding."""


class Times(NamedTuple):
    """Number of the question and run; a question's runs in the same round lie at the same index."""

    plain: list[tuple[int, Run]]
    speculative: list[tuple[int, Run]]

    @property
    def speedups(self) -> list[float]:
        """Per pair, how many times faster a token comes speculatively."""
        pairs = zip(self.plain, self.speculative, strict=True)
        return [plain.ms_per_token / ours.ms_per_token for (_, plain), (_, ours) in pairs]


class Contestants:
    """Both ways to an answer, greedy, over the same model.

    Args:
        model: the model.
        drafter: its drafter.
        max_new_tokens: longest answer.
    """

    def __init__(self, model: PreTrainedModel, drafter: Drafter, max_new_tokens: int) -> None:
        self.model = model
        self.drafter = drafter
        self._how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}

    def plain(self, inputs: Inputs) -> Said:
        """transformers' `generate`."""
        model: Any = self.model  # generate comes from a mixin that PreTrainedModel does not declare
        out = model.generate(**inputs, **self._how)
        return Said(out[0, inputs["input_ids"].shape[1] :].tolist())

    def speculative(
        self, inputs: Inputs, on_emission: Callable[[Emission], None] | None = None
    ) -> Said:
        """specdec's."""
        out = specdec.generate(
            self.model, drafter=self.drafter, on_emission=on_emission, **inputs, **self._how
        )
        return Said(out[0, inputs["input_ids"].shape[1] :].tolist(), out.stats)

    def compare(self, answers: Sequence[tuple[Inputs, Said, Said]]) -> Check:
        """Inputs, plain and speculative answer of each question against one another.

        Raises:
            NotEqual: tokens differ where they may not.
        """
        asked, plain, speculative = zip(*answers, strict=True)
        bound = 0.0 if self.model.dtype == torch.float32 else TIE
        result = check(self.model, asked, plain, speculative, bound)
        if result.wrong:
            raise NotEqual(
                f"{result.wrong} of {result.answers} answers. No speed is shown for wrong tokens; "
                "please report this."
            )
        return result

    def time(self, questions: Sequence[Inputs]) -> Times:
        """Both on every question in turn, so that whatever else the machine does falls on both
        alike. Warm up before."""
        methods = [Method("plain", self.plain), Method("speculative", self.speculative, ours=True)]
        times = Times([], [])
        for number, name, run in interleaved(methods, questions, ROUNDS):
            (times.plain if name == "plain" else times.speculative).append((number, run))
        return times


def report(times: Times, result: Check) -> Table:
    """The figures of one interleaved run."""
    stats = AcceptanceStats()
    for _, run in times.speculative:
        assert run.said.stats is not None
        stats.merge(run.said.stats)
    seconds, speedups = stats.times, times.speedups
    step = seconds.step or 1.0  # no step at all: every answer was a single token
    equal = f"[bold green]yes[/]   {result.tokens} tokens in {result.answers} answers"
    if result.ties:
        equal = (
            f"[yellow]up to ties[/]   {result.ties} of {result.answers} answers part where "
            "rounding decides between the two best tokens"
        )
    rows = {
        "equal to plain decoding": equal,
        "mean acceptance length τ": f"[bold]{stats.mean_acceptance_length:.2f}[/] tokens per step "
        "of the large model",
        "acceptance rate": f"{stats.draft_acceptance_rate:.0%} of the drafted tokens",
        "transformers generate": _milliseconds(times.plain),
        "specdec": _milliseconds(times.speculative),
        "speedup": f"[bold]{statistics.median(speedups):.2f}×[/]   median of {len(speedups)} "
        f"paired ratios, {min(speedups):.2f}× to {max(speedups):.2f}×",
        "a step's time": f"draft {seconds.draft / step:.0%} · verify {seconds.verify / step:.0%} · "
        f"accept {seconds.accept / step:.0%} · commit {seconds.commit / step:.0%}",
        "outside the two models": f"{seconds.overhead:.0%} of a step",
    }
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _milliseconds(runs: Sequence[tuple[int, Run]]) -> str:
    return f"{statistics.median(run.ms_per_token for _, run in runs):.2f} ms/token"
