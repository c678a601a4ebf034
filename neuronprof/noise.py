"""The noise of ranks: a hash of (seed, run, instruction, rank), so that any rank's noise is its own, however many others are simulated."""

from math import floor

import numpy as np

_MASK = 0xFFFFFFFF
_HALF = 1 << 15


def mixed(x: int) -> int:
    """A 32-bit hash. Source: the finalizer `lowbias32` of C. Wellons' hash prospector."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def seed_of(seed: int, run: int) -> int:
    """What the instructions of one run are hashed with."""
    return mixed((mixed(seed & _MASK) + run * 0x9E3779B9) & _MASK)


def key_of(ranks: np.ndarray) -> np.ndarray:
    """What the instructions of each rank are hashed with, uint32."""
    return (ranks.astype(np.uint64) * np.uint64(0x85EBCA6B)).astype(np.uint32)


def noisy(duration: int, jitter: float, seed: int, instruction: int, rank: int) -> int:
    """A duration with its noise: longer or shorter by up to a share of `jitter`, rounded down."""
    salt = (instruction * 0x9E3779B9 + seed) & _MASK
    noise = mixed(salt ^ (rank * 0x85EBCA6B & _MASK))
    return duration + floor(duration * (((noise >> 16) - _HALF) * (jitter / _HALF)))
