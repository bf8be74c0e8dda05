"""Prompts that are run piece by piece, in the forwards in which others are verified.

Knows nothing of trees, drafting or acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdec.interfaces import Piece, Prefilled, Prompt
from specdec.runtime import NodeBatch, PagedModel, paged_model
from specdec.verifiers.prefill import Begun, Handle


def begin(
    paged: PagedModel,
    prompt: Prompt,
    said: Sequence[int],
    room: int,
    beside: Sequence[Handle],
    *,
    counts_padding: bool,
) -> Handle | None:
    """Start on a prompt with what there is of it in the cache; ``None`` if one of ``beside`` is
    just computing more of it.
    """
    kv, encoded, padding = paged.kv, prompt.encoded, prompt.padding[0]
    assert encoded is not None
    asked = prompt.input_ids[0, padding:].tolist()
    text = [*asked, *said]
    # Not its last token, whose logits are wanted.
    pages = encoded.pages[: (encoded.lead + len(text) - 1) // kv.page_size]
    sequence = kv.add(room, pages, encoded.lead)
    missing = pages[len(sequence.pages) :]
    if missing and any(missing[0] in other.begun.missing for other in beside if other.begun):
        kv.free(sequence)
        return None
    kv.name(sequence, encoded.pages[len(sequence.keys) :])
    if counts_padding:
        sequence.beside = padding
    offset = encoded.positions[:, -1] + 1 - len(asked)
    begun = Begun(encoded, frozenset(missing), sequence.committed)
    return Handle(sequence, text, offset, prompt=len(asked), begun=begun)


def ahead(handle: Handle) -> int:
    """Tokens of its next piece, at most: as many as a forward takes of a request, and not both of
    the prompt and of what was said behind it.
    """
    assert handle.text is not None
    start = handle.sequence.committed
    end = handle.prompt if start < handle.prompt else len(handle.text)
    return min(end - start, paged_model.PIECE)


def next_nodes(piece: Piece, *, watches: bool) -> NodeBatch:
    """The next tokens of a prompt, or of what was said behind it."""
    handle: Handle = piece.handle
    assert handle.begun is not None
    assert handle.text is not None
    encoded, start = handle.begun.encoded, handle.sequence.committed
    stop = start + min(piece.most, ahead(handle))
    tokens = handle.text[start:stop]
    ends = stop == len(handle.text)
    watched = len(tokens) - 1 if watches and ends else None
    nodes = NodeBatch(
        handle.sequence, tokens, range(len(tokens)), None, handle.offset, watched=watched
    )
    if start >= handle.prompt:
        return nodes
    embeds = None if encoded.embeds is None else encoded.embeds[start:stop]
    return nodes._replace(embeds=embeds, positions=encoded.positions[:, start:stop])


def settle(
    paged: PagedModel, handle: Handle, nodes: NodeBatch, logits: Tensor, visual: frozenset[int]
) -> Prefilled | None:
    """Keep the keys of a piece that was run; what a prefill gives, if it was the last.

    Args:
        logits: ``(V,)`` behind it.
        visual: ids of the tokens that stand for pixels.
    """
    sequence, begun = handle.sequence, handle.begun
    assert begun is not None
    assert handle.text is not None
    start = sequence.committed
    paged.kv.flag_visual(
        sequence, [start + i for i, token in enumerate(nodes.tokens) if token in visual]
    )
    paged.commit(sequence, range(len(nodes.tokens)))
    if sequence.committed < len(handle.text):
        return None
    handle.begun = None
    # A copy: the pages may be others' before a drafter takes it, and their pools outgrown.
    states = () if paged.states is None else [paged.remembered(sequence).clone()]
    return Prefilled([handle], logits[None], [begun.cached], states, [begun.encoded.positions])
