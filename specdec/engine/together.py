"""Rules that want to see all rows of a batch at once, a column at a time, as in plain decoding.

The slow path for logits processors and stopping criteria that may remember something and cannot be
had once for each row: their rows draft nothing and advance together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.engine.request import Request
    from specdec.engine.target import Target


@dataclass(slots=True, eq=False)
class Together:
    """The rules of one batch.

    Attributes:
        processor: ``(ids (B, T), logits (B, V)) -> scores (B, V)``; ``None`` changes nothing.
        stopping: ``(ids (B, T), scores) -> bool (B,)``; ``None`` never stops.
        pad: what rows that have ended go on with.
        ends_alone: a row that ends is padded; else it goes on until all have ended.
        rows: the requests, by row.
    """

    processor: Callable[[Tensor, Tensor], Tensor] | None
    stopping: Callable[[Tensor, Any], Tensor] | None
    pad: int
    ends_alone: bool
    rows: Sequence[Request] = ()
    _logits: dict[int, Tensor] = field(default_factory=dict)
    _columns: list[Tensor] = field(default_factory=list)
    _ended: Tensor | None = None

    def scores(self, targets: Sequence[Target]) -> dict[int, Tensor]:
        """Processed scores ``(V,)`` by request id, for the rows that still run."""
        keep_scores = self.rows[0].decoding.keep_scores
        if self.processor is None and not keep_scores:
            return {}
        # Of a row that has ended the last are shown again.
        self._logits |= {target.request.row: target.logits[0].float() for target in targets}
        scores = torch.stack([self._logits[row] for row in range(len(self.rows))])
        scores = scores.to(self.rows[0].ids.device)
        if self.processor is not None:
            scores = self.processor(self._ids(), scores)
        if keep_scores:
            self._columns.append(scores)
        return {request.view.id: scores[request.row] for request in self.rows}

    def stop(self) -> None:
        """Ask the criteria about the column that has just been handed out."""
        if self.stopping is None:
            return
        stops = self.stopping(self._ids(), tuple(self._columns) or None)
        self._ended = stops if self._ended is None else self._ended | stops
        if self.ends_alone or bool(self._ended.all()):
            for request, ended in zip(self.rows, self._ended.tolist(), strict=True):
                if ended:
                    request.finish_reason = request.finish_reason or "stop"

    def _ids(self) -> Tensor:
        """Everything said so far ``(B, T)``, padding behind what has ended."""
        length = max(request.length for request in self.rows)
        for request in self.rows:
            request.ids[request.length : length] = self.pad
        return torch.stack([request.ids[:length] for request in self.rows])


def by_batch(targets: Sequence[Target]) -> list[tuple[Together, list[Target]]]:
    """The targets whose rules want to see a batch, batch by batch."""
    batches: dict[int, tuple[Together, list[Target]]] = {}
    for target in targets:
        together = target.request.decoding.together
        if together is not None:
            batches.setdefault(id(together), (together, []))[1].append(target)
    return list(batches.values())
