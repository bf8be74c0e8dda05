"""What tells one drafter or verifier from another, for what is remembered of them. Keeps nothing
alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Identified(Protocol):
    """A drafter or a verifier that is made anew now and then, and is the same all the same."""

    @property
    def identity(self) -> Hashable:
        """Equal for those that propose, or decide, alike in as much time. Keeps nothing alive."""


def identity_of(part: object) -> Hashable:
    """What tells a drafter or a verifier from others, without keeping it alive."""
    if isinstance(part, Identified):
        return part.identity
    try:
        return weakref.ref(part)
    except TypeError:  # its class has __slots__ that do without
        return id(part)
