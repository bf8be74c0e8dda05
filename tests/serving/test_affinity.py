"""Which replica a request goes to."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import pytest

from specdec.serving.affinity import key_of, ranked, tiers

KEYS = [f"key {number}" for number in range(2000)]
NAMES = ["one", "two", "three", "four"]
PIXELS = b"not a picture, but the bytes of one " * 40


def _url(pixels: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(pixels).decode()}"


def _asked(
    *texts: str, images: tuple[str, ...] = (), system: str | None = None, **more: Any
) -> bytes:
    """A conversation: the images come with the first text."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(texts):
        content = [*(shown if number == 0 else []), {"type": "text", "text": text}]
        turns.append({"role": "user" if number % 2 == 0 else "assistant", "content": content})
    return json.dumps({"model": "m", "messages": turns, **more}).encode()


def test_balance() -> None:
    """Catches weights of which some replica gets clearly more. With 2000 keys each of four replicas
    gets 500 on average, with a standard deviation of 19; the test's keys are fixed.
    """
    homes = Counter(ranked(key, NAMES)[0] for key in KEYS)
    assert set(homes) == set(NAMES)
    assert all(400 < count < 600 for count in homes.values())


def test_replica_leaves_and_joins() -> None:
    """Catches keys that move though their replica is there, as by a hash modulo the number of
    them.
    """
    before = {key: ranked(key, NAMES) for key in KEYS}
    after = {key: ranked(key, [n for n in NAMES if n != "two"]) for key in KEYS}
    heirs = Counter()
    for key in KEYS:
        assert after[key] == [name for name in before[key] if name != "two"]
        heirs[after[key][0]] += before[key][0] == "two"
    assert min(heirs.values()) > 100, "one replica got all that the lost one had"
    joined = {key: ranked(key, [*NAMES, "five"])[0] for key in KEYS}
    moved = [key for key in KEYS if joined[key] != before[key][0]]
    assert all(joined[key] == "five" for key in moved)
    assert 300 < len(moved) < 500  # a fifth of 2000


def test_order_of_replicas_does_not_matter() -> None:
    """Catches routers of several ingresses that disagree, having heard of replicas otherwise."""
    assert all(ranked(key, NAMES) == ranked(key, reversed(NAMES)) for key in KEYS[:50])


def test_overflow() -> None:
    """Catches a hot replica that goes on getting everything, and overflow that is scattered."""
    home, second, third = ranked("hot", NAMES[:3])
    quiet = dict.fromkeys(NAMES[:3], 0)
    assert tiers("hot", quiet | {home: 3}, busy=4)[0] == [home]
    assert tiers("hot", quiet | {home: 4}, busy=4) == [[second], [third, home]]
    assert tiers("hot", quiet | {home: 4, second: 1}, busy=4)[0] == [third]
    assert tiers("hot", quiet | {home: 4, second: 1, third: 1}, busy=4)[0] == [second]


def test_all_are_busy() -> None:
    """Catches affinity that is lost when it is needed most: everybody is busy, and equally so."""
    home = ranked("hot", NAMES)[0]
    assert tiers("hot", dict.fromkeys(NAMES, 40), busy=4)[0] == [home]
    assert tiers("hot", dict.fromkeys(NAMES, 40) | {home: 60}, busy=4)[0] != [home]


def test_who_could_not_is_last() -> None:
    """Catches a replica that is asked again because it is idle: it answers nothing."""
    home, second, third = ranked("hot", NAMES[:3])
    loads = {home: 0, second: 9, third: 9}
    assert tiers("hot", loads, 4, (home,)) == [[second], [third], [home]]
    assert tiers(None, loads, 4, (home, "gone")) == [[second, third], [home]]
    assert tiers("hot", {home: 0}, 4, (home,)) == [[home]]


def test_whoever() -> None:
    """Catches a request without a key, or with one replica, that is not routed."""
    assert tiers(None, dict.fromkeys(NAMES, 0), busy=4) == [NAMES]
    assert tiers("key", {"one": 99}, busy=4) == [["one"]]
    assert tiers("key", {}, busy=4) == []


@pytest.mark.parametrize(
    "same",
    [
        _asked("What colour?", images=(_url(PIXELS),), temperature=1.0, stream=True),
        _asked("How many?", images=(_url(PIXELS, "x-png"),)),
        _asked("How many?", "Two.", "And now?", images=(_url(PIXELS), _url(b"another"))),
        _asked("How many?", images=(_url(PIXELS).replace("base64,", "base64,\n"),)),
    ],
    ids=["question", "written otherwise", "conversation", "line break"],
)
def test_same_image(same: bytes) -> None:
    """Catches a key that depends on more than whose pages a prompt begins with."""
    assert key_of(same) == key_of(_asked("What colour?", images=(_url(PIXELS),)))


def test_what_makes_a_difference() -> None:
    """Catches a key that leaves out what a prompt begins with."""
    image, long = (_url(PIXELS),), "x" * 300
    bodies = [
        _asked("Why?", images=image),
        _asked("Why?", images=(_url(PIXELS + b"."),)),
        _asked("Why?", images=image, system="Be brief."),
        _asked("Why?", images=("https://example.org/1.png",)),
        _asked("Why?", images=("https://example.org/2.png",)),
        _asked("Why?", images=("data:image/png;base64,####",)),
        _asked("Why?"),
        _asked("Why?", system="Be brief."),
        _asked("Why not?"),
        _asked(long),
        json.dumps({"model": "m", "prompt": "Why?"}).encode(),
        json.dumps({"model": "m", "prompt": [1, 2, 3]}).encode(),
    ]
    keys = [key_of(body) for body in bodies]
    assert None not in keys
    # A prompt of /v1/completions may have a chat's key; nothing depends on it.
    assert len(set(keys)) >= len(keys) - 1
    assert key_of(_asked(long + "1")) == key_of(_asked(long + "2"))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 10**5),
        *(b'{"messages": 3}', b'{"messages": [3, {"content": [4]}]}'),
        *(b'{"prompt": {}}', b'{"prompt": []}', b'{"prompt": [[]]}'),
    ],
)
def test_nonsense(body: bytes) -> None:
    """Catches a body that the ingress stumbles over before a replica can say what is wrong."""
    assert key_of(body) is None
