"""The events of a trace that an export is asked for, chip by chip, so that memory holds one chip at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from neuronprof.errors import NeuronprofError
from neuronprof.trace.reader import TraceFile


@dataclass(frozen=True)
class Selection:
    """What of a trace is exported: events that touch the window [start, end), nanoseconds, of one rank; None: all."""

    trace: TraceFile
    rank: int | None = None
    start: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        """Refuses a rank that the trace does not have.

        Raises:
            NeuronprofError: there is no such rank.
        """
        if self.rank is not None and self.rank not in self.trace.ranks:
            raise NeuronprofError(
                f"{self.trace.path} has no events of rank {self.rank}; it has {len(self.trace.ranks)} ranks."
            )

    def chips(self) -> Iterator[pa.Table]:
        """A table with all columns for each chip that has such events."""
        for chip in self.trace.chips:
            table = self.trace.columns(chip=chip, rank=self.rank)
            start = table["start_ts"]
            if self.start is not None:
                table = table.filter(
                    pc.greater(pc.add(start, pc.max_element_wise(table["duration_ns"], 1)), self.start)
                )
                start = table["start_ts"]
            if self.end is not None:
                table = table.filter(pc.less(start, self.end))
            if table.num_rows:
                yield table
