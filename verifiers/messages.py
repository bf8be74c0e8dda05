"""What processes that run one verifier say to each other: calls, and how they went.

All of it goes over a group of its own, on the CPU, so that it never waits for a GPU's work. Tensors
are broadcast; what they are arguments of is JSON: numbers, strings and ``null`` are themselves, and
everything else is a list whose first element says what the others make. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, make_dataclass
from datetime import timedelta
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from specdec.interfaces import Encoded, Piece, Prompt, Ready
from specdec.tree import DraftTree, topology

_TEXT = 512  # bytes of an outcome
_HEAD = 4096  # bytes that are sent first: most messages are no longer
_RECORDS = MappingProxyType({kind.__name__: kind for kind in (Prompt, Encoded, Ready, Piece)})


class OutOfStep(RuntimeError):
    """Processes that run one verifier do not do the same any more; all of them have to end."""


class Call(NamedTuple):
    """A method of the verifier, what it is given, and the first of the names for what it gives."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int


class Message(NamedTuple):
    """Calls to make in order, as they were written, each to be read when those before it are made:
    it may name what they give; and names that are of no use any more behind them. ``ends``: there
    are no more.
    """

    calls: Sequence[Any] = ()
    forget: Sequence[int] = ()
    ends: bool = False


Naming = Callable[[Any], int | None]


class Packed(NamedTuple):
    """A message, and the tensors in it, in order."""

    message: Message
    tensors: list[Tensor]

    def forgetting(self, names: Sequence[int]) -> Packed:
        """The same, and that these names are of no use behind it."""
        return self._replace(message=self.message._replace(forget=names))


def packed(calls: Sequence[Call], name_of: Naming) -> Packed:
    """What to send to have the others make these calls.

    Args:
        calls: in order.
        name_of: the name of a value that all ranks have; ``None`` for any other.

    Raises:
        ValueError: some of it cannot be sent.
    """
    writer = _Writer(name_of)
    written = [writer.write(tuple(call)) for call in calls]
    return Packed(Message(written), writer.tensors)


