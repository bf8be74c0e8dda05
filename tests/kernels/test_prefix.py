"""Which requests read their first pages together."""

from __future__ import annotations

import random

from specdec.kernels.prefix import LEAST_SAVED, prefix_groups


def test_the_grouping_that_saves_most_is_chosen() -> None:
    """Five share one page, but twos and threes of them share fifty and forty: grouped by the first
    page alone, those would be read five times."""
    system = [0]
    one, other = [*range(100, 150)], [*range(200, 240)]
    tables = [[*system, *pages, 300 + i] for i, pages in enumerate([one, other, one, other, other])]
    groups = prefix_groups(tables, 16)
    assert sorted((group.members, group.pages) for group in groups) == [
        ([0, 2], 51),
        ([1, 3, 4], 41),
    ]


def test_many_that_share_little_stay_together_if_that_saves_more() -> None:
    tables = [[*range(30), 100 + i // 2, 200 + i] for i in range(6)]
    (group,) = prefix_groups(tables, 16)
    assert (group.members, group.pages) == (list(range(6)), 30)


def test_what_saves_too_little_is_left_alone() -> None:
    pages = LEAST_SAVED // 16
    for count, grouped in ((pages - 1, False), (pages, True)):
        tables = [[*range(count), 100 + i] for i in range(2)]
        assert bool(prefix_groups(tables, 16)) == grouped


def test_tables_that_part_and_meet_again() -> None:
    """Pruned views of one image: where one page in the middle is the same, those before it need
    not be; read together, one request would attend to the other's keys."""
    pages = [*range(100)]
    one, other = pages.copy(), pages.copy()
    other[40] = 1000
    (group,) = prefix_groups([one, other], 16)
    assert (group.members, group.pages) == ([0, 1], 40)


def test_random_tries() -> None:
    """Members that do not share what they are said to share, or one request in two groups."""
    rng = random.Random(0)
    for _ in range(200):
        tables: list[list[int]] = []
        fresh = iter(range(10_000))
        for _ in range(rng.randrange(1, 9)):
            old = rng.choice(tables) if tables and rng.random() < 0.8 else []
            kept = old[: rng.randrange(len(old) + 1)]
            tables.append([*kept, *(next(fresh) for _ in range(rng.randrange(20)))])
        groups = prefix_groups(tables, LEAST_SAVED)
        members = [member for group in groups for member in group.members]
        assert len(members) == len(set(members))
        for group in groups:
            texts = {tuple(tables[member][: group.pages]) for member in group.members}
            assert len(texts) == 1
            assert len(texts.pop()) == group.pages > 0
