"""What processes that run one verifier say to each other: calls, and how they went.

All of it goes over a group of its own, on the CPU, so that it never waits for a GPU's work. Tensors
are broadcast; what they are arguments of is pickled, as torch's own object collectives do. Reading
a pickle runs what it says: it comes from rank 0 of one's own processes, over connections that
torch.distributed made between them, which belong on a private network. Nothing that a client sends
is read as a pickle. Knows nothing of models.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from transformers.cache_utils import Cache

from specdec.tree import DraftTree, Topology, topology

_TEXT = 512  # bytes of an outcome
_HEAD = 4096  # bytes that are sent first: most messages are no longer
_NAME, _TENSOR = "name", "tensor"


class OutOfStep(RuntimeError):
    """Processes that run one verifier do not do the same any more; all of them have to end."""


class Call(NamedTuple):
    """A method of the verifier, what it is given, and the first of the names for what it gives."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int


class Message(NamedTuple):
    """Calls to make in order, each pickled for itself, since it may name what one before it gives;
    and names that are of no use any more behind them. ``ends``: there are no more.
    """

    calls: tuple[bytes, ...] = ()
    forget: tuple[int, ...] = ()
    ends: bool = False


Naming = Callable[[Any], int | None]


class Packed(NamedTuple):
    """A message, and the tensors in it, in order."""

    message: Message
    tensors: list[Tensor]


def packed(calls: Sequence[Call], forget: tuple[int, ...], name_of: Naming) -> Packed:
    """What to send to have the others make these calls.

    Args:
        calls: in order.
        forget: names that are of no use behind them.
        name_of: the name of a value that all ranks have; ``None`` for any other.

    Raises:
        ValueError: some of it cannot be sent.
    """
    tensors: list[Tensor] = []
    texts = []
    for call in calls:
        written = io.BytesIO()
        try:
            _Writer(written, name_of, tensors).dump(call)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(
                f"an argument of this request cannot be sent to the other processes: {error}"
            ) from error
        texts.append(written.getvalue())
    return Packed(Message(tuple(texts), forget), tensors)


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
        text = bytearray(pickle.dumps(packed.message, pickle.HIGHEST_PROTOCOL))
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
        message: Message = pickle.loads(text)  # see above whose it is
        return message

    def read(self, call: bytes, named: Mapping[int, Any], device: torch.device) -> Call:
        """A call of the message that was received last.

        Args:
            call: as it came.
            named: values by their names.
            device: where tensors go that were on a device there.
        """
        read: Call = _Reader(call, named, device, self._broadcast).load()
        return read

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


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, name_of: Naming, tensors: list[Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._name_of = name_of
        self._tensors = tensors

    def persistent_id(self, value: Any) -> Any:
        """How a value is written that is not pickled: its name, or a tensor's kind."""
        name = self._name_of(value)
        if name is not None:
            return _NAME, name
        if not isinstance(value, Tensor):
            return None
        self._tensors.append(value)
        return _TENSOR, tuple(value.shape), value.dtype, value.device.type != "cpu"

    def reducer_override(self, value: Any) -> Any:
        """Shapes of trees are made anew; caches and draft distributions stay behind."""
        if isinstance(value, Topology):
            return topology, (value.parents,)
        if isinstance(value, DraftTree):
            return DraftTree, (value.topology, value.tokens)
        if isinstance(value, Cache):
            return _nothing, ()
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(
        self,
        text: bytes,
        named: Mapping[int, Any],
        device: torch.device,
        fill: Callable[[Tensor], None],
    ) -> None:
        super().__init__(io.BytesIO(text))
        self._named = named
        self._device = device
        self._fill = fill

    def persistent_load(self, known: Any) -> Any:
        """What was written so. Tensors arrive in the order in which they are read."""
        if known[0] == _NAME:
            return self._named[known[1]]
        _, shape, dtype, on_device = known
        value = torch.empty(shape, dtype=dtype)
        self._fill(_bytes_of(value))
        return value.to(self._device) if on_device else value


def _nothing() -> None:
    """A cache, in another process: it has its own."""


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's memory, which a CPU's collectives take whatever the dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
