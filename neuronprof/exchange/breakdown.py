"""How a device's time splits into compute, communication, copies and idle: exact figures of one rank, in plain Python.

Nothing heavy is imported, because these figures are also given of files that are only glanced at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[int, int]


@dataclass(frozen=True)
class Breakdown:
    """Times of one rank's device events in nanoseconds, each class by the union of its intervals.

    total_ns: last end minus first start; idle_ns: total minus the union of all; overlapped_ns: communication while something computes;
    exposed_ns: the rest of it.
    """

    rank: int
    events: int
    total_ns: int
    busy_ns: int
    idle_ns: int
    compute_ns: int
    communication_ns: int
    memory_ns: int
    overlapped_ns: int
    exposed_ns: int


def split(
    rank: int, compute: Sequence[Interval], communication: Sequence[Interval], memory: Sequence[Interval]
) -> Breakdown:
    """The breakdown of a rank from the start and end of its events, in any order."""
    every = [*compute, *communication, *memory]
    total = max((end for _, end in every), default=0) - min((start for start, _ in every), default=0)
    busy = covered(every)
    computes, communicates = covered(compute), covered(communication)
    overlapped = computes + communicates - covered([*compute, *communication])
    return Breakdown(
        rank, len(every), total, busy, total - busy, computes, communicates, covered(memory), overlapped, communicates - overlapped
    )  # fmt: skip


def covered(intervals: Iterable[Interval]) -> int:
    """Nanoseconds that at least one interval covers."""
    length, reach = 0, -(2**63)
    for start, end in sorted(intervals):
        if end > reach:
            length += end - max(start, reach)
            reach = end
    return length
