"""Which replica is asked what, so that pages of one image are computed and kept in one place.

Knows neither Ray nor HTTP: a request's body, names of replicas, and how busy they are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# Any, below: JSON values that nobody has checked yet.

_OPENING = 256  # characters, or tokens, of a prompt without an image that count
_SLACK = 1.25  # times the average that a replica may have to do before others help


def key_of(body: bytes) -> str | None:
    """What a request's pages depend on first: the system prompt and the first image.

    An image is the bytes that a ``data:`` URL holds, however they are written, or else its URL. Of
    a conversation without images the opening counts, so that its later turns have the same key; of
    ``/v1/completions``, that of the first prompt.

    Returns:
        A digest; ``None`` if nothing can be said, and any replica will do.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    if isinstance(messages := asked.get("messages"), list):
        parts = _of_chat([message for message in messages if isinstance(message, dict)])
    else:
        parts = _of_prompt(asked.get("prompt"))
    if not any(parts):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas, the one that should hold a key's pages first.

    Every pair of a key and a replica has a weight, and the heaviest comes first (rendezvous
    hashing: Thaler and Ravishankar, 1998). Whoever asks gets the same order; when a replica leaves,
    only its own keys move, and when one joins, only those that become its own.
    """
    return sorted(replicas, key=lambda name: (_weight(key, name), name), reverse=True)


def tiers(
    key: str | None, loads: Mapping[str, int], busy: int, tried: Collection[str] = ()
) -> list[list[str]]:
    """Replicas in the order in which they should be asked; within a tier, the idlest.

    The first is the key's own, unless it has `busy` requests and clearly more than the average
    (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018). Then it is
    the least loaded, and of equals the one that comes next by rank: what overflows stays together.

    Args:
        key: of :func:`key_of`.
        loads: requests that every replica has.
        busy: what a replica may have in any case.
        tried: those that come last, however idle they are.
    """
    if last := [name for name in loads if name in tried]:
        others = {name: load for name, load in loads.items() if name not in tried}
        return [*tiers(key, others, busy), last]
    if key is None or len(loads) < 2:
        return [list(loads)] if loads else []
    order = ranked(key, loads)
    average = (sum(loads.values()) + 1) / len(loads)
    if loads[order[0]] >= max(busy, math.ceil(_SLACK * average)):
        order.sort(key=loads.__getitem__)  # stable: rank decides between equals
    return [order[:1], order[1:]]


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key} {replica}".encode(), digest_size=8).digest()


def _of_chat(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    system = [_text(m) for m in messages if m.get("role") in ("system", "developer")]
    images = (image for message in messages for image in _images(message))
    said = (_text(m) for m in messages if m.get("role") not in ("system", "developer"))
    own = next(images, None)
    return [_encoded("\n".join(system)), own or _encoded(next(said, "")[:_OPENING])]


def _of_prompt(prompt: Any) -> list[bytes]:
    while isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return [_encoded(prompt[:_OPENING])]
    return [_encoded(" ".join(map(str, prompt[:_OPENING])))] if isinstance(prompt, list) else []


def _content(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _text(message: Mapping[str, Any]) -> str:
    return "\n".join(str(p.get("text", "")) for p in _content(message) if p.get("type") == "text")


def _images(message: Mapping[str, Any]) -> Iterable[bytes]:
    for part in _content(message):
        told = part.get("image_url")
        url = told.get("url") if isinstance(told, dict) else told
        if isinstance(url, str) and url:
            yield _pixels(url)


def _pixels(url: str) -> bytes:
    """What a URL holds, if it holds something."""
    head, _, data = url.partition(",")
    if head.startswith("data:") and head.endswith(";base64"):
        try:
            return hashlib.blake2b(base64.b64decode(data)).digest()
        except (binascii.Error, ValueError):
            pass
    return _encoded(url)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
