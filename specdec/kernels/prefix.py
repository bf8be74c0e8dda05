"""Which requests begin with the same pages, so that those can be read once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

# Keys that a group has to save: below that, merging its partial results costs as much.
LEAST_SAVED = 256


class PrefixGroup(NamedTuple):
    """``members``: at least two requests, in order; ``pages``: how many first pages they share."""

    members: list[int]
    pages: int


def prefix_groups(tables: Sequence[list[int]], page_size: int) -> list[PrefixGroup]:
    """Disjoint groups that save the most reads, one level deep.

    Args:
        tables: per request its full, committed pages. Requests may have a page in common and not
            all pages before it, as pruned views of one image do.
        page_size: tokens a page.
    """
    first: dict[int, list[int]] = defaultdict(list)
    for request, table in enumerate(tables):
        if table:
            first[table[0]].append(request)
    groups = []
    for members in first.values():
        if len(members) > 1:
            groups += _best(tables, members)[1]
    return [group for group in groups if _saved(group) * page_size >= LEAST_SAVED]


def _saved(group: PrefixGroup) -> int:
    return (len(group.members) - 1) * group.pages


def _best(tables: Sequence[list[int]], members: list[int]) -> tuple[int, list[PrefixGroup]]:
    """Pages saved, and the groups: all members together, or apart where they part ways."""
    common = min(_common(tables[members[0]], tables[member]) for member in members)
    together = PrefixGroup(members, common)
    branches: dict[int, list[int]] = defaultdict(list)
    for member in members:
        if len(tables[member]) > common:
            branches[tables[member][common]].append(member)
    apart = [_best(tables, branch) for branch in branches.values() if len(branch) > 1]
    saved = sum(count for count, _ in apart)
    if saved > _saved(together):
        return saved, [group for _, groups in apart for group in groups]
    return _saved(together), [together]


def _common(one: list[int], other: list[int]) -> int:
    """How many first pages are the same, by bisection: whole runs are compared at once."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
