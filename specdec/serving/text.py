"""The text of an answer while it arrives, up to a stop string. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from specdec.detokenizer import Detokenizer
from specdec.engine import Emission


class Piece(NamedTuple):
    """What a token adds to an answer's text."""

    text: str
    emission: Emission


class AnswerText:
    """Hands on the text of tokens as soon as it cannot be the beginning of a stop string.

    Args:
        tokenizer: decodes; special tokens are left out.
        stops: the answer ends before the first of these.

    Attributes:
        stopped: the stop string that was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._special = frozenset(tokenizer.all_special_ids)
        self._decoded = Detokenizer(tokenizer)
        self._stops = stops
        self._inside: list[Piece] = []  # tokens of a character that is not complete
        self._held: list[Piece] = []  # what may begin a stop string

    def take(self, emission: Emission) -> list[Piece]:
        """What can be said now that this token is there; nothing behind a stop string."""
        text = self._decoded.add(emission.token)
        if self.stopped is not None or emission.token in self._special:
            return []
        self._inside.append(Piece(text, emission))
        return self._release() if text else []

    def end(self) -> list[Piece]:
        """The rest."""
        rest = self._decoded.end() if self._decoded.tokens else ""
        if self.stopped is not None:
            return []
        if rest and self._inside:
            last = self._inside[-1]
            self._inside[-1] = last._replace(text=last.text + rest)
        released = self._release()
        if self.stopped is None:
            released += self._held
            self._held = []
        return released

    def _release(self) -> list[Piece]:
        """Part with what no stop string can begin in. Whole tokens, but for the last of all."""
        self._held += self._inside
        self._inside = []
        text = "".join(piece.text for piece in self._held)
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            released, _ = _cut(self._held, at)
            rest = at - sum(len(piece.text) for piece in released)
            if rest:
                cut = self._held[len(released)]
                released.append(cut._replace(text=cut.text[:rest]))
            return released
        open_from = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        released, self._held = _cut(self._held, open_from)
        return released


class StopTexts(StoppingCriteria):
    """Ends an answer at the token that completes a stop string, as :class:`AnswerText` sees it.

    For one answer: it keeps what was said. transformers' own needs to look through the whole
    vocabulary for every new string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._text = AnswerText(tokenizer, stops)

    # Any: of transformers' interface.
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self._text.take(Emission(0, int(input_ids[0, -1]), False))
        return torch.tensor([self._text.stopped is not None], device=input_ids.device)


def _cut(pieces: list[Piece], at: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces that end at or before character ``at``, and the others."""
    end = 0
    for index, piece in enumerate(pieces):
        end += len(piece.text)
        if end > at:
            return pieces[:index], pieces[index:]
    return pieces, []


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
