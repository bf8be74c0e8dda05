"""Sequences in shared pages, against plain lists of rows."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from specdec.cache import OutOfPages, PagedKV, SequenceKV, pools

LAYERS = 2


def read(kv: PagedKV, sequence: SequenceKV, layer: int) -> tuple[list[float], list[float]]:
    """First component of every key and value of the sequence, in logical order."""
    keys, values = kv.layer(layer)
    slots = kv.slots(sequence, 0, sequence.length)
    return keys[0, 0, slots, 0].tolist(), values[0, 0, slots, 0].tolist()


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_random_programs_keep_every_row(seed: int, page_size: int) -> None:
    """A commit that moves the wrong row or overwrites one it still needs, a rollback that leaves
    scratch behind, a growth that loses the pool's contents, two sequences that share a page."""
    rng = random.Random(seed)
    kv = PagedKV(page_size)
    model: list[tuple[SequenceKV, list[float], list[float]]] = []
    counter = 0.0
    for _ in range(60):
        if not model or (rng.random() < 0.15 and len(model) < 5):
            model.append((kv.add(rng.randrange(0, 30)), [], []))
        sequence, committed, scratch = rng.choice(model)
        action = rng.random()
        if action < 0.5:
            count = rng.randrange(1, 6)
            kv.extend(sequence, range(len(scratch), len(scratch) + count))
            rows = torch.arange(count, dtype=torch.float32) + counter
            counter += count
            slots = kv.slots(sequence, sequence.length - count, sequence.length)
            for layer in range(LAYERS):
                keys = rows.view(1, 1, -1, 1).expand(-1, 2, -1, 4)
                kv.write(layer, slots, keys, -keys[..., :3] - layer)
            scratch += rows.tolist()
        elif action < 0.8:
            nodes = rng.sample(range(len(scratch)), rng.randrange(len(scratch) + 1))
            kv.commit(sequence, sorted(nodes))
            committed += [scratch[node] for node in sorted(nodes)]
            scratch.clear()
        elif action < 0.9:
            kv.rollback(sequence)
            scratch.clear()
        elif len(model) > 1:
            kv.free(sequence)
            kv.free(sequence)
            model = [entry for entry in model if entry[0] is not sequence]
        kv.check_integrity()
        for held, kept, loose in model:
            assert (held.committed, held.length) == (len(kept), len(kept) + len(loose))
            if held.length and counter:
                for layer in range(LAYERS):
                    keys, values = read(kv, held, layer)
                    assert keys == kept + loose
                    assert values == [-key - layer for key in keys]
    for held, _, _ in model:
        kv.free(held)
    assert kv.allocator.num_taken == 0


def test_contiguous_pages_are_read_as_a_view() -> None:
    """A gather where a view would do: the CPU path would copy the whole context every step."""
    kv = PagedKV(4)
    sequence = kv.add(room=40)
    for _ in range(5):
        kv.extend(sequence, range(8))
        kv.commit(sequence, range(8))
    assert isinstance(kv.slots(sequence, 0, 40), slice)


def test_pages_that_are_not_contiguous_are_gathered_in_order() -> None:
    kv = PagedKV(2)
    first, second = kv.add(), kv.add()
    for index in range(4):
        for sequence in (first, second):
            kv.extend(sequence, [0, 1])
            slots = kv.slots(sequence, sequence.length - 2, sequence.length)
            rows = torch.full((1, 1, 2, 1), float(index)) + (0 if sequence is first else 100)
            kv.write(0, slots, rows, rows)
            kv.commit(sequence, [0, 1])
    slots = kv.slots(first, 0, 8)
    assert isinstance(slots, Tensor)
    assert read(kv, first, 0)[0] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert read(kv, second, 0)[0] == [100, 100, 101, 101, 102, 102, 103, 103]


def test_flags_go_where_their_keys_go() -> None:
    """Notes of visual tokens that stay behind when a shared page is copied."""
    kv = PagedKV(4, flags_visual=True)
    sequence = kv.add()
    kv.extend(sequence, range(3))
    rows = torch.ones(1, 1, 3, 2)
    kv.write(0, kv.slots(sequence, 0, 3), rows, rows)
    kv.commit(sequence, range(3))
    kv.flag_visual(sequence, [1, 2])
    twin = kv.fork(sequence)
    kv.extend(twin, [0])
    assert twin.pages != sequence.pages
    assert kv.visual is not None
    for each in (sequence, twin):
        assert kv.visual[kv.slots(each, 0, 3)].tolist() == [0, 1, 1]


def test_a_full_cache_leaves_the_sequence_as_it_was() -> None:
    kv = PagedKV(4, limit=2)
    sequence = kv.add()
    kv.extend(sequence, range(8))
    kv.commit(sequence, range(8))
    with pytest.raises(OutOfPages):
        kv.extend(sequence, [0])
    assert (sequence.length, len(sequence.pages)) == (8, 2)
    kv.check_integrity()


@pytest.mark.parametrize("fails", range(1, 6))
def test_pools_that_cannot_grow_leave_everything_as_it_was(
    fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that does not suffice at one time: pages that belong to nobody, that no pool holds, or
    whose contents are lost.
    """
    kv = PagedKV(4, flags_visual=True)
    first, second = kv.add(), kv.add()
    rows = torch.arange(4.0).view(1, 1, 4, 1).expand(-1, 2, -1, 4)
    kv.extend(first, range(4))
    for layer in range(LAYERS):
        kv.write(layer, kv.slots(first, 0, 4), rows, -rows - layer)
    kv.commit(first, range(4))
    kv.flag_visual(first, [1])
    before, left = kv.allocator.num_pages, iter(range(fails - 1))

    def rows_like(like: Tensor, slots: int) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError
        return made(like, slots)

    made = pools._rows_like
    with monkeypatch.context() as patch:
        patch.setattr(pools, "_rows_like", rows_like)
        if fails == 5:  # behind the last pool
            patch.setattr(torch, "cat", lambda _: rows_like(rows, 0))
        with pytest.raises(torch.OutOfMemoryError):
            kv.extend(second, range(40))
    assert (second.length, second.pages, kv.allocator.num_pages) == (0, [], before)
    kv.check_integrity()
    kv.extend(second, range(40))
    for layer in range(LAYERS):
        kv.write(layer, kv.slots(second, 36, 40), rows, rows)
        assert read(kv, first, layer) == ([0, 1, 2, 3], [-row - layer for row in range(4)])
        assert read(kv, second, layer)[0][36:] == [0, 1, 2, 3]
    assert kv.visual is not None
    assert kv.visual[kv.slots(first, 0, 4)].tolist() == [0, 1, 0, 0]
    kv.check_integrity()
