"""How the tree-attention kernel is cut up. Knows sizes only."""

from __future__ import annotations

from typing import NamedTuple

import torch

LEAST_KEYS = 256  # that are worth a program of their own
MOST_SPLITS = 64


# By whether there are more than 32 rows, and by head size: keys, warps, stages.
_CUTS: dict[bool, dict[int, tuple[tuple[int, int, int], ...]]] = {
    False: {
        32: ((32, 4, 3),),
        64: ((64, 4, 3), (32, 4, 3), (64, 4, 2)),
        128: ((64, 4, 3),),
        256: ((32, 4, 3), (64, 8, 3)),
    },
    True: {
        32: ((64, 8, 2),),
        64: ((32, 8, 3),),
        128: ((64, 8, 2),),
        256: ((32, 8, 2),),
    },
}


class Tiling(NamedTuple):
    """How the kernel is cut up: rows and keys a program, warps, pipeline stages."""

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def tilings(head_dim: int, dtype: torch.dtype, rows: int, group: int) -> tuple[Tiling, ...]:
    """The few that are worth trying, the likely best one first.

    Chosen so that none spills registers on sm_80, sm_90 and sm_100, with Triton 3.6 as with 3.7
    (``python -m specdec.eval.compiled``).

    Args:
        head_dim: the larger of those of keys and values.
        dtype: of the pools.
        rows: tree nodes that read the same keys.
        group: query heads a key head.
    """
    block_d = block(head_dim)
    least = max(16, next_power_of_2(group))
    if dtype == torch.float32:
        warps, stages = (8, 3) if block_d > 128 else (4, 2)
        return (Tiling(least, 32, warps, stages),)
    block_m = max(least, min(next_power_of_2(rows * group), 64))
    cuts = _CUTS[min(block_m, 64) > 32][max(block_d, 32)]
    return tuple(Tiling(block_m, *cut) for cut in cuts)


def chunk(head_dim: int, dtype: torch.dtype) -> int:
    """Components of queries and keys that are multiplied at a time."""
    return min(64 if dtype == torch.float32 else 256, block(head_dim))


def block(head_dim: int) -> int:
    """Components of a head that a program holds: matrix units take 16 at least."""
    return max(16, next_power_of_2(head_dim))


def splits(programs: int, processors: int, longest: int) -> int:
    """Programs that share a tile's keys: enough for two a processor, as long as each has keys
    enough.

    Args:
        programs: there would be without splits.
        processors: of the device.
        longest: most keys of a tile.
    """
    filling = -(-2 * processors // programs)
    return max(1, min(filling, -(-longest // LEAST_KEYS), MOST_SPLITS))


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is no less."""
    return 1 << max(number - 1, 0).bit_length()
