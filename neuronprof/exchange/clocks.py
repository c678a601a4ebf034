"""Clocks of several hosts brought together by the collectives that their ranks share.

All members of a collective leave it when its last bytes arrive, whatever time their clocks show: the median of the differences of these
ends is the offset of two clocks, and what the single collectives differ from it is its error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Ends = Mapping[tuple[str, int], int]  # when each collective ended on one rank, by group and number


@dataclass(frozen=True)
class Offset:
    """What is added to a rank's times, nanoseconds; 0 where clocks agree within the error, and where nothing is shared.

    collectives: how many the rank shares with an aligned one. error_ns: the median of what single ones differ from their median; most_ns:
    the most.
    """

    rank: int
    offset_ns: int
    error_ns: int
    most_ns: int
    collectives: int


def align(ranks: Sequence[int], ends: Sequence[Ends]) -> list[Offset]:
    """Offsets that bring all ranks to the clock of the first; a rank is compared with one that is already aligned.

    Args:
        ranks: of each trace.
        ends: of each trace.
    """
    found = {0: Offset(ranks[0], 0, 0, 0, len(ends[0]))}
    waiting = list(range(1, len(ranks)))
    while waiting:
        pairs = [(len(ends[a].keys() & ends[b].keys()), -b, -a) for b in waiting for a in found]
        shared, b, a = max(pairs)
        b, a = -b, -a
        waiting.remove(b)
        if not shared:
            found[b] = Offset(ranks[b], 0, 0, 0, 0)
            continue
        steps = [ends[a][key] + found[a].offset_ns - ends[b][key] for key in ends[a].keys() & ends[b].keys()]
        middle = round(median(steps))
        errors = [abs(step - middle) for step in steps]
        error = round(median(errors))
        found[b] = Offset(ranks[b], middle if abs(middle) > error else 0, error, max(errors), shared)
    return [found[position] for position in range(len(ranks))]
