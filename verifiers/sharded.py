"""One verifier over several processes, as ``torchrun`` starts them: rank 0 decides what is run, all
others run the same beside it.

A forward of a model that is spread over processes is one that all of them make together. Rank 0
:func:`lead`: it tells the others of every call of its verifier before it makes it, and they
:func:`follow`, each with pages of its own, of its own heads. Whatever chance, time or a client has
a say in happens in rank 0 alone: scheduling, drafting, acceptance. Knows nothing of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from types import MappingProxyType, MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from specdec.verifiers.messages import Call, Channel, Message, OutOfStep, Packed, packed
from specdec.verifiers.names import Names, parts_of
from specdec.verifiers.prefill import Handle
from specdec.verifiers.transformers_model import TransformersVerifier

TIMEOUT = 120.0  # seconds that one process waits for another
_MAKE = "make"
# Methods that run forwards, which all have to make together; and those that change what a process
# keeps, of which the others may hear with the next of the former.
_AT_ONCE = frozenset({"measure", "prefill", "verify", "append", "encode"})
_LATER = frozenset({"begin", "commit", "release"})
_HERE = frozenset({"lacks", "visual_pages", "check_integrity"})  # those that change nothing
# What those give that is spoken of again.
_GIVES = MappingProxyType({"prefill": Handle, "begin": Handle, "encode": Tensor})
_Result = TypeVar("_Result")


def spread() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that spread a model over the processes of a torchrun; none
    if there is but this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    if "tp_plan" in (each.name for each in fields(DistributedConfig)):
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}  # before transformers 5.18


def lead(model: PreTrainedModel, *, timeout: float = TIMEOUT, **how: Any) -> TransformersVerifier:
    """Rank 0's verifier, which the other processes :func:`follow`.

    An exception that all of them have alike, such as :class:`specdec.cache.OutOfPages`, is the
    caller's, and they go on. Its ``close`` ends their following.

    Args:
        model: rank 0's part of the model.
        timeout: seconds to wait for another process.
        **how: as for :class:`TransformersVerifier`.

    Raises:
        ValueError: this is not rank 0 of several processes.
        OutOfStep: by it and by all methods, once the processes do not do the same any more.
    """
    if not distributed.is_initialized() or distributed.get_rank() != 0:
        raise ValueError(
            "only rank 0 of processes that share a model leads, here it is rank "
            f"{distributed.get_rank() if distributed.is_initialized() else 'of none'}; the others "
            "call specdec.serving.follow(model)"
        )
    # It has whatever the verifier has.
    return cast(TransformersVerifier, Leader(model, timeout, how))


class Leader:
    """What :func:`lead` gives: everything that a :class:`TransformersVerifier` is, and

    Attributes:
        error: why it is of no use any more; ``None`` while it is.
    """

    def __init__(self, model: PreTrainedModel, timeout: float, how: Mapping[str, Any]) -> None:
        self.error: OutOfStep | None = None
        self._own: TransformersVerifier | None = None
        self._names = Names()
        self._untold: list[Call] = []
        self._released: list[Handle] = []
        self._turn = threading.RLock()
        self._closed = threading.Event()
        self._channel = Channel(timeout)
        self._untold.append(Call(_MAKE, (), dict(how), 0))
        self._own = self._together(lambda: TransformersVerifier(model, **how))
        beat = threading.Thread(
            target=self._beat, args=(timeout / 4,), name="specdec-leader", daemon=True
        )
        beat.start()

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name)
        if not isinstance(own, MethodType) or name in _HERE:
            return own
        if name not in _AT_ONCE | _LATER:
            raise AttributeError(f"{name} is not for a verifier that is spread over processes")

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._turn:
                how = self._at_once if name in _AT_ONCE else self._later
                return how(name, own, args, kwargs)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "error" and not name.startswith("_"):
            raise AttributeError(
                f"{name} cannot be set on a verifier that is spread over processes: the others "
                "would not hear of it"
            )
        super().__setattr__(name, value)

    def close(self) -> None:
        """Have the others stop following. Harmless if that was done before."""
        with self._turn:
            if not self._closed.is_set() and self.error is None:
                with suppress(OutOfStep):  # they are gone, then
                    self._together(lambda: None)
                    self._channel.send(Packed(Message(ends=True), []))
            self._closed.set()

    def _at_once(self, name: str, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.error is not None:
            raise OutOfStep(*self.error.args) from self.error
        if self._closed.is_set():
            raise OutOfStep("this verifier was closed, and the other processes follow no more")
        call = Call(name, args, kwargs, self._names.next)
        self._untold.append(call)
        result = self._together(lambda: own(*args, **kwargs))
        self._note(call, result)
        return result

    def _later(self, name: str, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        call = Call(name, tuple(_as_now(each) for each in args), kwargs, self._names.next)
        result = own(*args, **kwargs)
        known = name != "release" or self._names.find(args[0]) is not None
        if self.error is not None or self._closed.is_set() or not known:
            return result  # what was begun can be given back all the same, and twice
        self._untold.append(call)
        self._note(call, result)
        if name == "release":
            self._released += parts_of(args, Handle)
        return result

    def _note(self, call: Call, result: Any) -> None:
        """Name what is to be spoken of again."""
        if call.method in _GIVES:
            for value in parts_of(result, _GIVES[call.method]):
                self._names.add(value)

    def _together(self, own: Callable[[], _Result]) -> _Result:
        """Have the others do what they were not told yet, and do one's own part meanwhile."""
        try:
            ready = packed(self._untold, self._names.find)
        except ValueError:
            self._untold.pop()  # what was told before could be packed
            raise
        failure: Exception | None = None
        try:
            self._channel.send(ready.forgetting(self._names.forgotten()))
            self._forget()
            try:
                result = own()
            except Exception as error:  # if it is theirs as well, it is the caller's
                failure = error
            compare(self._channel.outcomes(_told(failure)))
        except Exception as error:
            self.error = _out_of_step(error)
            raise self.error from failure or error
        except BaseException as error:
            self.error = _out_of_step(error)
            raise
        if failure is not None:
            raise failure
        return result

    def _forget(self) -> None:
        """The others know everything by now."""
        self._untold.clear()
        for handle in self._released:
            self._names.drop(handle)
        self._released.clear()

    def _beat(self, every: float) -> None:
        """Let the others know that somebody is there, and what they were not told."""
        while not self._closed.wait(every):
            with self._turn:
                if self.error is not None:
                    return
                if not self._closed.is_set():
                    with suppress(OutOfStep):  # it is kept
                        self._together(lambda: None)


