"""Tiling: how a group is cut so that three of its tiles fit SBUF, and what a matmul reads again because its operands do not fit."""

import itertools
from functools import lru_cache
from math import ceil

import numpy as np

from neuronprof.graph.ops import Gemm

# Enough pieces for loads, engines and stores to overlap; finer ones only add events. A piece of a very large group stands for several
# tiles that follow each other without a gap.
_PIECES = 8
_MOST_PIECES = 32
_SMALLEST_PIECE = 1 << 20
# While one tile is computed, the next one is loaded and the one before it is stored.
IN_FLIGHT = 3


def pieces(nbytes: int, working: float) -> int:
    """Into how many pieces of equal size a group of this many bytes is cut. working: bytes of SBUF that the tiles in flight share."""
    needed = min(ceil(nbytes / (working / IN_FLIGHT)), _MOST_PIECES)
    return max(1, needed, min(_PIECES, nbytes // _SMALLEST_PIECE))


def split(extent: int, tile: int, parts: int) -> list[int]:
    """Cuts an extent into at most `parts` pieces, each but the last a multiple of the tile: 1000 by 512 in 2 is [512, 488]."""
    tiles = ceil(extent / tile)
    parts = min(parts, tiles)
    bounds = [min(extent, tile * (tiles * i // parts)) for i in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(bounds)]


def shares(whole: int, count: int) -> np.ndarray:
    """A whole in so many parts, as equal as they can be; they add up to it: 10 in 3 is [3, 3, 4]."""
    return np.diff(whole * np.arange(count + 1) // count)


@lru_cache(maxsize=4096)
def split_gemm(gemm: Gemm, parts: int, stationary: int, moving: int) -> tuple[Gemm, ...]:
    """A matmul cut into about `parts` matmuls of whole tiles: along its batch first, then along the longer and the other side."""
    batches = split(gemm.batch, 1, parts)
    left = ceil(parts / len(batches))
    if gemm.n / moving >= gemm.m / stationary:
        columns = split(gemm.n, moving, left)
        rows = split(gemm.m, stationary, ceil(left / len(columns)))
    else:
        rows = split(gemm.m, stationary, left)
        columns = split(gemm.n, moving, ceil(left / len(rows)))
    return tuple(Gemm(b, m, gemm.k, n) for b in batches for m in rows for n in columns)


@lru_cache(maxsize=4096)
def orient(gemm: Gemm, stationary: int, moving: int, shortest: int) -> Gemm:
    """The same matmul or its transpose, whichever keeps the PE array fuller: M is held stationary, N moves past it.

    shortest: fewest cycles between two MATMULs, however little moves.
    """

    def cycles(m: int, n: int) -> int:
        return ceil(m / stationary) * max(n, shortest * ceil(n / moving))

    return gemm if cycles(gemm.m, gemm.n) <= cycles(gemm.n, gemm.m) else Gemm(gemm.batch, gemm.n, gemm.k, gemm.m)


@lru_cache(maxsize=4096)
def read_again(left: int, right: int, result: int, working: float) -> int:
    """Bytes that one matmul reads more than once because nothing of it fits the working half of SBUF.

    left, right: bytes of the operands; result: bytes of its sums in FP32. Half of `working` is a panel that stays while the rest streams
    past it: a part of either operand, or a block of the result, which needs its rows of one operand and its columns of the other (the
    blockings of free and of contracted dimensions in the NKI matmul guide). The cheapest choice is taken.
    """
    panel = working / 2
    blocks = max(1, ceil(result / panel))
    by_result = min(left * ceil(blocks / rows) + right * rows for rows in range(1, blocks + 1))
    traffic = min(left + right * ceil(left / panel), right + left * ceil(right / panel), by_result)
    return traffic - left - right
