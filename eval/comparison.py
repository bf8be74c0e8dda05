"""The gate: no time is shown of a method that answers something else.

Knows nothing of command lines, files or tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from specdec.eval.bench_plan import REFERENCE
from specdec.eval.timing import Check, Inputs, Method, Said, check


class GateError(Exception):
    """A method's tokens are not those of ``model.generate``."""


def gate(
    model: PreTrainedModel,
    methods: Sequence[Method],
    asked: Sequence[Inputs],
    said: Mapping[str, Sequence[Said]],
    bound: float,
) -> dict[str, Check]:
    """How each method's answers compare with the reference's.

    Raises:
        GateError: those of one that is ours are others.
    """
    checks = {m.name: check(model, asked, said[REFERENCE], said[m.name], bound) for m in methods}
    for method in methods:
        result = checks[method.name]
        if method.ours and result.wrong:
            raise GateError(
                f"{method.name}: {result.wrong} of {result.answers} answers are not those of "
                f"model.generate (widest gap {result.widest:.3g} logits, allowed {bound}); "
                "no speeds are reported"
            )
    return checks
