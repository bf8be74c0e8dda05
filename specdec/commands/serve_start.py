"""What `specdec serve` sees to before it answers: its port, its memory, and what it says of itself.

Nothing heavy is imported here: a port that is taken is told before a model is loaded.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from specdec.commands.errors import UserError
from specdec.commands.serve_ray import note

if TYPE_CHECKING:
    from specdec import ThreadedEngine
    from specdec.serving.settings import Settings

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+|\*")
_GIB = 2**30


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that hold the addresses a host stands for, in this context; nobody is answered yet.
    None in a process that follows another's.

    Raises:
        UserError: another has them, or they are not of this machine.
    """
    with ExitStack() as stack:
        try:
            sockets = _bind(host, port, stack) if _is_first() else []
        except OSError as error:
            raise not_bound(host, port, error) from error
        yield sockets


def _bind(host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        each = stack.enter_context(socket.socket(family, kind, protocol))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # All of a host's addresses have the same port.
        same = sockets[0].getsockname()[1] if sockets else port
        each.bind((address[0], same, *address[2:]))
        sockets.append(each)
    return sockets


def not_bound(host: str, port: int, error: OSError) -> UserError:
    """What is to be said of an address that cannot be listened on."""
    return UserError(
        f"cannot listen on {host}, port {port}: {error.strerror or error}; name another with "
        "--host or --port, of which 0 takes any that is free"
    )


def check_origins(origins: Sequence[str]) -> None:
    """Refuse what no browser calls an origin.

    Raises:
        UserError: one of them is none.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors-origin {origin}: no page has this origin; expected scheme and host, and a "
                "port unless it is the scheme's own, such as https://app.example or "
                "http://localhost:3000"
            )


def report(
    engine: ThreadedEngine, settings: Settings, tree: str, kv_cache_gib: float | None
) -> None:
    """Tell what is served, and what of it will not go well.

    Args:
        engine: answers.
        settings: the operator's.
        tree: how much is drafted, as the operator gave it.
        kv_cache_gib: memory for keys, likewise; ``None``: not at all.
    """
    from specdec.prompts import context_length
    from specdec.runtime import free_bytes
    from specdec.serving.speculation import Policy

    model, verifier = engine.model, engine.verifier
    context, limit = context_length(model), verifier.pages_limit
    drafts = f"{settings.drafter} drafts, tree {tree}" if settings.drafter else "nobody drafts"
    told = [type(model).__name__, str(model.dtype).removeprefix("torch."), f"on {model.device}"]
    told += [drafts, f"policy {Policy(engine.acceptance).describe()['kind']}"]
    if context is not None:
        told.append(f"context of {context} tokens")
    if limit is not None:
        room = limit * verifier.page_size
        told.append(f"{_gib(limit * verifier.bytes_per_page)} for the keys of {room} tokens")
    note(f"{settings.model}: {', '.join(told)}")
    if kv_cache_gib is not None and kv_cache_gib * _GIB > (free := free_bytes(model.device)):
        note(
            f"warning: --kv-cache-gib {kv_cache_gib:g} is more than the {_gib(free)} that are free"
        )
    prompt = settings.max_prompt_tokens or context
    if limit is None or prompt is None:
        return
    longest = prompt + settings.max_tokens
    longest = longest if context is None else min(longest, context)
    if longest > room:
        note(
            f"warning: a request may have {longest} tokens, more than there is memory for, and "
            "then ends with an error; raise --kv-cache-gib, or lower --max-prompt-tokens or "
            "--max-tokens"
        )


def _is_first() -> bool:
    """Whether this process listens, of those that torchrun started, or because it is alone."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def _gib(count: float) -> str:
    return f"{count / _GIB:.3g} GiB"
