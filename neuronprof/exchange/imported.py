"""What an import found."""

from dataclasses import dataclass
from pathlib import Path

from neuronprof.errors import NeuronprofError
from neuronprof.exchange.breakdown import Breakdown
from neuronprof.exchange.clocks import Offset
from neuronprof.trace.metadata import LATEST


@dataclass(frozen=True)
class Imported:
    """The trace that was written. breakdowns, offsets: one a rank; skipped: events without a readable time."""

    trace: Path
    breakdowns: list[Breakdown]
    offsets: list[Offset]
    skipped: int


def check_extent(first: int, last: int, source: object) -> None:
    """Refuses events that are further apart than any recording lasts: one of their times is no time.

    Raises:
        NeuronprofError: they are.
    """
    if last - first >= LATEST:
        years = (last - first) / 3.156e16
        raise NeuronprofError(f"{source} is damaged: its events are {years:.0f} years apart; export it again.")
