"""What values are known by that all processes of a verifier have: requests' handles, and tensors of
prompts, which are large and needed again.

A process holds such a value as long as rank 0 has a use for it. Knows nothing of messages.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from specdec.verifiers.prefill import Handle


class Names:
    """Rank 0's part: numbers for values.

    Attributes:
        next: the number that comes next.
    """

    def __init__(self) -> None:
        self.next = 0
        self._handles: dict[Handle, int] = {}
        self._tensors: dict[int, int] = {}  # by id, while they live
        self._forgotten: list[int] = []

    def add(self, value: Any) -> int:
        """A number for a handle, until it is dropped, or a tensor, as long as it lives here."""
        number, self.next = self.next, self.next + 1
        if isinstance(value, Handle):
            self._handles[value] = number
        else:
            self._tensors[id(value)] = number
            weakref.finalize(value, self._forget, id(value), number).atexit = False
        return number

    def find(self, value: Any) -> int | None:
        """The number of a value; ``None`` if it has none."""
        if isinstance(value, Handle):
            return self._handles.get(value)
        return self._tensors.get(id(value)) if isinstance(value, Tensor) else None

    def drop(self, handle: Handle) -> None:
        """The handle is of no use any more."""
        number = self._handles.pop(handle, None)
        if number is not None:
            self._forgotten.append(number)

    def forgotten(self) -> tuple[int, ...]:
        """Numbers that are of no use any more, said once."""
        said, self._forgotten = self._forgotten, []
        return tuple(said)

    def _forget(self, identity: int, number: int) -> None:
        self._forgotten.append(number)
        if self._tensors.get(identity) == number:
            del self._tensors[identity]


def parts_of(value: Any, kind: type) -> Iterator[Any]:
    """Values of a kind within tuples, lists and mappings, in order, as often as they are there."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from parts_of(each, kind)
