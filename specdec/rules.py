"""transformers' logits processors and stopping criteria, for rows that advance at their own pace.

With one row everything is called as plain decoding calls it. With several:

- what is known to depend on a row's tokens alone is called for each row by itself;
- what can be had once for each row, by a method ``fork()`` without arguments, is: each copy sees
  its own row, ids ``(1, T)``, once per position and in order. It never has to go back: nothing is
  asked about tokens that may yet be rejected;
- with anything else among them, the rows advance together and draft nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import logits_process

from specdec.engine.together import Together

Processor = Callable[[Tensor, Tensor], Tensor]
Stopping = Callable[[Tensor, Any], bool]

# Classes of transformers whose result depends on their arguments only, by name: not every release
# has all of them.
_STATELESS = frozenset(
    f"{name}LogitsProcessor"
    for name in (
        *("MinLength", "MinNewTokensLength", "RepetitionPenalty", "EncoderRepetitionPenalty"),
        *("NoRepeatNGram", "EncoderNoRepeatNGram", "SequenceBias", "NoBadWords", "Watermark"),
        *("ForcedBOSToken", "ForcedEOSToken", "InfNanRemove"),
        *("SuppressTokensAtBegin", "SuppressTokens"),
    )
) | frozenset(
    f"{name}LogitsWarper"
    for name in ("Temperature", "TopP", "TopK", "TopH", "MinP", "Typical", "Epsilon", "Eta")
)
_STATELESS |= {"ExponentialDecayLengthPenalty", "LogitNormalization"}
_PER_ROW = (StopStringCriteria, MaxTimeCriteria)


class Rules(NamedTuple):
    """How the rows of a batch choose and end.

    Attributes:
        max_length: most tokens in all.
        eos_token_ids: tokens that end an answer.
        processors: per row; ``None`` changes nothing.
        stoppings: per row; ``None`` never stops.
        together: instead of the last two.
    """

    max_length: int
    eos_token_ids: frozenset[int]
    processors: Sequence[Processor | None]
    stoppings: Sequence[Stopping | None]
    together: Together | None = None


def rules(
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    *,
    rows: int,
    max_length: int,
    pad: int,
) -> Rules:
    """The rules that these lists stand for."""
    eos, others = set[int](), StoppingCriteriaList()
    has_eos = False
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(max_length, criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos.update(criterion.eos_token_id.tolist())
            has_eos = True
        else:
            others.append(criterion)
    # Without end tokens transformers lets a row that was stopped go on until all are.
    parted = rows == 1 or (has_eos or not others)
    if parted and (rows == 1 or (_separable(processors) and _separable(others))):
        return Rules(
            max_length,
            frozenset(eos),
            [_processor(processors, row, rows) for row in range(rows)],
            [_stopping(others, rows) for _ in range(rows)],
        )
    nothing: list[None] = [None] * rows
    together = Together(
        _whole(processors) if processors else None,
        others if others else None,
        pad,
        has_eos,
    )
    return Rules(max_length, frozenset(eos), nothing, nothing, together)


def _separable(parts: Sequence[Any]) -> bool:
    return all(
        hasattr(part, "fork")
        or isinstance(part, _PER_ROW)
        or _is_stateless(part)
        or type(part) is logits_process.PrefixConstrainedLogitsProcessor
        for part in parts
    )


def _is_stateless(part: Any) -> bool:
    kind = type(part)
    return kind.__module__ == logits_process.__name__ and kind.__name__ in _STATELESS


def _whole(processors: LogitsProcessorList) -> Processor:
    as_given: Any = processors  # a list that is callable
    return lambda ids, logits: as_given(ids, logits)


def _processor(processors: LogitsProcessorList, row: int, rows: int) -> Processor | None:
    """The processors for one row."""
    if not processors:
        return None
    if rows == 1:
        return _whole(processors)
    steps: list[Processor] = []
    for part in processors:
        if hasattr(part, "fork"):
            steps.append(part.fork())
        elif type(part) is logits_process.PrefixConstrainedLogitsProcessor:
            steps.append(_prefix_constrained(part, row))
        else:
            steps.append(_in_batch(part, row, rows))

    def process(ids: Tensor, logits: Tensor) -> Tensor:
        for step in steps:
            logits = step(ids, logits)
        return logits

    return process


def _in_batch(part: Any, row: int, rows: int) -> Processor:
    """A processor that may hold something per row: it is shown a batch of this row."""
    return lambda ids, logits: part(ids.expand(rows, -1), logits.repeat(rows, 1))[row, None]


def _prefix_constrained(part: Any, row: int) -> Processor:
    """The same constraint, asked for this row only."""
    allowed = part._prefix_allowed_tokens_fn
    return logits_process.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)


def _stopping(criteria: StoppingCriteriaList, rows: int) -> Stopping | None:
    """The criteria for one row."""
    if not criteria:
        return None
    own = criteria
    if rows > 1:
        own = StoppingCriteriaList(
            [part.fork() if hasattr(part, "fork") else part for part in criteria]
        )
    return lambda ids, scores: bool(own(ids, scores).any())
