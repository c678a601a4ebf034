"""What a page holds of one rank: lanes with their levels of detail, bandwidth and memory over time, packed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import series, spans
from neuronprof.terms import ROLES, Engine, Kind
from neuronprof.view import rank as ranks
from neuronprof.view import tracks
from neuronprof.view.lod import Packer

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

_TENSE = 2**16 - 1  # steps between nothing and the largest bandwidth
_MOST_BINS = 2**18  # bins of the finest bandwidth level; below it the page holds every change
_PEAKS = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}
_STACK = tuple(ROLES)  # memory is stacked in this order, from the bottom
_EIGHTH = 3  # bars are placed to an eighth of their bin
BANDWIDTHS = (Engine.HBM, Engine.NEURONLINK, Engine.EFA)


@dataclass(slots=True)
class Scene:
    """One rank, drawn as finished data.

    packed: see `lod`; rows: the rows its lanes stand in, top to bottom; start, end: nanoseconds; largest: the highest bandwidth
    of each engine that has one, bytes a second; held, roles: the most bytes that memory holds, None without memory events, and
    its categories; colours: what the legend says for each colouring, as pairs of a name and a place in the palette.
    """

    rank: int
    packed: NDArray[np.uint8]
    rows: list[tracks.Row]
    start: int
    end: int
    largest: dict[str, float]
    held: int | None
    roles: list[str]
    colours: dict[str, list[tuple[str, int]]]


def build(trace: "TraceFile", rank: int) -> Scene:
    """Reads one rank and packs it."""
    events = ranks.read(trace, rank)
    segments = trace.metadata.get("segments") or ranks.extents(events)
    rows, table = ranks.alike(events, trace.operators)
    lanes = ranks.lanes(events, rows)
    if lanes:
        lanes = ranks.bands(events, segments, table) + lanes
    origin, end = _extent(events, segments)
    packer = Packer()
    top = spans.top_level(end - origin)
    header: dict[str, Any] = {"origin": origin, "span": end - origin, "top": top, "segments": segments}
    header["lanes"] = _pack_lanes(packer, lanes, origin, top)
    peaks = ((trace.metadata.get("machine") or {}).get("rank") or {}).get("peak_flops") or {}
    header["peaks"] = {dtype: peaks[short] for dtype, short in _PEAKS.items() if short in peaks}
    header["strings"] = {**table.strings, "wait_for": events.strings["wait_for"]}
    _pack_alike(packer, table)
    header["series"] = {e.value: _pack_bandwidth(packer, events, e, origin, end - origin) for e in BANDWIDTHS}
    header["memory"] = held = _pack_memory(packer, events, origin, top)
    largest = {name: about["largest"] for name, about in header["series"].items() if about}
    return Scene(
        rank,
        packer.pack(header),
        [lane.at for lane in lanes],
        origin,
        end,
        largest,
        held["most"] if held else None,
        held["names"] if held else [],
        _legend(lanes, table),
    )


def _extent(events: ranks.Events, segments: list[dict[str, Any]]) -> tuple[int, int]:
    """Start and end of everything, nanoseconds."""
    start = events.number["start_ts"]
    end = start + events.number["duration_ns"]
    starts = [int(start.min())] if len(start) else []
    ends = [int(end.max())] if len(end) else []
    starts += [s["start_ts"] for s in segments]
    ends += [s["end_ts"] for s in segments]
    return min(starts, default=0), max(ends, default=0)


def _pack_lanes(packer: Packer, lanes: list[ranks.Lane], origin: int, top: int) -> list[dict[str, Any]]:
    """Packs events and bars of all lanes one after another; returns where each lane's are."""
    about, gaps, merged, bars, events_before, bars_before = [], [], [], [], 0, 0
    for lane in lanes:
        start = lane.start - origin
        end = start + lane.duration
        gaps.append(start - np.concatenate(([0], end[:-1]))[: len(start)])
        merged_at, found = spans.merge(start, lane.duration, top)
        merged.append(merged_at)
        bars.append(found)
        edges = np.searchsorted(found.level, np.arange(top + 2)) + bars_before
        about.append(
            {
                "row": lane.at,
                "from": events_before,
                "to": events_before + len(start),
                "crowded": lane.crowded,
                "colour": tracks.engine_colour(lane.at.engine),
                "levels": edges.tolist(),
            }
        )
        events_before += len(start)
        bars_before += len(found.level)
    packer.add("gap", _join(gaps))
    for name in ("duration", "alike", "wait", "wait_for"):
        packer.add(name, _join([getattr(lane, name) for lane in lanes]))
    packer.add("merged", _join(merged))
    _pack_bars(packer, bars)
    return about


