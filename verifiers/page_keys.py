"""What the pages of a prompt are known by: its tokens, and the pixels behind the visual ones.

Two prompts share a page only if everything before its end is the same text about the same pixels;
the name of a file or the shape of a batch plays no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.cache import page_key
from specdec.interfaces import Prompt

# What a forward takes that says nothing about pixels.
_TEXT = frozenset(
    {"attention_mask", "position_ids", "cache_position", "past_key_values", "use_cache"}
    | {"logits_to_keep", "return_dict"}
)
# Nor do these, where they say which tokens are visual and nothing else.
_TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})
# In the names of what is said of pixels alone; whatever has another name may be about other tokens.
_OF_PIXELS = (
    *("pixel", "image", "video", "vision", "visual", "aspect", "patch", "tile", "grid", "frames"),
    *("spatial_shapes", "target_sizes", "cross_attention"),
)


class RowKeys(NamedTuple):
    """``pages``: of a row's full pages, in order. ``lead``: slots of its first page to leave
    unused, so that a page ends behind its last visual token. ``images``: its runs of visual tokens,
    each with a digest of the pixels behind it. ``say_all``: whether those and its tokens are all
    that the model is told of it; else no page is known by anything.
    """

    pages: list[bytes]
    lead: int
    images: Sequence[tuple[range, bytes]] = ()
    say_all: bool = True


def prompt_keys(
    prompt: Prompt, visual: frozenset[int], page_size: int, *, by_padding: bool = False
) -> list[RowKeys]:
    """What each row's pages are known by.

    Args:
        prompt: the rows.
        visual: ids of the tokens that stand for pixels.
        page_size: tokens a page.
        by_padding: whether rows with different padding are different texts.
    """
    rows = [
        row[padding:].tolist()
        for row, padding in zip(prompt.input_ids, prompt.padding, strict=True)
    ]
    if _told_more(prompt, visual):
        return [RowKeys([], lead(row, visual, page_size), say_all=False) for row in rows]
    spans = [list(_spans(row, visual)) for row in rows]
    runs = [
        torch.tensor(row[span.start : span.stop])
        for row, own in zip(rows, spans, strict=True)
        for span in own
    ]
    digests = iter(_digests(prompt.model_kwargs, runs))
    roots = [root(padding if by_padding else 0) for padding in prompt.padding]
    return [
        _row_keys(first, row, [(span, next(digests)) for span in own], page_size)
        for first, row, own in zip(roots, rows, spans, strict=True)
    ]


def lead(tokens: Sequence[int], visual: frozenset[int], page_size: int) -> int:
    """Slots of a text's first page to leave unused, so that its last visual token ends a page."""
    places = [place for place, token in enumerate(tokens) if token in visual]
    return -(places[-1] + 1) % page_size if places else 0


def root(padding: int) -> bytes:
    """What stands before the first page of a row where its padding matters."""
    return b"" if padding == 0 else padding.to_bytes(8, "little")


def _told_more(prompt: Prompt, visual: frozenset[int]) -> bool:
    """Whether the model is told more of the rows than their tokens and the pixels behind visual
    ones: recordings, kinds of words, or pixels that no token stands for.
    """
    ids = prompt.input_ids
    stand_for_pixels = torch.isin(ids, torch.tensor(sorted(visual), device=ids.device))
    sees = bool(stand_for_pixels.any())
    for name, value in prompt.model_kwargs.items():
        if name in _TEXT or _is_empty(value):
            continue
        if name in _TYPES and isinstance(value, Tensor) and value.shape == ids.shape:
            if value.to(ids.device)[~stand_for_pixels].any():
                return True
        elif not (sees and _is_of_pixels(name, value)):
            return True
    return False


def _is_empty(value: Any) -> bool:
    """Whether an argument says nothing of single tokens."""
    if isinstance(value, Tensor):
        return value.numel() == 0
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, (list, tuple)) or all(each is None for each in value)


def _is_of_pixels(name: str, value: Any) -> bool:
    if name == "mm_encoder_outputs" and isinstance(value, Mapping):
        return all(_is_of_pixels(kind, None) for kind in value)
    return any(part in name for part in _OF_PIXELS)


def _row_keys(
    first: bytes, tokens: Sequence[int], images: Sequence[tuple[range, bytes]], page_size: int
) -> RowKeys:
    pixels = {place: digest for span, digest in images for place in span}
    lead = -images[-1][0].stop % page_size if images else 0
    keys = [first]
    for end in range(page_size - lead, len(tokens) + 1, page_size):
        start = max(end - page_size, 0)
        seen = [pixels[place] for place in range(start, end) if place in pixels]
        keys.append(page_key(keys[-1], tokens[start:end], seen))
    return RowKeys(keys[1:], lead, images)


def _spans(tokens: Sequence[int], visual: frozenset[int]) -> Iterator[range]:
    """The runs of visual tokens."""
    start = None
    for place, token in enumerate([*tokens, -1]):
        if token in visual:
            start = place if start is None else start
        elif start is not None:
            yield range(start, place)
            start = None


def _digests(model_kwargs: Mapping[str, Any], runs: Sequence[Tensor]) -> list[bytes]:
    """A digest for each of these runs of visual tokens, which says how many it has, too.

    Where every visual input comes in as many parts, a run's digest is that of its own part; else
    all runs get the digest of everything, which shares less but never too much: which of the pixels
    are a run's depends on the tokens of those before it.
    """
    count = len(runs)
    given = {name: value for name, value in model_kwargs.items() if name not in _TEXT | _TYPES}
    parts = [_parts(name, value, given, count) for name, value in sorted(given.items())]
    if all(part is not None for part in parts):
        columns = [part for part in parts if part is not None]
        return [_digest([run, [column[i] for column in columns]]) for i, run in enumerate(runs)]
    everything = _digest([list(runs), sorted(given.items())])
    return [everything + i.to_bytes(4, "little") for i in range(count)]


def _parts(name: str, value: Any, given: Mapping[str, Any], count: int) -> Sequence[Any] | None:
    """The value by runs of visual tokens, ``None`` if it does not come so."""
    if value is None:
        return [None] * count
    if name == "mm_encoder_outputs" and isinstance(value, Mapping):  # transformers >= 5.23
        features = [getattr(output, "pooler_output", None) for output in value.values()]
        if len(features) > 1:
            return None
        value = features[0] if features else [None] * count
    if not isinstance(value, (Tensor, list, tuple)):
        return None
    if len(value) == count:
        return list(value)
    grid = given.get("image_grid_thw")
    if isinstance(value, Tensor) and isinstance(grid, Tensor) and len(grid) == count:
        sizes = grid.prod(-1).tolist()
        return value.split(sizes) if sum(sizes) == len(value) else None
    return None


def _digest(value: Any) -> bytes:
    """Of tensors in any nesting, and of whatever has a text form beside them."""
    digest = hashlib.sha256()  # the fastest where the CPU has instructions for it
    for leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            digest.update(str((leaf.dtype, tuple(leaf.shape))).encode())
            rows = leaf.detach().cpu().reshape(-1).view(torch.uint8)
            digest.update(rows.numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.digest()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
