"""The contracts between the engine, the drafters and the acceptance rules.

Imports nothing of specdec but trees, and no model code: every other module may import this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from specdec.tree import DraftTree, Shape

if TYPE_CHECKING:
    from specdec.runtime.source import Source


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """What a drafter has to agree with, read off the verifier.

    Attributes:
        name: class name and path of the verifier, for error messages.
        vocab_size: rows of the verifier's output matrix; token ids are below it.
        hidden_size: width of its text tower.
        num_layers: layers of its text tower.
        visual_token_ids: placeholder ids that stand for visual tokens in ``input_ids``.
        eos_token_ids: ids that end an answer.
        chains_only: it keeps a state that cannot branch: trees must be chains.
        keeps_states: it keeps more of a text than keys of its tokens, which alone say too little.
    """

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    visual_token_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    chains_only: bool = False
    keeps_states: bool = False


@dataclass(frozen=True, slots=True)
class Reads:
    """What a drafter reads of the verifier besides tokens.

    Attributes:
        layers: hidden states that it wants of every token, as transformers counts them: k is the
            input of layer k.
        pages: it reads keys in the verifier's own pages, through ``DraftRequest.source``.
        gaze: it wants to know which visual tokens the verifier looks at behind the prompt.
        gaze_every: and again after every so many verifications; 0 is never.
    """

    layers: tuple[int, ...] = ()
    pages: bool = False
    gaze: bool = False
    gaze_every: int = 0


NOTHING = Reads()


@dataclass(slots=True)
class DraftRequest:
    """One request as a drafter sees it. The engine owns it; drafters read it, and take ``states``.

    Attributes:
        id: unique within an engine; the key of whatever state a drafter keeps.
        tokens: prompt and output so far, visual placeholders included, padding excluded. The last
            one is the root of the tree to propose. It only ever grows.
        prompt_length: how many of ``tokens`` are the prompt.
        shape: the largest tree that is of use now; of depth 0 for none but the root.
        temperature: sampling temperature of the request; 0 is greedy.
        generator: source of randomness; ``None`` is torch's global one.
        wants_q: its trees should come with their ``q`` even where nothing is drawn; greedy requests
            at temperature 1. A drafter without distributions leaves it out.
        states: the hidden states that the drafter :class:`Reads`, ``(n, layers * H)`` in all: of
            tokens up to the one before the last. The drafter takes them out; what it leaves stays.
            A prompt that transformers ran has none.
        positions: int64 ``(R, P)`` on the CPU, of the prompt's tokens, as the verifier counts them;
            those that follow go on from the last. ``None`` if nobody reads the verifier.
        source: the verifier's own pages of the text, if the drafter reads them. Its sequence must
            not be changed.
        prompt: the batch of prompts that this one came in, with its pixels; ``row`` is its row.
        gaze: float32 ``(P,)``: how much the verifier looked at each token of the prompt: from its
            last token, or from the text behind it when it looked last; another tensor whenever it
            has looked again. ``None`` if it does not say.
    """

    id: int
    tokens: list[int]
    prompt_length: int
    shape: Shape
    temperature: float = 0.0
    generator: torch.Generator | None = field(default=None, repr=False)
    wants_q: bool = False
    states: list[Tensor] = field(default_factory=list, repr=False)
    positions: Tensor | None = field(default=None, repr=False)
    source: Source | None = field(default=None, repr=False)
    prompt: Prompt | None = field(default=None, repr=False)
    row: int = 0
    gaze: Tensor | None = field(default=None, repr=False)


@runtime_checkable
class Drafter(Protocol):
    """Proposes a draft tree for each request of a batch."""

    @property
    def name(self) -> str:
        """The name that statistics and error messages use."""

    @property
    def model_seconds(self) -> float:
        """Seconds spent so far inside the drafter's own model; 0 without one."""

    def check(self, verifier: VerifierSpec) -> None:
        """Raise ``ValueError``, naming both sides, if this drafter cannot serve ``verifier``."""

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One tree per request, rooted at its last token and no larger than its ``shape``. May keep
        state per request id; must not change what is the verifier's. The caller owns the result.
        """

    def release(self, request_id: int) -> None:
        """Forget everything about a request. Unknown ids are ignored."""


@runtime_checkable
class ReadingDrafter(Drafter, Protocol):
    """A drafter that reads more of the verifier than tokens."""

    @property
    def reads(self) -> Reads:
        """What that is."""


def reads_of(drafter: Drafter | None) -> Reads:
    """What a drafter reads of the verifier besides tokens."""
    return drafter.reads if isinstance(drafter, ReadingDrafter) else NOTHING


class Ready(NamedTuple):
    """What became of a prompt that the model has run already.

    Attributes:
        cache: its keys and values, in a cache of transformers.
        logits: ``(B, V)`` behind each row's last token.
        positions: int64 ``(R, B)`` on the CPU: that of each row's last token.
        padding: per row the padding on its left, within the cache.
        cached: per row the tokens that had been in the cache before.
    """

    cache: Any  # not to import transformers here
    logits: Tensor
    positions: Tensor
    padding: tuple[int, ...]
    cached: list[int]


class Encoded(NamedTuple):
    """What has to be known of a prompt of one row to run it piece by piece.

    Attributes:
        embeds: ``(T, H)``: its input embeddings, images merged into them; ``None`` for those of its
            tokens.
        positions: int64 ``(R, T)`` on the CPU.
        pages: what its full pages are known by.
        lead: slots of its first page that stay unused.
    """

    embeds: Tensor | None
    positions: Tensor
    pages: list[bytes]
    lead: int


class Prompt(NamedTuple):
    """Rows to be prefilled together.

    Attributes:
        input_ids: int64 ``(B, T)``, left-padded.
        padding: per row the number of padding tokens on its left.
        model_kwargs: everything else that the model's forward takes: attention mask, positions,
            pixels.
        ready: set if the model has run the prompt already; then ``input_ids`` are what is known of
            it as text: all of it, its end, or nothing.
        encoded: set if it can be run piece by piece.
    """

    input_ids: Tensor
    padding: tuple[int, ...]
    model_kwargs: Mapping[str, Any]
    ready: Ready | None = None
    encoded: Encoded | None = None


class Lack(NamedTuple):
    """What a prompt that was begun still takes: tokens of its next piece, at most, and pages more
    than it has.
    """

    tokens: int
    pages: int


class Piece(NamedTuple):
    """The next tokens of a prompt that was begun, ``most`` or fewer."""

    handle: Any  # of a verifier
    most: int


class Prefilled(NamedTuple):
    """Attributes:
    handles: per row what the verifier knows the request by. Opaque; owned by the engine until it
        passes it to ``release``.
    logits: ``(B, V)`` behind each row's last token.
    cached: per row the tokens whose keys were there already.
    states: per row the tapped hidden states of all tokens, ``(T, layers * H)``; empty if none are
        tapped, or transformers ran the prompt.
    positions: per row int64 ``(R, T)`` on the CPU; empty likewise.
    gaze: per row float32 ``(T,)``: how much its last token looked at each token; ``None`` where
        that is not known. Empty if the verifier was not asked for it.
    """

    handles: list[Any]
    logits: Tensor
    cached: list[int]
    states: Sequence[Tensor] = ()
    positions: Sequence[Tensor] = ()
    gaze: Sequence[Tensor | None] = ()


class Verified(NamedTuple):
    """What lies behind every node of every tree, packed in order.

    Attributes:
        logits: ``(N, V)``.
        visual_mass: per attention layer, float32 ``(N, Hq)``: how much of each node's attention
            went to visual tokens. Empty unless the verifier was asked for it.
        hidden: ``(N, H)`` in the model's dtype: the last hidden state behind each node, which the
            output embeddings turned into its logits. ``None`` unless the verifier was asked for it.
        states: ``(N, layers * H)``: the tapped hidden states of each node. ``None`` if there are
            none.
        gaze: per request float32 ``(P,)``: how much its root looked at each token of the prompt;
            ``None`` where nobody asked this time. Empty if nobody ever does.
        begun: per piece of a prompt what a prefill of that row gives, once all of it has been run;
            until then ``None``.
    """

    logits: Tensor
    visual_mass: Sequence[Tensor]
    hidden: Tensor | None = None
    states: Tensor | None = None
    gaze: Sequence[Tensor | None] = ()
    begun: Sequence[Prefilled | None] = ()


class Verifier(Protocol):
    """The large model: scores whole trees and owns the keys and values of the text so far."""

    @property
    def spec(self) -> VerifierSpec:
        """What drafters are checked against."""

    @property
    def model_seconds(self) -> float:
        """Seconds spent so far inside the model's forward over trees; prefill is not counted."""

    @property
    def gives(self) -> frozenset[str]:
        """What :meth:`verify` was asked to give beside logits: "hidden", "visual_mass"."""

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers whose inputs it was asked to give, as in :class:`Reads`."""

    def prefill(self, prompt: Prompt, room: int, rows: Sequence[int] | None = None) -> Prefilled:
        """Run the prompts; ``room`` is the number of tokens that a row is expected to grow to, and
        ``rows`` are those that are wanted, in this order (``None`` for all).

        On an exception no keys stay behind.
        """

    def encode(self, prompt: Prompt) -> Prompt:
        """The same with ``encoded`` set, if this one can be run piece by piece: images are looked
        at, nothing else is computed. Another thread than that of the other methods may do it.
        """

    def begin(
        self, prompt: Prompt, said: Sequence[int], room: int, beside: Sequence[Any]
    ) -> Any | None:
        """Start on an encoded prompt, and what was said behind it before; nothing is computed yet.

        Returns:
            Its handle; ``None`` if one of ``beside``, prompts that were begun, is just computing
            what this one could share.
        """

    def lacks(self, handle: Any) -> Lack:
        """What a prompt that was begun still takes."""

    @property
    def pages_left(self) -> int | None:
        """Pages that could be had; ``None`` if as many as wanted."""

    def verify(
        self, handles: Sequence[Any], trees: Sequence[DraftTree], pieces: Sequence[Piece] = ()
    ) -> Verified:
        """What lies behind every node of every tree, in one forward, in which the next pieces of
        some prompts are run, too.

        The trees' keys are scratch until :meth:`commit`, which must follow for each of them; those
        of prompts are kept.

        Raises:
            OutOfPages: nothing has changed.
        """

    def append(self, handle: Any, tokens: Sequence[int]) -> Tensor | None:
        """Compute and keep the keys of these next tokens of a request, however many they are;
        their tapped hidden states ``(n, layers * H)``, if any are tapped.
        """

    def source(self, handle: Any) -> Source:
        """The request's pages, for drafters that read them."""

    def commit(self, handle: Any, nodes: Sequence[int]) -> None:
        """Keep these nodes of the last tree, a path from the root, and drop the others."""

    def release(self, handle: Any) -> None:
        """Give back everything that belongs to the request. Doing it twice is harmless."""
