"""What a page is given of one rank, packed: what all its pictures share, and either everything or the window that a picture shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import series, spans
from neuronprof.analyze.pyramid import window
from neuronprof.analyze.pyramid.build import alike_of
from neuronprof.analyze.pyramid.store import Detail
from neuronprof.terms import Engine
from neuronprof.view import tracks
from neuronprof.view.lod import Packer, compressed
from neuronprof.view.reasons import Reasons

_TENSE = 2**16 - 1  # steps between nothing and the largest rate
_MOST_BINS = 2**18  # bins of a rate's finest level in a page; below it the page holds every change
_PEAKS = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}
_EIGHTH = 3  # bars are placed to an eighth of their bin
_LIMITS = {
    "hbm": "hbm_bandwidth",
    "neuronlink": "neuronlink_bandwidth",
    "efa": "efa_bandwidth",
    "memory": "hbm_capacity",
    "sbuf": "sbuf_capacity",
    "psum": "psum_capacity",
}

Lanes = Sequence[Mapping[str, Any]]


def shared(detail: Detail, metadata: Mapping[str, Any], packer: Packer) -> dict[str, Any]:
    """Adds what all pictures of the rank share: the alike table and its colours. Returns their header."""
    machine = (metadata.get("machine") or {}).get("rank") or {}
    peaks = machine.get("peak_flops") or {}
    table = alike_of(detail)
    for name, column in table.items():
        packer.add(f"alike_{name}", column)
    words = detail.header["words"]
    grey = tracks.PALETTE.index(tracks.GREY)
    names = [tracks.opcode_colour(text) for text in words["name"]]
    packer.add("colour_name", np.array([*names, grey])[table["name"]])
    packer.add("colour_phase", phase_colours(words, table))
    rows = [tracks.row(lane["engine"], lane["queue"], lane["lane"]) for lane in _drawn(detail)]
    rows = sorted({tracks.row(name) for name in detail.header["bands"]} | set(rows)) if rows else []
    limits = {name: machine.get(limit) for name, limit in _LIMITS.items()}
    limits |= {"flops": peaks.get("bf16"), "mfu": peaks.get("bf16")}
    return {
        "rank": detail.header["rank"],
        "origin": detail.header["origin"],
        "span": detail.header["end"] - detail.header["origin"],
        "top": detail.header["top"],
        "first_id": detail.header["first_id"],
        "foreign": detail.header["foreign"],
        "segments": detail.header["segments"],
        "peaks": {dtype: peaks[short] for dtype, short in _PEAKS.items() if short in peaks},
        "strings": words,
        "rows": [
            {"row": at, "label": label, "colour": tracks.engine_colour(at.engine)}
            for at, label in zip(rows, tracks.labels(rows), strict=True)
        ],
        "legend": _legend(detail, table),
        "rates": {
            name: {"largest": about["largest"], "limit": limits.get(name)}
            for name, about in detail.header["rates"].items()
        },
        "held": {
            name: _held_header(about, machine.get(_LIMITS[name])) for name, about in detail.header["held"].items()
        },
    }


def phase_colours(words: Mapping[str, Sequence[str]], table: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Where in the palette the colour of each row of the alike table stands when phases are coloured; what slows has its own."""
    slowing = np.array([word in (tracks.THROTTLED, tracks.SLOWED) for word in words["engine"]] + [False])
    phases = np.array([*map(tracks.phase_colour, words["phase"]), tracks.PALETTE.index(tracks.GREY)])
    return np.where(slowing[table["engine"]], tracks.PALETTE.index(tracks.WINE), phases[table["phase"]])


def _held_header(held: Mapping[str, Any], capacity: float | None) -> dict[str, Any]:
    colours = [tracks.HELD_COLOURS.get(name, tracks.GREY) for name in held["names"]]
    return {"names": held["names"], "most": held["most"], "capacity": capacity, "colours": colours}


def whole(detail: Detail, metadata: Mapping[str, Any], reasons: Reasons) -> NDArray[np.uint8]:
    """Everything about a rank, with all levels and the reasons of its durations: for pages without a server."""
    packer = Packer()
    header = shared(detail, metadata, packer)
    header["lanes"] = _whole_lanes(detail, reasons.number, packer)
    header["reasons"] = reasons.texts
    for name, about in header["rates"].items():
        about |= _whole_rate(detail, name, packer)
    for name in header["held"]:
        _add_held(detail, name, slice(None), packer)
        for level in range(1, detail.header["top"] + 1):
            packer.add(f"held_{name}_{level}", window.held(detail, name, level, 0, header["span"] + 1), delta=True)
    return compressed(packer.pack(header))


