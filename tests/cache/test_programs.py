"""Random programs over the cache, against a plain dictionary of what every sequence holds.

``SPECDEC_PROGRAMS`` is how many programs the slow test runs.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from specdec.cache import OutOfPages, PagedKV, PageView, SequenceKV
from specdec.cache.pages import page_key

PAGE, LIMIT, LAYERS = 3, 14, 2
PROGRAMS = int(os.environ.get("SPECDEC_PROGRAMS", "500"))
TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=8)  # few tokens, so that texts coincide


def row_of(text: list[int]) -> float:
    """The key of this text's last token: it depends on all of them, as real ones do."""
    value = 1.0
    for token in text:
        value = (value * 5 + token + 1) % 1_000_003
    return value


class Cache(RuleBasedStateMachine):
    """``held``: per sequence its committed tokens and its scratch, each a path of tokens from the
    committed text on."""

    sequences = Bundle("sequences")
    views = Bundle("views")
    prunings = Bundle("prunings")

    def __init__(self) -> None:
        super().__init__()
        self.kv = PagedKV(PAGE, LIMIT)
        self.held: dict[SequenceKV, tuple[list[int], list[list[int]]]] = {}
        self.seen: dict[PageView, list[float]] = {}
        self.pruned: dict[SequenceKV, list[float]] = {}

    def keys(self, text: list[int], lead: int) -> list[bytes]:
        keys = [bytes([lead])]
        for end in range(PAGE - lead, len(text) + 1, PAGE):
            keys.append(page_key(keys[-1], text[max(end - PAGE, 0) : end]))
        return keys[1:]

    def write(self, sequence: SequenceKV, count: int, rows: list[float]) -> None:
        slots = self.kv.slots(sequence, sequence.length - count, sequence.length)
        for layer in range(LAYERS):
            keys = torch.tensor(rows)[None, None, :, None].expand(-1, 2, -1, 2)
            self.kv.write(layer, slots, keys, -keys - layer)

    def grow(self, sequence: SequenceKV, paths: list[list[int]]) -> bool:
        """Extend by these paths as scratch; a full cache must leave everything as it was."""
        committed, scratch = self.held[sequence]
        try:
            self.kv.extend(sequence, [len(path) - 1 for path in paths])
        except OutOfPages:
            return False
        self.write(sequence, len(paths), [row_of(committed + path) for path in paths])
        scratch += paths
        return True

    @rule(target=sequences, text=TEXT, room=st.integers(0, 12), lead=st.integers(0, PAGE - 1))
    def add(self, text: list[int], room: int, lead: int) -> SequenceKV:
        """A prompt: what is found of it is taken over, the rest is computed."""
        sequence = self.kv.add(room, self.keys(text[:-1], lead), lead)
        found = sequence.committed
        assert found <= len(text) - 1
        assert found == 0 or (found + lead) % PAGE == 0
        self.held[sequence] = (text[:found], [])
        rest = [text[found : found + i + 1] for i in range(len(text) - found)]
        if self.grow(sequence, rest):
            self.kv.commit(sequence, range(len(rest)))
            self.held[sequence] = (list(text), [])
        return sequence

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: SequenceKV) -> SequenceKV:
        if sequence not in self.held:
            return sequence
        self.kv.rollback(sequence)
        committed, _ = self.held[sequence]
        self.held[sequence] = (committed, [])
        twin = self.kv.fork(sequence)
        self.held[twin] = (list(committed), [])
        return twin

    @rule(sequence=sequences, tokens=TEXT, data=st.data())
    def speculate(self, sequence: SequenceKV, tokens: list[int], data: Any) -> None:
        """Nodes below the text or below nodes that are there."""
        if sequence not in self.held:
            return
        paths: list[list[int]] = []
        for token in tokens:
            parents = [[], *self.held[sequence][1], *paths]
            paths.append([*data.draw(st.sampled_from(parents)), token])
        self.grow(sequence, paths)

    @rule(sequence=sequences, data=st.data(), named=st.booleans())
    def commit(self, sequence: SequenceKV, data: Any, named: bool) -> None:
        """A path of the scratch tree, any of them."""
        if sequence not in self.held:
            return
        committed, scratch = self.held[sequence]
        nodes: list[int] = []
        if scratch:
            path = scratch[data.draw(st.integers(0, len(scratch) - 1))]
            for length in range(1, len(path) + 1):
                after = nodes[-1] + 1 if nodes else 0
                at = [i for i in range(after, len(scratch)) if scratch[i] == path[:length]]
                if not at:
                    break
                nodes.append(at[0])
        self.kv.commit(sequence, nodes)
        text = committed + [scratch[node][-1] for node in nodes]
        self.held[sequence] = (text, [])
        if named:
            self.kv.name(sequence, self.keys(text, sequence.lead)[len(sequence.keys) :])

    @rule(sequence=sequences)
    def roll_back(self, sequence: SequenceKV) -> None:
        if sequence in self.held:
            self.kv.rollback(sequence)
            self.held[sequence] = (self.held[sequence][0], [])

    @rule(sequence=sequences)
    def preempt(self, sequence: SequenceKV) -> None:
        """Freed, and computed again from what is found."""
        if sequence not in self.held:
            return
        text, _ = self.held.pop(sequence)
        self.kv.free(sequence)
        if text:
            self.add(text, 0, sequence.lead)

    @rule(sequence=consumes(sequences))
    def free(self, sequence: SequenceKV) -> None:
        self.kv.free(sequence)
        self.kv.free(sequence)
        self.held.pop(sequence, None)

    @rule(target=views, sequence=sequences, data=st.data())
    def view(self, sequence: SequenceKV, data: Any) -> PageView | None:
        full = sequence.full_pages(PAGE)
        if sequence not in self.held or full == 0:
            return None
        chosen = data.draw(st.sets(st.integers(0, full - 1), min_size=1))
        view = self.kv.view(sequence, sorted(chosen))
        text = self.held[sequence][0]
        self.seen[view] = [
            row_of(text[: i + 1])
            for page in sorted(chosen)
            for i in range(page * PAGE - sequence.lead, (page + 1) * PAGE - sequence.lead)
            if i >= 0
        ]
        return view

    @rule(target=prunings, sequence=sequences, data=st.data())
    def prune(self, sequence: SequenceKV, data: Any) -> SequenceKV | None:
        """Some of its pages, the begun one among them, and drafts behind them."""
        if sequence not in self.held or self.held[sequence][1]:
            return None
        text, _ = self.held[sequence]
        full, used = sequence.full_pages(PAGE), -(-(sequence.lead + len(text)) // PAGE)
        used = used if text else 0
        chosen = data.draw(st.sets(st.integers(0, max(full - 1, 0)))) if full else set()
        pages = sorted(chosen | set(range(full, used)))
        pruned = self.kv.prune(sequence, pages)
        places = [i for i in range(len(text)) if (sequence.lead + i) // PAGE in pages]
        assert pruned.committed_places().tolist() == places
        assert pruned.end == len(text)
        for place in range(len(text) + 3):
            before = sum(kept < place for kept in [*places, *range(len(text), place)])
            assert pruned.index(torch.tensor([place])).tolist() == [before]
        self.pruned[pruned] = [row_of(text[: i + 1]) for i in places]
        return pruned

    @rule(pruned=prunings, count=st.integers(1, 4))
    def draft(self, pruned: SequenceKV | None, count: int) -> None:
        if pruned is None or pruned not in self.pruned:
            return
        try:
            self.kv.extend(pruned, range(count))
        except OutOfPages:
            return
        rows = [-1000.0 - len(self.pruned[pruned]) - i for i in range(count)]
        self.write(pruned, count, rows)
        self.pruned[pruned] += rows

    @rule(pruned=consumes(prunings))
    def forget(self, pruned: SequenceKV | None) -> None:
        if pruned is not None:
            self.kv.free(pruned)
            del self.pruned[pruned]

    @rule(view=consumes(views))
    def close(self, view: PageView | None) -> None:
        if view is not None:
            self.kv.close(view)
            self.kv.close(view)
            del self.seen[view]

    @invariant()
    def nothing_is_lost_or_shared_wrongly(self) -> None:
        self.kv.check_integrity()

    @precondition(lambda self: self.kv.allocator.num_pages)
    @invariant()
    def everybody_reads_what_they_wrote(self) -> None:
        for sequence, (text, scratch) in self.held.items():
            assert (sequence.committed, sequence.length) == (len(text), len(text) + len(scratch))
            rows = [row_of(text[: i + 1]) for i in range(len(text))]
            rows += [row_of(text + path) for path in scratch]
            self.expect(self.kv.slots(sequence, 0, sequence.length), rows)
        for pruned, rows in self.pruned.items():
            self.expect(self.kv.slots(pruned, 0, pruned.length), rows)
        for view, rows in self.seen.items():
            self.expect(self.kv.view_slots(view), rows)

    def expect(self, slots: Any, rows: list[float]) -> None:
        if rows:
            for layer in range(LAYERS):
                keys, values = self.kv.layer(layer)
                assert keys[0, 1, slots, 1].tolist() == rows
                assert values[0, 0, slots, 0].tolist() == [-row - layer for row in rows]

    def teardown(self) -> None:
        """Whatever is freed comes back, and what is cached can all be given away."""
        for sequence in list(self.held):
            self.kv.free(sequence)
        for pruned in list(self.pruned):
            self.kv.free(pruned)
        for view in list(self.seen):
            self.kv.close(view)
        assert self.kv.allocator.num_taken == 0
        self.kv.allocator.allocate(LIMIT)
        assert self.kv.allocator.num_cached == 0


def run(programs: int) -> None:
    run_state_machine_as_test(
        Cache,
        settings=settings(
            max_examples=programs,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_programs() -> None:
    """A page given away while it is read, a fork that writes into its twin, a commit that moves the
    wrong row, a prefix found under another text's key, a page that never comes back."""
    run(100)


@pytest.mark.slow
def test_many_programs() -> None:
    run(PROGRAMS)