def _pack_bars(packer: Packer, bars: list[spans.Bars]) -> None:
    whole = {
        name: _join([getattr(b, name) for b in bars]) for name in ("level", "start", "end", "busy", "count", "longest")
    }
    shift = np.maximum(whole["level"].astype(np.int64) - _EIGHTH, 0)
    start = whole["start"] >> shift
    length = np.maximum(whole["end"] - whole["start"], 1)
    packer.add("bar_start", start, delta=True)
    packer.add("bar_length", -(-(whole["end"] - (start << shift)) >> shift))
    packer.add("bar_share", np.minimum(np.ceil(255 * whole["busy"] / length), 255))
    packer.add("bar_count", whole["count"])
    packer.add("bar_longest", whole["longest"], delta=True)


def _pack_alike(packer: Packer, table: ranks.Alike) -> None:
    for name, column in table.columns.items():
        if name != "op":
            packer.add(f"alike_{name}", column)
    names = [tracks.opcode_colour(text) for text in table.strings["name"]]
    phases = [tracks.phase_colour(text) for text in table.strings["phase"]]
    grey = tracks.PALETTE.index(tracks.GREY)
    packer.add("colour_name", np.array([*names, grey])[table.columns["name"]])
    packer.add("colour_phase", np.array([*phases, grey])[table.columns["phase"]])


def _pack_bandwidth(packer: Packer, events: ranks.Events, engine: str, origin: int, span: int) -> dict[str, Any] | None:
    """Packs the bandwidth of an engine's transfers as `ENGINE_time`, `ENGINE_value` and a `ENGINE_LEVEL` a level."""
    rows = np.flatnonzero(events.having("engine", engine) & events.having("kind", Kind.TRANSFER, Kind.COLLECTIVE))
    if not len(rows):
        return None
    number = events.number
    steps = series.rate(number["start_ts"][rows] - origin, number["duration_ns"][rows], number["bytes"][rows])
    largest = float(steps.value.max(initial=0.0)) or 1.0
    packer.add(f"{engine}_time", steps.time, delta=True)
    packer.add(f"{engine}_value", np.rint(steps.value / largest * _TENSE))
    most = min(_MOST_BINS, 4 * len(steps.time))
    finest = max(0, (span // most).bit_length())
    levels = list(range(finest, max(spans.top_level(span), finest) + 1))
    for level in levels:
        mean = series.means(steps, level, span)
        packer.add(f"{engine}_{level}", np.ceil(mean / largest * _TENSE))
    return {"largest": largest, "scale": largest / _TENSE, "finest": finest, "coarsest": levels[-1]}


def _pack_memory(packer: Packer, events: ranks.Events, origin: int, top: int) -> dict[str, Any] | None:
    """Packs bytes held by category as `memory_time`, `memory_CATEGORY` and, for each level, the rows that it keeps."""
    rows = np.flatnonzero(events.having("engine", Engine.HBM) & events.having("kind", Kind.MEMORY))
    if not len(rows):
        return None
    present = [events.strings["name"][code] for code in np.unique(events.code["name"][rows]).tolist()]
    order = {role.value: place for place, role in enumerate(_STACK)}
    names = sorted(present, key=lambda name: order.get(name, len(order)))
    category = np.full(len(events.strings["name"]), 0, np.int64)
    for place, name in enumerate(names):
        category[events.strings["name"].index(name)] = place
    number = events.number
    held = series.held(
        number["start_ts"][rows] - origin,
        number["duration_ns"][rows],
        number["bytes"][rows],
        category[events.code["name"][rows]],
        len(names),
    )
    packer.add("memory_time", held.time, delta=True)
    for place in range(len(names)):
        packer.add(f"memory_{place}", held.value[:, place], delta=True)
    for level in range(1, top + 1):
        packer.add(f"memory_level_{level}", series.peaks(held, level), delta=True)
    return {"names": names, "most": int(held.value.sum(axis=1).max(initial=0))}


def _legend(lanes: list[ranks.Lane], table: ranks.Alike) -> dict[str, list[tuple[str, int]]]:
    """What each colouring's colours mean, for what this rank has."""
    used = {table.strings["phase"][code] for code in np.unique(table.columns["phase"]).tolist() if code >= 0}
    drawn = np.unique(_join([lane.alike for lane in lanes if lane.at.engine not in (tracks.STEP, tracks.PHASE)]))
    opcodes = {table.strings["name"][code] for code in np.unique(table.columns["name"][drawn]).tolist() if code >= 0}
    engines = dict.fromkeys(lane.at.engine for lane in lanes if lane.at.engine not in (tracks.STEP, tracks.PHASE))
    return {
        "phase": [(name, tracks.phase_colour(name)) for name in sorted(used, key=tracks.phase_order)],
        "opcode": [(name, tracks.opcode_colour(name)) for name in sorted(opcodes)],
        "engine": [(tracks.engine_label(name), tracks.engine_colour(name)) for name in engines],
    }


def _join(parts: list[NDArray]) -> NDArray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
