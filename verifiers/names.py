"""What values are known by that all processes of a verifier have: requests' handles, and tensors of
prompts, which are large and needed again.

A process holds such a value as long as rank 0 has a use for it. Knows nothing of messages.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
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
        # By id, while they live: the number, and how often the tensor had been written to by then.
        self._tensors: dict[int, tuple[int, int | None]] = {}
        self._forgotten: list[int] = []

    def add(self, value: Any) -> int:
        """A number for a handle, until it is dropped, or a tensor, as long as it lives here."""
        number, self.next = self.next, self.next + 1
        if isinstance(value, Handle):
            self._handles[value] = number
        else:
            self._tensors[id(value)] = number, _version(value)
            weakref.finalize(value, self._forget, id(value), number).atexit = False
        return number

    def find(self, value: Any) -> int | None:
        """The number of a value; ``None`` if it has none, or may have been changed since."""
        if isinstance(value, Handle):
            return self._handles.get(value)
        if not isinstance(value, Tensor) or id(value) not in self._tensors:
            return None
        number, version = self._tensors[id(value)]
        return None if version is None or version != _version(value) else number

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
        if self._tensors.get(identity, (None,))[0] == number:
            del self._tensors[identity]


def _version(tensor: Tensor) -> int | None:
    """How often it has been written to; ``None`` if torch does not count."""
    return None if tensor.is_inference() else tensor._version


def parts_of(value: Any, kind: type) -> Iterator[Any]:
    """Values of a kind within tuples, lists and mappings, in order, as often as they are there."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from parts_of(each, kind)
