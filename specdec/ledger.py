"""How each token of an answer came to be accepted, and what that cost."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Entry(NamedTuple):
    """One token of an answer.

    Attributes:
        token: its id.
        rule: ``matched``: drafted, and lossless acceptance would have kept it; ``relaxed``:
            drafted, and it would not have; ``verifier``: the verifier's own token.
        reliance: v, how much it depends on the image, as estimated; ``None`` where it was not.
        epsilon: ε_v, by how much the target could give way; 0 where a guard held.
        spent: by how much it did: total variation when sampling, nats of regret when greedy.
        own: the verifier's most probable token there.
    """

    token: int
    rule: Literal["matched", "relaxed", "verifier"]
    reliance: float | None
    epsilon: float
    spent: float
    own: int
