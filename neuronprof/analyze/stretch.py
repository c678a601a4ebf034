"""Where the time of any stretch of a rank went, by the analyzer that splits its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuronprof.analyze import analyzer
from neuronprof.analyze.analyzer import BASE, Chip, Context, Events, Window
from neuronprof.analyze.attribution import LABELS, LATE_START, STEP_END, Attribution
from neuronprof.analyze.slices import Stretch
from neuronprof.errors import NeuronprofError
from neuronprof.trace import reader

if TYPE_CHECKING:
    import pandas as pd

MOST_EVENTS = 3_000_000  # in one stretch: they are held at once


@dataclass(frozen=True)
class Split:
    """A stretch of one rank. parts: part, detail, bound and time_ns; operators: part, detail, op_name, layer, phase, source and time_ns.

    Both add up to the length of the stretch.
    """

    parts: "pd.DataFrame"
    operators: "pd.DataFrame"


def split(trace: reader.TraceFile, rank: int, start: int, end: int) -> Split:
    """The attribution of the time from `start` to `end`, nanoseconds.

    Raises:
        NeuronprofError: more events than memory should hold, or a damaged trace.
    """
    question = Attribution()
    events = analyzer.events(_events(trace, tuple(dict.fromkeys(BASE + question.needs)), rank, (start, end)))
    if not len(events):
        return Split(*(_idle(end - start, names) for names in (("detail", "bound"), ("detail", *LABELS))))
    one_step = {**events.columns, "step": np.zeros(len(events), np.int32)}
    chip = Chip(Events(one_step, events.words), (Window(0, start, end),))
    # What waits in the stretch may start after it: such events are part of a longer window.
    longer = Window(0, start, max(end, int(events["start_ts"].max()) + 1))
    spans = tuple(replace(span, part_of=longer) for span in chip.spans)
    part = Stretch(chip.events, chip.windows, trace.metadata, (rank,), spans)
    found = question.finish(question.map(part), Context(trace.metadata, chip.windows))
    return Split(_inside(found["attribution"]), _inside(found["attribution_by_operator"]))


def _events(trace: reader.TraceFile, names: tuple[str, ...], rank: int, between: tuple[int, int]) -> pa.Table:
    """The events that touch the stretch, or wait in it."""
    start, end = between
    kept, count = [], 0
    for piece in trace.pieces(names, rank=rank, between=between):
        ends = pc.add(piece["start_ts"], piece["duration_ns"])
        since = pc.subtract(piece["start_ts"], piece["wait_ns"])
        seen = piece.filter(pc.and_(pc.less(since, end), pc.greater(ends, start)))
        count += seen.num_rows
        if count > MOST_EVENTS:
            raise NeuronprofError(f"The range has more than {MOST_EVENTS:,} events; choose a shorter one.")
        kept.append(seen)
    return reader.joined(kept, names)


def _idle(length: int, names: Sequence[str]) -> "pd.DataFrame":
    """The table of a stretch in which nothing happens."""
    import pandas as pd

    return pd.DataFrame([{"part": "idle", **dict.fromkeys(names, ""), "time_ns": length}])


def _inside(table: "pd.DataFrame") -> "pd.DataFrame":
    """A stretch ends and begins where nothing is known of what follows or was before: that is idle time, not the end of a step."""
    edge = table["detail"].isin([STEP_END, LATE_START])
    table = table.assign(part=table["part"].mask(edge, "idle"), detail=table["detail"].mask(edge, ""))
    keys = [name for name in table.columns if name not in ("time_ns", "per_step_ns", "share")]
    table = table.groupby(keys, as_index=False)[["time_ns"]].sum()
    return table.sort_values(["time_ns", *keys], ascending=[False, *[True] * len(keys)], ignore_index=True)
