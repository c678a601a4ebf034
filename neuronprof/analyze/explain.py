"""Why one event of a trace took as long as it did, and why it did not start sooner."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuronprof.analyze import sbuf
from neuronprof.analyze.durations import Worked, worked
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Engine, Kind
from neuronprof.trace import reader, schema

_READ = schema.select(
    "id", "step", "chip", "core", "rank", "engine", "queue", "kind", "name", "start_ts", "duration_ns", "wait_ns", "wait_for", "op_name",
    "layer", "phase", "source", "bytes", "flops", "dtype", "replica_group", "algorithm", "released_by", "operands",
)  # fmt: skip
_SEARCHED = schema.select("name", "op_name", "layer")
# Events that show what an instruction does to HBM or a link, or what memory holds: no instructions of their own.
_SHADOWS = (Engine.HBM, Engine.NEURONLINK, Engine.EFA)

Event = dict[str, Any]


@dataclass(frozen=True)
class Explanation:
    """What the trace tells of an event.

    event: its columns; chosen: how it was found, '' by its id; worked: its duration from the formula, None where there is none, and then
    note says why; again: why a DMA moves what SBUF has no room for, '' if it does not; released_by: the event whose end let it start, None
    if there is none or the trace does not hold it.
    """

    event: Event
    chosen: str
    worked: Worked | None
    note: str
    again: str
    released_by: Event | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def explain(trace: reader.TraceFile, wanted: str) -> Explanation:
    """Explains an event. wanted: its id, or a name or pattern of names, operators or layers, of which the longest event is taken.

    Raises:
        NeuronprofError: there is no such event, or the trace is damaged.
    """
    number, chosen = (int(wanted), "") if wanted.isdecimal() else _longest(trace, wanted)
    event = by_id(trace, number)
    if event is None:
        raise NeuronprofError(
            f"There is no event {number} in {trace.path}; the column id has them, or give a name like MATMUL."
        )
    released = int(event["released_by"])
    note = without_formula(event, trace.metadata)
    return Explanation(
        event,
        chosen,
        None if note else worked(event, trace.metadata),
        note,
        sbuf.why_again(event["name"] or "", event["bytes"], event["operands"]),
        by_id(trace, released) if released >= 0 else None,
    )


def by_id(trace: reader.TraceFile, number: int) -> Event | None:
    """The columns of an event; None if there is none with this id."""
    stride = (trace.metadata.get("numbering") or {}).get("rank_stride")
    rows = trace.columns(_READ, rank=number // stride if stride else None, event=number).to_pylist()
    return rows[0] if rows else None


def _longest(trace: reader.TraceFile, wanted: str) -> tuple[int, str]:
    """The id of the longest instruction whose name, operator or layer matches, and a sentence that says which of how many it is."""
    table = trace.columns(("id", "engine", "kind", "duration_ns", *_SEARCHED))
    matching = [_matching(table[name], wanted) for name in _SEARCHED]
    shadows = pc.or_(_among(table["engine"], _SHADOWS), _among(table["kind"], [Kind.MEMORY]))
    found = np.logical_or.reduce([np.asarray(m) for m in matching]) & ~np.asarray(shadows)
    rows = np.flatnonzero(found)
    if not len(rows):
        raise NeuronprofError(
            f"No event of {trace.path} is called '{wanted}', nor its operator or layer; "
            "give an id, a name like MATMUL, or a pattern like '*mlp*'."
        )
    longest = rows[np.asarray(table["duration_ns"])[rows].argmax()]
    count = f"the longest of {len(rows):,} events that match" if len(rows) > 1 else "the only event that matches"
    return int(table["id"][int(longest)].as_py()), f"{count} '{wanted}'"


def _matching(column: pa.ChunkedArray, wanted: str) -> pa.ChunkedArray:
    """Which rows have a word that matches the pattern, whatever the case; without a wildcard, one that contains it."""
    pattern = wanted.lower() if any(sign in wanted for sign in "*?[") else f"*{wanted.lower()}*"
    words = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    return _among(column, [word for word in words if fnmatchcase(word.lower(), pattern)])


def _among(column: pa.ChunkedArray, words: Any) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array([str(word) for word in words], pa.string()))


def without_formula(event: Event, metadata: Mapping[str, Any]) -> str:
    """Why an event has no formula; '' if it has one."""
    if event["operands"]:
        return ""
    if event["kind"] == Kind.MEMORY:
        holder = str(event["engine"]).upper()
        return f"What {holder} holds lasts until the next change of its category: no formula says how long."
    if "formulas" in metadata:
        return "It takes no time of its own: it is over when what it waits for is there."
    if metadata.get("producer") == "neuronprof":
        return (
            "This trace was recorded before formulas were kept; record it again to see where the duration comes from."
        )
    return "Measured, not computed: the trace comes from elsewhere, and no formula of ours stands behind its durations."
