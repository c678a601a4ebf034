"""Sums one rank into levels of detail: a picture of any part of it then touches no more than it shows.

Columns of a Detail: of events see `tracks.Tracks`; `item_*` of coarse levels (see `spans.Items`; alike: of the longest event),
lane after lane, level after level;
`held_*` of what each of HELD contains; `rate_*` of quantities, the mean of each bin, level after level; `alike_*` of what events share.
Its header says where what is: `lanes`, `bands`, `rates`, `held`, `words`, `segments`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import series, spans
from neuronprof.analyze.pyramid import alike, bands, tracks
from neuronprof.analyze.pyramid.store import Detail, Shelf, narrow, release
from neuronprof.terms import ROLES, Engine, Held, OnChip, Phase

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

VERSION = 5  # of what is kept on disk
CROWD = 16  # events a bin from which on a level is kept; finer ones are summed when they are looked at
AT_ONCE = 2_000_000  # events summed at once
MOST_BINS = 2**22  # of a quantity's finest level
# Quantities over time: the engine, and what of its events is spread over their time.
RATES = {
    "hbm": (Engine.HBM, "bytes"),
    "neuronlink": (Engine.NEURONLINK, "bytes"),
    "efa": (Engine.EFA, "bytes"),
    "flops": (Engine.TENSOR, "flops"),
    "mfu": (Engine.TENSOR, "model_flops"),
}

# Bytes held over time.
HELD = {"memory": Engine.HBM, "sbuf": OnChip.SBUF, "psum": OnChip.PSUM}


def build(
    trace: "TraceFile", rank: int, folder: Path | None = None, report: tracks.Report = lambda _what, _share: None
) -> Detail:
    """The levels of detail of one rank.

    Args:
        trace: an opened trace.
        rank: one of its ranks; of one without events everything is empty.
        folder: where to keep them; None: in memory.
        report: is told what is being done, and the share that is done.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    shelf = Shelf(folder)
    found = tracks.read(trace, rank, shelf, report)
    segments = trace.metadata.get("segments") or bands.segments(found.steps)
    origin, end = _extent(found, segments)
    top = spans.top_level(end - origin)
    banded = bands.bands(found, segments, bands.slowed(trace.metadata, rank))
    shared = found.alike.finish(alike.shapes_of(trace.operators))
    columns = {**shared.columns, "model_flops": _model_flops(shared)}
    header: dict[str, Any] = {
        "rank": rank,
        "origin": origin,
        "end": end,
        "top": top,
        "base": found.origin,
        "first_id": found.first_id,
        "foreign": found.foreign,
        "segments": segments,
        "bands": banded,
        "words": {**shared.words, "wait_for": found.wait_words},
    }
    header["lanes"] = _summed(found, origin, top, shelf, report)
    header["rates"] = {
        name: rates
        for name, (engine, amount) in RATES.items()
        if (rates := _rates(found, engine, columns[amount], (origin, end), (shelf, f"rate_{name}")))
    }
    header["held"] = {
        name: about
        for name, memory in HELD.items()
        if (about := _held(found, memory, origin, top, (shelf, f"held_{name}")))
    }
    for name, column in columns.items():
        shelf.add(f"alike_{name}", column)
    shelf.add("alike_count", shared.count)
    return shelf.finish(header)


def _model_flops(shared: alike.Alike) -> NDArray[np.int64]:
    """The operations of each combination that the model needs: those that backward computes again are not counted twice."""
    again = np.array([word == Phase.RECOMPUTE for word in shared.words["phase"]] + [False])
    return np.where(again[shared.columns["phase"]], 0, shared.columns["flops"])


def _extent(found: tracks.Tracks, segments: list[dict[str, Any]]) -> tuple[int, int]:
    """Start and end of everything, nanoseconds."""
    starts = [first for first, _ in found.steps.values()] + [s["start_ts"] for s in segments]
    ends = [last for _, last in found.steps.values()] + [s["end_ts"] for s in segments]
    held = [part for parts in found.memory.values() for part in parts]
    starts += [int(part[0].min()) for part in held]
    ends += [int(part[1].max()) for part in held]
    return min(starts, default=0), max(ends, default=0)


def _summed(found: tracks.Tracks, origin: int, top: int, shelf: Shelf, report: tracks.Report) -> list[dict[str, Any]]:
    """Adds the items of coarse levels; returns the lanes, each with its first kept level and where its levels are."""
    shift = found.origin - origin
    kept: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, np.int64)] for name in (*spans.Items._fields, "alike")}
    lanes, at, done, total = [], 0, 0, max(1, len(found.columns["start"]))
    for lane in found.lanes:
        about = {**asdict(lane), "kept": top + 1, "edges": [at]}
        if lane.engine != Engine.HBM:
            about["kept"] = first = _first_kept(found.columns["start"], lane, shift, top)
            levels: list[list[spans.Items]] = [[] for _ in range(first, top + 1)]
            for part in _parts(found, lane, shift, top) if levels else ():
                for level, items in enumerate(spans.levels(part, first, top)):
                    levels[level].append(items)
            for parts in levels:
                at += sum(_keep(kept, items, found.columns["alike"]) for items in parts)
                about["edges"].append(at)
        release(found.columns.values())
        lanes.append(about)
        done += lane.last - lane.first
        report("summing", done / total)
    for name in list(kept):
        shelf.add(f"item_{name}", np.concatenate(kept.pop(name)))
    return lanes