class Channel:
    """Messages from rank 0 to all others, and every rank's word on what came of them.

    Making one is a collective: all ranks do it, waiting for one another as long as their default
    group does. So is every method.

    Args:
        seconds: how long one rank waits for another.

    Raises:
        OutOfStep: by every method: another rank is gone, or does not answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        distributed.barrier()  # one may still be loading what another has
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))

    def send(self, packed: Packed) -> None:
        """Tell the others what to do."""
        head = torch.zeros(_HEAD, dtype=torch.uint8)
        text = bytearray(json.dumps(packed.message).encode())
        head[:8] = torch.tensor([len(text)]).view(torch.uint8)
        first, rest = text[: _HEAD - 8], text[_HEAD - 8 :]
        head[8 : 8 + len(first)] = torch.frombuffer(first, dtype=torch.uint8)
        self._broadcast(head)
        if rest:
            self._broadcast(torch.frombuffer(rest, dtype=torch.uint8))
        for tensor in packed.tensors:
            self._broadcast(_bytes_of(tensor.cpu()))

    def receive(self) -> Message:
        """What rank 0 says; waits for it. Its calls are to be read in order."""
        head = torch.empty(_HEAD, dtype=torch.uint8)
        self._broadcast(head)
        size = int(head[:8].view(torch.long))
        rest = torch.empty(max(0, size - (_HEAD - 8)), dtype=torch.uint8)
        self._broadcast(rest)
        text = torch.cat([head[8 : 8 + size], rest]).numpy().tobytes()
        return Message(*json.loads(text))

    def read(self, call: Any, named: Mapping[int, Any], device: torch.device) -> Call:
        """A call of the message that was received last.

        Args:
            call: as it came.
            named: values by their names.
            device: where tensors go that were on a device there.
        """
        return Call(*_Reader(named, device, self._broadcast).read(call))

    def outcomes(self, mine: str) -> list[str]:
        """What came of the last message in every rank: "" is that all is well."""
        own = torch.zeros(_TEXT, dtype=torch.uint8)
        text = list(mine.encode()[:_TEXT])
        own[: len(text)] = torch.tensor(text, dtype=torch.uint8)
        each = [torch.empty_like(own) for _ in range(distributed.get_world_size(self._group))]
        with self._clearly():
            distributed.all_gather(each, own, group=self._group)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in each]

    def _broadcast(self, tensor: Tensor) -> None:
        if tensor.numel():
            with self._clearly():
                distributed.broadcast(tensor, src=0, group=self._group)

    @contextmanager
    def _clearly(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise OutOfStep(
                "another process of those that run this model is gone, or has not answered for "
                f"{self._seconds:g} s; what it said last is in its own output. Start all anew"
            ) from error


class _Writer:
    """Writes arguments; ``tensors`` are those to be sent beside them, in order."""

    def __init__(self, name_of: Naming) -> None:
        self.tensors: list[Tensor] = []
        self._name_of = name_of

    def write(self, value: Any) -> Any:
        """What JSON has for it.

        Raises:
            ValueError: nothing.
        """
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        name = self._name_of(value)
        if name is not None:
            return ["name", name]
        match value:
            case Tensor():
                self.tensors.append(value)
                dtype = str(value.dtype).removeprefix("torch.")
                return ["tensor", list(value.shape), dtype, value.device.type != "cpu"]
            case Cache():  # every process has its own
                return None
            case bytes():
                return ["bytes", value.hex()]
            case range():
                return ["range", value.start, value.stop, value.step]
            case DraftTree():  # what it was drawn from stays here
                return ["tree", self.write(value.topology.parents), self.write(value.tokens)]
            case ModelOutput():
                names = [each.name for each in fields(cast(Any, value))]  # its subclasses are
                return ["output", names, *(self.write(getattr(value, name)) for name in names)]
            case Mapping():
                return ["dict", *([self.write(key), self.write(value[key])] for key in value)]
            case list():
                return ["list", *map(self.write, value)]
            case tuple() if type(value) in _RECORDS.values() or not hasattr(value, "_fields"):
                kind = type(value).__name__
                return [kind if kind in _RECORDS else "tuple", *map(self.write, value)]
        raise ValueError(
            f"a {type(value).__name__} among the arguments of this request cannot be sent to the "
            "other processes; tensors, numbers, strings, and lists and mappings of them can be"
        )


class _Reader:
    """Reads what a :class:`_Writer` wrote; ``fill`` takes the next tensor's bytes in."""

    def __init__(
        self, named: Mapping[int, Any], device: torch.device, fill: Callable[[Tensor], None]
    ) -> None:
        self._named = named
        self._device = device
        self._fill = fill

    def read(self, written: Any) -> Any:
        """The value. Tensors arrive in the order in which they are read."""
        if not isinstance(written, list):
            return written
        kind, *parts = written
        match kind:
            case "name":
                return self._named[parts[0]]
            case "tensor":
                return self._tensor(*parts)
            case "bytes":
                return bytes.fromhex(parts[0])
            case "range":
                return range(*parts)
            case "dict":
                return {self.read(key): self.read(value) for key, value in parts}
            case "output":
                return _output(tuple(parts[0]))(*map(self.read, parts[1:]))
        values = [self.read(part) for part in parts]
        match kind:
            case "list":
                return values
            case "tuple":
                return tuple(values)
            case "tree":
                return DraftTree(topology(values[0]), values[1])
        return _RECORDS[kind](*values)

    def _tensor(self, shape: Sequence[int], dtype: str, on_device: bool) -> Tensor:
        value = torch.empty(shape, dtype=getattr(torch, dtype))
        self._fill(_bytes_of(value))
        return value.to(self._device) if on_device else value


@cache
def _output(names: tuple[str, ...]) -> type:
    """A model's output with these fields, whichever class it had: it is read by their names."""
    empty = [(name, Any, None) for name in names]
    return make_dataclass("Output", empty, bases=(ModelOutput,))


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's memory, which a CPU's collectives take whatever the dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
