"""What an import found."""

from dataclasses import dataclass
from pathlib import Path

from neuronprof.exchange.breakdown import Breakdown
from neuronprof.exchange.clocks import Offset


@dataclass(frozen=True)
class Imported:
    """The trace that was written. breakdowns, offsets: one a rank; skipped: events without a readable time."""

    trace: Path
    breakdowns: list[Breakdown]
    offsets: list[Offset]
    skipped: int
