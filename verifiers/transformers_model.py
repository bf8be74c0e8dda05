"""Any decoder-only transformers model as a verifier.

Answers what the engine asks of a model: which tokens are visual, which positions follow a prompt,
what lies behind every node of a tree. Knows nothing of drafting or acceptance.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from specdec.cache import page_key
from specdec.interfaces import Lack, Piece, Prefilled, Prompt, Verified
from specdec.runtime import Kinds, NodeBatch, PagedModel, Source, StatefulModel, free_bytes
from specdec.tree import DraftTree
from specdec.verifiers.encoding import PromptEncoder
from specdec.verifiers.key_transfer import write_columns
from specdec.verifiers.overrides import override
from specdec.verifiers.page_keys import root
from specdec.verifiers.pieces import ahead, begin, next_nodes, settle
from specdec.verifiers.prefill import Handle, Prefiller
from specdec.verifiers.spec import read_spec, unsupported


class TransformersVerifier:
    """Verifier over a transformers model. Its ``spec`` is what drafters are checked against.

    Requests share the pages of whatever they have in common from their beginnings on: the text and
    the pixels of the images in it. What is shared is computed once, as long as the verifier lives;
    pages that nobody uses any more are given away, the longest unused first, when others are
    needed. If weights change meanwhile, make a new verifier.

    Args:
        model: the model; it is left as it was between two calls.
        page_size: tokens a page of the key-value cache.
        kv_cache_bytes: what keys and values may take; ``None`` is a quarter of the memory that is
            free now.
        visual_mass: have :meth:`verify` say how much of each node's attention went to visual
            tokens. It costs a little time, on a CPU more.
        hidden: have :meth:`verify` give the last hidden state behind each node.
        taps: layers whose inputs :meth:`prefill` and :meth:`verify` give, as in
            :class:`specdec.interfaces.Reads`. They are kept beside the keys, for prompts to come
            that begin alike.
        gaze: have :meth:`prefill` say how much each prompt's last token looked at the others, for
            drafters that choose among visual tokens. A model that keeps states does not say.
        gaze_every: have :meth:`verify` say so of the root, whenever it has verified that many trees
            of a request; 0 is never.

    Attributes:
        gives: what :meth:`verify` gives beside logits: those of "visual_mass" and "hidden" that
            were asked for.
        taps: the tapped layers.
        shares: whether prompts to come are compared with what there is. Off where a prompt's tokens
            all see each other or layers keep states, and worth turning off where there will be one
            prompt only: naming pixels takes a pass over them.

    Raises:
        ValueError: the model is of a kind that specdec cannot run; the message says which part.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        page_size: int = 16,
        kv_cache_bytes: int | None = None,
        visual_mass: bool = False,
        hidden: bool = False,
        taps: Sequence[int] = (),
        gaze: bool = False,
        gaze_every: int = 0,
    ) -> None:
        problems = unsupported(model)
        if problems:
            raise ValueError(f"{type(model).__name__} cannot be a verifier: {'; '.join(problems)}")
        self.spec = read_spec(model)
        self.model = model
        budget = free_bytes(model.device) // 4 if kv_cache_bytes is None else kv_cache_bytes
        special, kinds = override(model.config), Kinds(model.config.get_text_config(decoder=True))
        how: dict[str, Any] = {
            "page_size": page_size,
            "kv_cache_bytes": budget,
            "keeps_hidden": hidden,
            "taps": taps,
        }
        if kinds and visual_mass:
            raise ValueError(
                f"{type(model).__name__} keeps states beside keys; visual mass is given of "
                "models that keep keys only"
            )
        self._paged = (
            StatefulModel(model, kinds, **how)
            if kinds
            else PagedModel(
                model,
                cache=special.cache,
                flags_visual=visual_mass,
                remembers=bool(taps) and special.shares,
                watches=gaze,
                **how,
            )
        )
        self._gaze = gaze and not kinds
        self._gaze_every = gaze_every if self._gaze else 0
        # Pages hold no states, so what begins alike has nothing to share.
        self.shares = self._in_pieces = special.shares and not kinds
        self._counts_padding = special.counts_padding
        asked = {"visual_mass": visual_mass, "hidden": hidden}
        self.gives = frozenset(name for name, wanted in asked.items() if wanted)
        self.taps = tuple(taps)
        self._prefiller = Prefiller(
            model, self.spec, self._paged, self._gaze, counts_padding=special.counts_padding
        )
        self._encoder = PromptEncoder(model, self.spec, self._paged, special.counts_padding)

    @property
    def identity(self) -> Hashable:
        """Its model, whichever adapter runs it."""
        return weakref.ref(self.model), self.gives, self.taps

    @property
    def bytes_taken(self) -> int:
        """What keys and values take now."""
        return self._paged.kv.bytes_taken

    @property
    def model_seconds(self) -> float:
        """Seconds inside the model's forward over trees."""
        return self._paged.seconds - self._prefiller.seconds

    def prefill(self, prompt: Prompt, room: int, rows: Sequence[int] | None = None) -> Prefilled:
        """Run the prompts and record where each row's positions ended.

        A row whose beginning is in the cache runs the rest only, if no image is in that; the
        vision tower runs for the other rows, if there are any.
        """
        if prompt.ready is None:
            return self._prefiller.run(prompt, room, rows, shares=self.shares)
        if "visual_mass" in self.gives:
            raise ValueError(
                "visual_mass=True does not go with past_key_values or inputs_embeds: a cache does "
                "not say which of its tokens are visual"
            )
        return self._prefiller.take_over(prompt.ready, room, rows)

    @torch.no_grad()
    def measure(self) -> None:
        """Find out what a page takes, so that ``kv_cache_bytes`` holds from the first prompt on:
        runs a prompt of one token.
        """
        tokens = torch.tensor([[min(self.spec.eos_token_ids, default=1)]], device=self.model.device)
        for handle in self.prefill(Prompt(tokens, (0,), {}), room=1).handles:
            self.release(handle)

    def encode(self, prompt: Prompt) -> Prompt:
        """The same with ``encoded`` set, if it can be run piece by piece.

        Images are looked at, or, where it ``shares``, taken from what is kept of those that were.
        Another thread may do it, while this one verifies.
        """
        if not self._in_pieces:
            return prompt
        return prompt._replace(encoded=self._encoder.encode(prompt, shares=self.shares))

    def begin(
        self, prompt: Prompt, said: Sequence[int], room: int, beside: Sequence[Handle]
    ) -> Handle | None:
        """Start on an encoded prompt; ``None`` if another is just computing what it could share."""
        how = {"counts_padding": self._counts_padding}
        return begin(self._paged, prompt, said, room, beside, **how)

    def lacks(self, handle: Handle) -> Lack:
        """What a prompt that was begun still takes."""
        assert handle.text is not None
        sequence, size, length = handle.sequence, self._paged.kv.page_size, len(handle.text)
        pages = -(-(sequence.lead + length) // size) - len(sequence.pages)
        return Lack(ahead(handle), pages)

    @property
    def pages_left(self) -> int | None:
        """Pages that could be had; ``None`` before the first prompt, or without a limit."""
        limit = self.pages_limit
        return None if limit is None else max(0, limit - self.pages_taken)

    def verify(
        self,
        handles: Sequence[Handle],
        trees: Sequence[DraftTree],
        pieces: Sequence[Piece] = (),
    ) -> Verified:
        """What lies behind every node, in one forward that runs pieces of prompts, too."""
        for handle, tree in zip(handles, trees, strict=True):
            if self.spec.chains_only and not tree.topology.is_chain:
                raise ValueError(f"{self.spec.name} verifies chains only, and got another tree")
            handle.tree = tree
        batch = [
            NodeBatch(
                handle.sequence,
                tree.tokens,
                tree.topology.depths,
                None if tree.topology.is_chain else tree.topology.ancestors,
                handle.offset,
                self._watched(handle),
            )
            for handle, tree in zip(handles, trees, strict=True)
        ]
        nodes = sum(map(len, trees))
        texts = [next_nodes(piece, watches=self._gaze) for piece in pieces]
        keep = None
        if texts:
            ends = accumulate((len(text.tokens) for text in texts), initial=nodes)
            keep = torch.tensor([*range(nodes), *(end - 1 for end in [*ends][1:])])
        logits = self._paged.forward([*batch, *texts], keep=keep)
        paged, gaze = self._paged, list[Tensor | None]()
        if self._gaze_every:
            for handle, looked in zip(handles, paged.gaze, strict=False):  # pieces come behind
                handle.steps += 1
                gaze.append(None if looked is None else looked[: handle.prompt])
        return Verified(
            logits[:nodes],
            [mass[:nodes] for mass in paged.visual_mass],
            None if paged.hidden is None else paged.hidden[:nodes],
            None if paged.states is None else paged.states[:nodes],
            gaze,
            [
                self._settle(piece.handle, text, logits[nodes + i], len(trees) + i)
                for i, (piece, text) in enumerate(zip(pieces, texts, strict=True))
            ],
        )

    def _settle(
        self, handle: Handle, text: NodeBatch, logits: Tensor, place: int
    ) -> Prefilled | None:
        """Keep a piece that was run, the ``place``-th of its batch."""
        done = settle(self._paged, handle, text, logits, self.spec.visual_token_ids)
        self._name(handle)
        if done is None or not self._gaze:
            return done
        looked = self._paged.gaze[place]
        return done._replace(gaze=[None if looked is None else looked[: handle.prompt]])

    def _watched(self, handle: Handle) -> int | None:
        """The node whose gaze is wanted: the root, when it is time."""
        due = self._gaze_every and (handle.steps + 1) % self._gaze_every == 0
        return 0 if due and handle.prompt else None

    def append(self, handle: Handle, tokens: Sequence[int]) -> Tensor | None:
        """Compute and keep the keys of these next tokens of the text; their tapped states."""
        nodes = NodeBatch(handle.sequence, tokens, range(len(tokens)), None, handle.offset)
        _, states = self._paged.append([nodes])
        self._publish(handle, tokens)
        return states[0] if states else None

    def source(self, handle: Handle) -> Source:
        """The request's pages, for drafters that read them."""
        visual = self.spec.visual_token_ids
        places = [place for place, token in enumerate(handle.text or ()) if token in visual]
        return Source(self._paged, handle.sequence, handle.offset, places)

    def commit(self, handle: Handle, nodes: Sequence[int]) -> None:
        """Keep the path's keys, drop the other nodes'."""
        self._paged.commit(handle.sequence, nodes)
        assert handle.tree is not None
        self._publish(handle, [handle.tree.tokens[node] for node in nodes])

    def _publish(self, handle: Handle, tokens: Sequence[int]) -> None:
        """The text has these tokens more: let others find the pages that they fill."""
        if handle.text is None:
            return
        handle.text += tokens
        self._name(handle)

    def _name(self, handle: Handle) -> None:
        """Let others find the pages that a text fills by now."""
        kv, sequence = self._paged.kv, handle.sequence
        assert handle.text is not None
        shares = self.shares and handle.named
        while shares and len(sequence.keys) < sequence.full_pages(kv.page_size):
            # The first page is the prompt's unless it has no image, and then there is no lead.
            start = len(sequence.keys) * kv.page_size - sequence.lead
            page = handle.text[start : start + kv.page_size]
            if not self.spec.visual_token_ids.isdisjoint(page):
                break  # what its pixels are is not known any more
            before = sequence.keys[-1] if sequence.keys else self._root(handle)
            kv.name(sequence, [page_key(before, page)])

    def _root(self, handle: Handle) -> bytes:
        padding = handle.sequence.beside if self._counts_padding else 0
        assert isinstance(padding, int)
        return root(padding)

    def hand_over(self, handles: Sequence[Handle], padding: Sequence[int], cache: Cache) -> None:
        """Append to ``cache`` what it lacks: one row per handle, with so much padding on its left,
        all ending together.
        """
        sequences = [handle.sequence for handle in handles]
        write_columns(self._paged.kv, sequences, padding, cache)

    def release(self, handle: Handle) -> None:
        """Give the request's pages back."""
        self._paged.kv.free(handle.sequence)

    def check_integrity(self) -> None:
        """Assert that the page accounting is sound."""
        self._paged.kv.check_integrity()

    @property
    def pages_taken(self) -> int:
        """Pages that hold keys of some request."""
        return self._paged.kv.allocator.num_taken

    @property
    def pages_limit(self) -> int | None:
        """Pages that there may be; ``None`` before the first prompt, or without a limit."""
        return self._paged.kv.allocator.limit

    def visual_pages(self, handle: Handle) -> list[int]:
        """The request's pages that hold visual tokens."""
        sequence, size = handle.sequence, self._paged.kv.page_size
        places = self.source(handle).visual
        return sorted({sequence.pages[(sequence.lead + place) // size] for place in places})

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._paged.kv.page_size

    @property
    def bytes_per_page(self) -> int:
        """What a page takes in all layers; 0 before the first prompt."""
        return self._paged.kv.bytes_per_page
