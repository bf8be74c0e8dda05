"""STUB"""

from __future__ import annotations

from typing import NamedTuple

import torch

GUARDS = ("digits", "negation", "units", "quotes", "markup")


class GuardState(NamedTuple):
    n: int = 0


class Guards:
    def __init__(self, tokenizer, vocab_size, names=GUARDS, *, words=(), stop_tokens=()):  # type: ignore
        self.tokens = torch.zeros(vocab_size, dtype=torch.bool)
        self.tokens[list(stop_tokens)] = True
        self.start = GuardState()

    def advance(self, state: GuardState, token: int) -> GuardState:
        return state

    def closed(self, state: GuardState) -> bool:
        return False
