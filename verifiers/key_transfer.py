"""Keys and values on their way between transformers' cache and pages.

Columns of a cache are counted with the padding on a row's left, positions of a sequence without.
Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from specdec.cache import PagedKV, SequenceKV

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)


def transferable(cache: object) -> bool:
    """Whether all that ``cache`` holds is keys and values in the order of the text."""
    return (
        isinstance(cache, Cache)
        and not getattr(cache, "offloading", False)
        and all(type(layer) in _KINDS for layer in cache.layers)
    )


def read_row(kv: PagedKV, sequence: SequenceKV, cache: Cache, row: int, padding: int) -> None:
    """Commit the columns ``[padding, length)`` of a row of ``cache`` to an empty sequence.

    Layers with a sliding window have forgotten what no later token can see; zeros take its place.

    Raises:
        OutOfPages: the page limit is reached; the sequence is as it was.
    """
    length = cache.get_seq_length()
    kv.extend(sequence, range(length - padding))
    slots = kv.slots(sequence, 0, length - padding)
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)
        if layer.keys is not None and layer.values is not None:
            keys, values = (
                _behind_padding(rows[row : row + 1], length, padding)
                for rows in (layer.keys, layer.values)
            )
            kv.write(index, slots, keys, values)
    kv.commit(sequence, range(length - padding))


def write_columns(
    kv: PagedKV, sequences: Sequence[SequenceKV], paddings: Sequence[int], cache: Cache
) -> None:
    """Append to ``cache``, which has a layer for each of the model's, the columns that it lacks:
    one row per sequence, padding as zeros.
    """
    start, stop = cache.get_seq_length(), sequences[0].committed + paddings[0]
    for sequence, padding in zip(sequences, paddings, strict=True):
        assert sequence.committed + padding == stop, "rows do not end together"
    for index in range(len(cache.layers)):
        try:
            pools = kv.layer(index)
        except KeyError:
            continue  # it has no keys of its own
        shapes = [(len(sequences), pool.shape[1], stop - start, pool.shape[3]) for pool in pools]
        keys, values = (p.new_zeros(shape) for p, shape in zip(pools, shapes, strict=True))
        for row, (sequence, padding) in enumerate(zip(sequences, paddings, strict=True)):
            first = max(start, padding)
            slots = kv.slots(sequence, first - padding, stop - padding)
            for target, pool in zip((keys, values), pools, strict=True):
                target[row, :, first - start :] = pool[0, :, slots]
        cache.update(keys, values, index)


def _behind_padding(rows: Tensor, length: int, padding: int) -> Tensor:
    """The last ``length - padding`` of ``rows (1, H, n, D)``, zeros in front where n is less."""
    kept = rows[:, :, max(rows.shape[2] - (length - padding), 0) :]
    missing = length - padding - kept.shape[2]
    return torch.nn.functional.pad(kept, (0, 0, missing, 0)) if missing else kept
