"""What a picture of a part of a rank shows, taken from its levels of detail: as much as it has pixels, whatever the size of the rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import series, spans
from neuronprof.analyze.pyramid.build import RATES
from neuronprof.analyze.pyramid.store import Detail
from neuronprof.terms import Engine


@dataclass(frozen=True)
class Rate:
    """A quantity over the window: the mean of bins of `bin_ns` from `first` bins after the origin on, or, with bin_ns 0, each change."""

    bin_ns: int
    first: int
    time: NDArray[np.int64]
    value: NDArray[np.float64]


class Seen(NamedTuple):
    """Items, whose `longest` are rows of the event columns, and the row of the alike table of each one's longest event."""

    items: spans.Items
    alike: NDArray[np.int64]


def items(detail: Detail, lane: Mapping[str, Any], level: int, start: int, end: int) -> Seen:
    """The items of a lane that touch the time from `start` to `end`, nanoseconds from the origin.

    What bars need stands beside them on coarse levels: their longest events lie all over the trace.
    """
    kept = int(lane["kept"])
    if level < kept:
        rows = events(detail, lane, start, end, margin=1 << level)
        found = spans.single(
            begin_of(detail, rows), _whole(detail.columns["duration"][rows]), np.arange(rows.start, rows.stop)
        )
        found = next(spans.levels(found, level, level)) if level else found
        alike = detail.columns["alike"][found.longest]
    else:
        first, last = lane["edges"][level - kept], lane["edges"][level - kept + 1]
        starts = detail.columns["item_start"][first:last]
        reach = int(lane["reach"]) if lane["crowded"] else 0
        low = max(0, int(np.searchsorted(starts, start - reach)) - 1)
        high = int(np.searchsorted(starts, end))
        rows = slice(first + low, first + high)
        found = spans.Items(*(_whole(detail.columns[f"item_{name}"][rows]) for name in spans.Items._fields))
        alike = detail.columns["item_alike"][rows]
    seen = found.end >= start
    return Seen(spans.Items(*(column[seen] for column in found)), _whole(alike[seen]))


_BINS = 2048  # of a window whose busy times are added up


def busy(detail: Detail, start: int, end: int) -> dict[str, int]:
    """Nanoseconds that the events of each engine took between two times; what a bar stands for is cut in proportion.

    Events that overlap count once each, as those of several queues of an engine do.
    """
    level = min(int(detail.header["top"]), max(0, ((end - start) // _BINS).bit_length()))
    found: dict[str, int] = {}
    for lane in detail.header["lanes"]:
        if lane["engine"] == Engine.HBM:
            continue
        seen = items(detail, lane, level, start, end).items
        inside = np.minimum(seen.end, end) - np.maximum(seen.start, start)
        share = np.clip(inside, 0, None) / np.maximum(seen.end - seen.start, 1)
        found[lane["engine"]] = found.get(lane["engine"], 0) + round(float((seen.busy * share).sum()))
    return found


def events(detail: Detail, lane: Mapping[str, Any], start: int, end: int, margin: int = 0) -> slice:
    """The rows of a lane's events that may touch the time from `start` to `end`, and those up to a margin around it."""
    first, last = int(lane["first"]), int(lane["last"])
    starts = detail.columns["start"][first:last]
    shift = int(detail.header["base"]) - int(detail.header["origin"])
    reach = int(lane["reach"]) if lane["crowded"] else 0
    # Bins are cut where they begin: what shares one with an event of the window is part of it.
    low = int(np.searchsorted(starts, _in(starts, _floor(start - reach, margin) - shift)))
    high = int(np.searchsorted(starts, _in(starts, _floor(end, margin) + max(margin, 0) - shift)))
    return slice(first + max(0, low - 1), first + high)


def begin_of(detail: Detail, rows: Any) -> NDArray[np.int64]:
    """When events start, nanoseconds from the origin."""
    shift = int(detail.header["base"]) - int(detail.header["origin"])
    return _whole(detail.columns["start"][rows]) + shift


def rate(detail: Detail, name: str, level: int, start: int, end: int) -> Rate | None:
    """A quantity of `RATES` at a level; None if the rank has none of it."""
    about = detail.header["rates"].get(name)
    if about is None:
        return None
    if level >= about["finest"]:
        level = min(level, about["coarsest"])
        edges = about["edges"]
        first, last = edges[level - about["finest"]], edges[level - about["finest"] + 1]
        low, high = max(0, start >> level), min(last - first, (end >> level) + 1)
        value = detail.columns[f"rate_{name}"][first + low : first + high].astype(np.float64)
        return Rate(1 << level, low, np.zeros(0, np.int64), value)
    steps = changes(detail, name, start, end)
    return Rate(0, 0, steps.time, np.asarray(steps.value, np.float64))


def changes(detail: Detail, name: str, start: int, end: int) -> series.Steps:
    """A quantity of `RATES` between two times, every change of it."""
    engine, amount = RATES[name]
    lanes = [lane for lane in detail.header["lanes"] if lane["engine"] == engine]
    rows = np.concatenate([np.arange(r.start, r.stop) for r in (events(detail, lane, start, end) for lane in lanes)])
    amounts = detail.columns[f"alike_{amount}"][detail.columns["alike"][rows]]
    return series.rate(begin_of(detail, rows), _whole(detail.columns["duration"][rows]), _whole(amounts))


def held(detail: Detail, name: str, level: int, start: int, end: int) -> NDArray[np.intp]:
    """The rows of one of `HELD` that a picture at this level keeps, from the last one before `start` on."""
    time = detail.columns[f"held_{name}_time"]
    if level == 0:
        rows: NDArray[Any] = np.arange(len(time))
        low, high = np.searchsorted(time, [start, end])
        return rows[max(0, int(low) - 1) : int(high)]
    edges = detail.header["held"][name]["edges"]
    rows = detail.columns[f"held_{name}_rows"][edges[level - 1] : edges[level]]
    low, high = (_first(time, rows, at) for at in (start, end))
    return np.asarray(rows[max(0, low - 1) : high], np.intp)


def _first(time: NDArray[Any], rows: NDArray[Any], at: int) -> int:
    """The first place whose row's time is at least `at`."""
    return int(np.searchsorted(rows, int(np.searchsorted(time, at))))


def _floor(at: int, bin_ns: int) -> int:
    return at // bin_ns * bin_ns if bin_ns else at


def _in(values: NDArray[Any], at: int) -> Any:
    """A time in the type of the column that is searched: another type would have the whole column converted."""
    limit = np.iinfo(values.dtype)
    return values.dtype.type(min(max(at, limit.min), limit.max))


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(values).astype(np.int64)