def part(detail: Detail, level: int, start: int, end: int) -> bytes:
    """What a picture shows between two times, nanoseconds, at a level: lone events, bars with their longest event, quantities."""
    origin, packer = detail.header["origin"], Packer()
    low, high = start - origin, end - origin
    header: dict[str, Any] = {"level": level, "from": start, "to": end}
    header["lanes"] = _part_lanes(detail, level, (low, high), packer)
    rates = {name: window.rate(detail, name, level, low, high) for name in detail.header["rates"]}
    header["rates"] = {name: _part_rate(name, rate, packer) for name, rate in rates.items() if rate}
    for name in detail.header["held"]:
        _add_held(detail, name, window.held(detail, name, level, low, high), packer)
    return packer.pack(header)


def _drawn(detail: Detail) -> Lanes:
    """The lanes that have rows: HBM's transfers are drawn as bandwidth."""
    return [lane for lane in detail.header["lanes"] if lane["engine"] != Engine.HBM]


def _bands(detail: Detail) -> list[tuple[tracks.Row, NDArray[np.int64]]]:
    if not _drawn(detail):
        return []
    bands = detail.header["bands"]
    return [(tracks.row(name), np.array(bands[name], np.int64).reshape(-1, 3).T) for name in bands]


_NO_EVENT = {"wait": 0, "wait_for": -1, "id": -1, "released": 0}


class _Lanes:
    """Collects lanes of events and bars, and packs them one after another."""

    def __init__(self, origin: int) -> None:
        self.about: list[dict[str, Any]] = []
        self._origin = origin
        self._events: dict[str, list[NDArray[Any]]] = {}
        self._bars: list[tuple[NDArray[Any], ...]] = []
        self._before = self._bars_before = 0

    def add(
        self, at: tracks.Row, events: Mapping[str, NDArray[Any]], bars: spans.Bars | None = None, levels: int = 0
    ) -> None:
        """A lane: columns of its events, start counted from the origin; bars whose `longest` counts these events."""
        count = len(events["start"])
        for name, column in events.items():
            self._events.setdefault(name, []).append(np.asarray(column))
        level = bars.level if bars else np.zeros(0, np.uint8)
        edges = np.searchsorted(level, np.arange(levels + 2)) + self._bars_before
        if bars:
            self._bars.append((bars.level, bars.start, bars.end, bars.busy, bars.count, bars.longest))
        self.about.append({"row": at, "from": self._before, "to": self._before + count, "levels": edges.tolist()})
        self._before += count
        self._bars_before += len(level)

    def pack(self, packer: Packer) -> None:
        """Adds the columns."""
        for name in ("gap", "duration", "alike", "wait", "wait_for", "merged", "id", "released", "reason"):
            parts = self._events.get(name, [])
            packer.add(name, np.concatenate(parts) if parts else np.zeros(0, np.int64), delta=name == "id")
        columns = [np.concatenate(c) for c in zip(*self._bars, strict=True)] or [np.zeros(0, np.int64)] * 6
        level, start, end, busy, count, longest = columns
        shift = np.maximum(level.astype(np.int64) - _EIGHTH, 0)
        packer.add("bar_start", start >> shift, delta=True)
        packer.add("bar_length", -(-(end - (start >> shift << shift)) >> shift))
        packer.add("bar_share", np.minimum(np.ceil(255 * busy / np.maximum(end - start, 1)), 255))
        packer.add("bar_count", count)
        packer.add("bar_longest", longest, delta=True)


