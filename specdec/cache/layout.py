"""Where the keys of a text's visual tokens lie, in whole pages. Knows no models and no tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def visual_places(
    tokens: Sequence[int], visual_ids: Collection[int], page_size: int = 16
) -> list[int]:
    """All places in the pages that hold visual tokens, in order.

    Pages are laid so that one ends behind the last visual token; the first one may then begin
    before the text, and is shorter. What else lies in a page, such as a word between two images, is
    part of it.

    Args:
        tokens: ids of a text, visual placeholders included.
        visual_ids: ids of the placeholders.
        page_size: places a page.

    Raises:
        ValueError: a page size below 1.
    """
    if page_size < 1:
        raise ValueError(f"page_size must be at least 1, got {page_size}")
    visual = [place for place, token in enumerate(tokens) if token in visual_ids]
    if not visual:
        return []
    lead = -(visual[-1] + 1) % page_size
    pages = dict.fromkeys((lead + place) // page_size for place in visual)
    starts = [page * page_size - lead for page in pages]
    return [place for start in starts for place in range(max(start, 0), start + page_size)]
