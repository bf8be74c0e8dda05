"""What is asked about a scene and how it is answered.

Wording is uncertain, as that of real captions is. At every slot of a sentence the answer takes one
of several synonyms, and the favourite there follows from the courtesies of the question, from the
slot and from the synonym taken last: something a good language model learns in part and a small
one hardly. The favourite wins by a little only, so near ties abound; a choice once made is kept
throughout the answer.

Facts are never left to the voice: they come from the scene and are also given as `fields`, which
`grading` finds again in the text whatever the wording.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass

from specdec.training.scenes import Scene

GREETINGS = ("", "Please: ", "Hello, ", "Now, ")
COURTESIES = ("", " Thanks.", " Explain.", " Take care.")
HABIT = 0.4  # how often the favourite is taken without looking at the others

_ROWS = (("top", "upper"), ("middle",), ("bottom", "lower"))
_COLS = ("left", "middle", "right")

_SLOT = re.compile(r"\{([\w.]+):([^{}]*)\}")
_PICTURE = "{picture:picture|image|photo|graphic}"
_OPENINGS = {
    "look": "{open.look:Looking|Glancing|Peering} {open.at:closely at|carefully at|at all of}"
    f" {{open.the:the|this|your}} {_PICTURE}, I {{open.see:find|note|notice}} that",
    "check": "{open.having:Having|After having} {open.studied:studied|examined|inspected|viewed}"
    f" {{open.the:the|this|your}} {_PICTURE}, I {{open.say:can say|would say|conclude}} that",
    "honest": "{open.from:From|Judging by|Going by} {open.what:what|all that}"
    " {open.the:the|this|your}"
    f" {_PICTURE} {{open.shows:shows|presents|displays}},"
    " it {open.seems:is clear|seems|appears} that",
}
_CLOSINGS = {
    "sure": "I {close.checked:checked|verified|reviewed|confirmed} {close.this:this|that|it}"
    " {close.twice:twice|again|carefully|closely} {close.so:and|so|hence}"
    " {close.am:I am|I feel|I remain} {close.sure:sure|certain|confident} {close.of:of|about}"
    " {close.answer:the answer|the result|this reply|my reading}.",
    "offer": "{close.if:If|Should} you {close.need:need|want|require}"
    " {close.more:more|further|other}"
    " {close.details:details|facts|information}, {close.just:just|simply|please}"
    " {close.ask:ask me|tell me|let me know} {close.and:and|then}"
    " I {close.will:will|can|shall} {close.help:help|assist|continue}.",
    "basis": "{close.all:All|Everything} {close.of:of this|said here|above}"
    " {close.rests:rests|relies|depends} {close.only:only on|solely on|entirely on}"
    " {close.visible:what is visible|what can be seen|what appears} {close.in:in|within}"
    f" {{close.the:the|this|your}} {_PICTURE},"
    " {close.nothing:nothing|and nothing} {close.else:else|more|further}.",
}


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation over the images of `scenes`; `fields` are the facts of the last answer."""

    task: str
    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]
    fields: dict[str, str]


class Voice:
    """The wording of one question and its answer."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.greeting, self.courtesy = rng.randrange(len(GREETINGS)), rng.randrange(len(COURTESIES))
        self._kept: dict[str, str] = {}
        self._last = ""

    def __call__(self, slot: str, *options: str) -> str:
        """One of the synonyms; within an answer always the same for the same slot."""
        if slot not in self._kept:
            key = f"{slot}/{self.greeting}/{self.courtesy}/{self._last}"
            favourite = options[zlib.crc32(key.encode()) // 7 % len(options)]
            self._kept[slot] = favourite if self.rng.random() < HABIT else self.rng.choice(options)
            self._last = self._kept[slot]
        return self._kept[slot]

    def say(self, template: str) -> str:
        """The template with every `{slot:one|another}` replaced by this voice's choice."""
        return _SLOT.sub(lambda slot: self(slot[1], *slot[2].split("|")), template)

    def ask(self, *bodies: str) -> str:
        """The question, in any of its phrasings, within this voice's courtesies."""
        return GREETINGS[self.greeting] + self.rng.choice(bodies) + COURTESIES[self.courtesy]

    def place(self, row: int, col: int) -> str:
        """The name of a cell of the 3x3 field, counted from 1."""
        if (row, col) == (2, 2):
            return self("centre", "center", "centre")
        return f"{self(f'row{row}', *_ROWS[row - 1])} {_COLS[col - 1]}"

    def opening(self) -> str:
        """A first clause without facts, ending so that a clause can follow."""
        form = self("opening", "look", "check", "honest")
        return self.say(_OPENINGS[form])

    def closing(self) -> str:
        """A last sentence without facts."""
        form = self("closing", "sure", "offer", "basis")
        return self.say(_CLOSINGS[form])

    def wrap(self, facts: str) -> str:
        """The facts, a template, between an opening and a closing."""
        return f"{self.opening()} {self.say(facts)}. {self.closing()}"


def listing(parts: list[str], word: str = "and") -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