def _columns(
    start: NDArray[Any], duration: NDArray[Any], merged: Any, more: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """A lane's columns as they are packed: what follows soon after the event before it takes few bytes."""
    end = start + duration
    columns = {"start": start, "gap": start - np.concatenate(([0], end[:-1]))[: len(start)], "duration": duration}
    columns |= {"merged": np.broadcast_to(np.asarray(merged, np.int64), start.shape)}
    return columns | {name: np.broadcast_to(np.asarray(values), start.shape) for name, values in more.items()}


def _of_events(detail: Detail, rows: Any) -> dict[str, NDArray[Any]]:
    columns = {
        name: np.asarray(detail.columns[name][rows]).astype(np.int64)
        for name in ("wait", "wait_for", "alike", "id", "released")
    }
    # Most are released by an event soon before them: the distance is a small number. 0: nothing, or an event of another rank.
    columns["released"] = np.where(columns["released"] > 0, columns["id"] + 1 - columns["released"], 0)
    return columns


def _whole_lanes(detail: Detail, reason: NDArray[np.int64], packer: Packer) -> list[dict[str, Any]]:
    top, lanes = detail.header["top"], _Lanes(detail.header["origin"])
    origin = detail.header["origin"]
    for at, (first, last, row) in _bands(detail):
        more = {**_NO_EVENT, "alike": row, "reason": 0}
        lanes.add(at, _columns(first - origin, last - first, spans.NEVER, more), None, top)
    for lane in _drawn(detail):
        rows = slice(lane["first"], lane["last"])
        start = window.begin_of(detail, rows)
        duration = detail.columns["duration"][rows].astype(np.int64)
        merged, bars = spans.merge(start, duration, top)
        at = tracks.row(lane["engine"], lane["queue"], lane["lane"])
        more = _of_events(detail, rows)
        lanes.add(at, _columns(start, duration, merged, {**more, "reason": reason[more["id"]]}), bars, top)
        lanes.about[-1]["crowded"] = lane["crowded"]
    lanes.pack(packer)
    return lanes.about


def _part_lanes(detail: Detail, level: int, extent: tuple[int, int], packer: Packer) -> list[dict[str, Any]]:
    low, high = extent
    origin, lanes = detail.header["origin"], _Lanes(detail.header["origin"])
    for at, (first, last, row) in _bands(detail):
        seen = slice(int(np.searchsorted(last, low + origin)), int(np.searchsorted(first, high + origin)))
        columns = _columns(first[seen] - origin, (last - first)[seen], spans.NEVER, {**_NO_EVENT, "alike": row[seen]})
        lanes.add(at, columns)
    for lane in _drawn(detail):
        found, alike = window.items(detail, lane, level, low, high)
        # A bar tells its longest event, which comes along as if it began with the bar, merged from the start.
        lone = found.count == 1
        more = {name: np.full(len(lone), none) for name, none in _NO_EVENT.items()} | {"alike": alike}
        for name, column in _of_events(detail, found.longest[lone]).items():
            more[name][lone] = column
        columns = _columns(found.start, found.most, np.where(lone, spans.NEVER, 0), more)
        bar = np.flatnonzero(~lone)
        edges = (found.start[bar], found.end[bar])
        bars = spans.Bars(np.full(len(bar), level, np.uint8), *edges, found.busy[bar], found.count[bar], bar)
        lanes.add(tracks.row(lane["engine"], lane["queue"], lane["lane"]), columns, bars)
        lanes.about[-1] |= {
            "crowded": lane["crowded"],
            "levels": [lanes.about[-1]["levels"][0], lanes.about[-1]["levels"][0] + len(bar)],
        }
    lanes.pack(packer)
    return lanes.about


def _whole_rate(detail: Detail, name: str, packer: Packer) -> dict[str, Any]:
    """Packs a quantity as `NAME_time`, `NAME_value` and a `NAME_LEVEL` a level."""
    span = detail.header["end"] - detail.header["origin"]
    steps = window.changes(detail, name, 0, span + 1)
    scale = (float(np.max(steps.value, initial=0.0)) or 1.0) / _TENSE
    packer.add(f"{name}_time", steps.time, delta=True)
    packer.add(f"{name}_value", np.rint(steps.value / scale))
    finest = max(0, (span // min(_MOST_BINS, 4 * len(steps.time))).bit_length())
    levels = range(finest, max(spans.top_level(span), finest) + 1)
    for level in levels:
        packer.add(f"{name}_{level}", np.ceil(series.means(steps, level, span) / scale))
    return {"scale": scale, "finest": finest, "coarsest": levels[-1]}


def _part_rate(name: str, rate: window.Rate, packer: Packer) -> dict[str, Any]:
    scale = (float(np.max(rate.value, initial=0.0)) or 1.0) / _TENSE
    packer.add(f"{name}_value", np.ceil(rate.value / scale) if rate.bin_ns else np.rint(rate.value / scale))
    packer.add(f"{name}_time", rate.time, delta=True)
    return {"scale": scale, "bin": rate.bin_ns, "first": rate.first}


def _add_held(detail: Detail, name: str, rows: Any, packer: Packer) -> None:
    packer.add(f"held_{name}_time", detail.columns[f"held_{name}_time"][rows], delta=True)
    values = detail.columns[f"held_{name}_value"][rows]
    for place in range(values.shape[1]):
        packer.add(f"held_{name}_category_{place}", values[:, place], delta=True)


def _legend(detail: Detail, table: Mapping[str, NDArray[Any]]) -> dict[str, list[tuple[str, int]]]:
    """What each colouring's colours mean, for what this rank has."""
    words = detail.header["words"]
    engines = np.array([engine != Engine.HBM for engine in words["engine"]] + [False])
    drawn = (detail.columns["alike_count"] > 0) & engines[table["engine"]]
    phases = {words["phase"][code] for code in np.unique(table["phase"][drawn]).tolist() if code >= 0}
    opcodes = {words["name"][code] for code in np.unique(table["name"][drawn]).tolist() if code >= 0}
    rows = sorted({tracks.row(lane["engine"]) for lane in _drawn(detail)})
    grey = tracks.PALETTE.index(tracks.GREY)
    known = [name for name in sorted(opcodes) if tracks.opcode_colour(name) != grey]
    return {
        "phase": [(name, tracks.phase_colour(name)) for name in sorted(phases, key=tracks.phase_order)],
        "opcode": [
            *((name, tracks.opcode_colour(name)) for name in known),
            *([("other", grey)] if len(known) < len(opcodes) else []),
        ],
        "engine": [(tracks.engine_label(at.engine), tracks.engine_colour(at.engine)) for at in rows],
    }