def _keep(kept: dict[str, list[NDArray[Any]]], items: spans.Items, alike: NDArray[Any]) -> int:
    """Adds items, with what their longest events share; returns how many."""
    for name, column in zip(spans.Items._fields, items, strict=True):
        kept[name].append(column.astype(narrow(0, int(column.max(initial=0)))))
    kept["alike"].append(alike[items.longest])
    return len(items.start)


def _first_kept(start: NDArray[Any], lane: tracks.Lane, shift: int, top: int) -> int:
    """The finest level with so many events a bin that it is kept."""
    for level in range(1, top + 1):
        many = 0
        for first in range(lane.first, lane.last, AT_ONCE):
            bins = (start[first : min(first + AT_ONCE, lane.last)].astype(np.int64) + shift) >> level
            many += int(np.count_nonzero(np.diff(bins))) + 1
        if many * CROWD <= lane.last - lane.first:
            return level
    return top + 1


def _parts(found: tracks.Tracks, lane: tracks.Lane, shift: int, top: int) -> Iterator[spans.Items]:
    """A lane's events as items, cut where no bin of any level is: between two bins of the coarsest one."""
    first = lane.first
    while first < lane.last:
        last = min(first + AT_ONCE, lane.last)
        start = found.columns["start"][first:last].astype(np.int64) + shift
        if last < lane.last:
            inside = int(np.searchsorted(start, (start[-1] >> top) << top))
            if inside == 0:  # one bin holds more than is summed at once
                bin_end = ((int(start[-1]) >> top) + 1 << top) - shift
                last = lane.first + int(np.searchsorted(found.columns["start"][lane.first : lane.last], bin_end))
                start = found.columns["start"][first:last].astype(np.int64) + shift
            else:
                last, start = first + inside, start[:inside]
        duration = found.columns["duration"][first:last].astype(np.int64)
        yield spans.single(start, duration, np.arange(first, last))
        first = last


def _rates(
    found: tracks.Tracks,
    engine: str,
    amounts: NDArray[np.int64],
    extent: tuple[int, int],
    place: tuple[Shelf, str],
) -> dict[str, Any] | None:
    """Adds the mean rate in each bin of each level, per second; returns finest and coarsest level, their edges and the highest rate."""
    origin, end = extent
    lanes = [lane for lane in found.lanes if lane.engine == engine]
    count = sum(lane.last - lane.first for lane in lanes)
    finest = max(0, (max(1, end - origin) // min(MOST_BINS, 4 * max(1, count))).bit_length())
    total, largest = np.zeros((max(1, end - origin) >> finest) + 2), 0.0
    for lane in lanes:
        for first in range(lane.first, lane.last, AT_ONCE):
            rows = slice(first, min(first + AT_ONCE, lane.last))
            begin = found.columns["start"][rows].astype(np.int64) + found.origin - origin
            low = int(begin[0]) >> finest
            steps = series.rate(
                begin - (low << finest),
                found.columns["duration"][rows].astype(np.int64),
                amounts[found.columns["alike"][rows]],
            )
            means = series.means(steps, finest, int(steps.time[-1]))
            total[low : low + len(means)] += means[: len(total) - low]
            largest = max(largest, float(steps.value.max(initial=0.0)))
    if not largest:
        return None
    edges, levels = [0], []
    coarsest = max(spans.top_level(end - origin), finest)
    for _ in range(finest, coarsest + 1):
        levels.append(total.astype(np.float32))
        edges.append(edges[-1] + len(total))
        total = np.append(total, np.zeros(len(total) % 2)).reshape(-1, 2).mean(axis=1)
    shelf, name = place
    shelf.add(name, np.concatenate(levels))
    return {"finest": finest, "coarsest": coarsest, "edges": edges, "largest": largest}


def _held(
    found: tracks.Tracks, memory: str, origin: int, top: int, place_of: tuple[Shelf, str]
) -> dict[str, Any] | None:
    """Adds the bytes that a memory holds by category, at every change, and of each level the changes that it keeps."""
    parts, (shelf, column) = found.memory[memory], place_of
    if not parts:
        return None
    start, end, size, code = np.concatenate(parts, axis=1)
    order = {word.value: place for place, word in enumerate((*ROLES, *Held))}
    words = [*found.memory_words.words, ""]
    names = sorted({words[c] for c in np.unique(code).tolist()}, key=lambda name: order.get(name, len(order)))
    place = np.array([names.index(word) if word in names else 0 for word in words])
    steps = series.held(start - origin, end - start, size, place[code], len(names))
    shelf.add(f"{column}_time", steps.time)
    shelf.add(f"{column}_value", steps.value)
    edges, rows = [0], [np.zeros(0, np.int64)]
    for level in range(1, top + 1):
        rows.append(series.peaks(steps, level))
        edges.append(edges[-1] + len(rows[-1]))
    shelf.add(f"{column}_rows", np.concatenate(rows))
    return {"names": names, "most": int(steps.value.sum(axis=1).max(initial=0)), "edges": edges}


def alike_of(detail: Detail) -> Mapping[str, NDArray[Any]]:
    """The alike table's columns."""
    return {name.removeprefix("alike_"): c for name, c in detail.columns.items() if name.startswith("alike_")}