@torch.no_grad()
def follow(model: PreTrainedModel, *, timeout: float = TIMEOUT) -> None:
    """Run along with rank 0's verifier until that is closed.

    Args:
        model: this process's part of the model.
        timeout: seconds to wait for another process; rank 0 gives a sign of life more often.

    Raises:
        ValueError: this is rank 0, or no process of several.
        OutOfStep: rank 0 is gone, or the processes do not do the same any more. Such a process has
            to end.
    """
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        raise ValueError("only ranks behind 0 of processes that share a model follow")
    channel = Channel(timeout)
    follower = _Follower(model, channel)
    while not (message := channel.receive()).ends:
        failure = follower.make(message)
        compare(channel.outcomes(_told(failure)), failure)


class _Follower:
    """Makes rank 0's calls."""

    def __init__(self, model: PreTrainedModel, channel: Channel) -> None:
        self._named: dict[int, Any] = {}  # what both have
        self._model = model
        self._channel = channel
        self._own: TransformersVerifier | None = None

    def make(self, message: Message) -> Exception | None:
        """Make the calls; the exception of the last one, if it fails.

        Raises:
            OutOfStep: another one fails. It went well in rank 0, or nobody would have heard of it.
        """
        failure = None
        for text in message.calls:
            if failure is not None:
                raise OutOfStep(f"only this process fails here: {_told(failure)}") from failure
            call = self._channel.read(text, self._named, self._model.device)
            try:
                self._make(call)
            except Exception as error:  # rank 0 has it as well, or all end
                failure = error
        for name in message.forget:
            self._named.pop(name, None)
        return failure

    def _make(self, call: Call) -> None:
        if call.method == _MAKE:
            self._own = TransformersVerifier(self._model, **call.kwargs)
            return
        result = getattr(self._own, call.method)(*call.args, **call.kwargs)
        if call.method in _GIVES:
            self._named |= enumerate(parts_of(result, _GIVES[call.method]), call.first)


def compare(outcomes: Sequence[str], mine: BaseException | None = None) -> None:
    """See that all processes came to the same.

    Raises:
        OutOfStep: they did not.
    """
    if len(set(outcomes)) > 1:
        said = "; ".join(f"rank {i}: {each or 'done'}" for i, each in enumerate(outcomes))
        raise OutOfStep(
            f"processes that run one model came to different ends ({said}); start all anew"
        ) from mine


def _told(failure: BaseException | None) -> str:
    return "" if failure is None else f"{type(failure).__name__}: {failure}"


def _out_of_step(error: BaseException) -> OutOfStep:
    if isinstance(error, OutOfStep):
        return error
    return OutOfStep(f"rank 0 did not finish its part: {_told(error)}; start all processes anew")


def _as_now(argument: Any) -> Any:
    """What the caller may change behind the call."""
    return list(argument) if isinstance(argument, list) else argument
