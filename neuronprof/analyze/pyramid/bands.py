"""Bands over the engines: steps from the run's segments; phases, the user's regions and throttling from what the compute engines ran.

What slowed the whole rank, the recording tells.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import spans
from neuronprof.analyze.pyramid.alike import THROTTLED
from neuronprof.analyze.pyramid.tracks import Tracks
from neuronprof.terms import COMPUTE_ENGINES, Engine

STEP, PHASE, REGION, SLOWED = "step", "phase", "region", "slowed"
_AT_ONCE = 1_000_000  # events a compute engine

Band = list[tuple[int, int, int]]  # start, end, row of the alike table


def segments(steps: Mapping[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """Segments of a trace whose metadata has none: each step from its first to its last event."""
    return [
        {"kind": "evaluation" if n < 0 else "step", "step": n, "start_ts": first, "end_ts": last}
        for n, (first, last) in sorted(steps.items(), key=lambda pair: pair[1])
    ]


def slowed(metadata: Mapping[str, Any], rank: int) -> str:
    """What made a rank slower all along, as it was recorded to be: throttling, a slow chip, a degraded link; empty for others."""
    chip = rank // int((metadata.get("machine") or {}).get("ranks_per_chip") or 1)
    times = (("throttled", rank, "matmuls"), ("slow_chips", chip, "chip"))
    known = [(what, (metadata.get(key) or {}).get(str(place), 1)) for key, place, what in times]
    parts = [f"{what} {factor:g} times slower" for what, factor in known if factor != 1]
    left = (metadata.get("degraded_links") or {}).get(str(chip), 1)
    return ", ".join([*parts, *([f"links at {100 * left:g} %"] if left != 1 else [])])


def bands(found: Tracks, run: list[dict[str, Any]], slow: str = "") -> dict[str, Band]:
    """Each band's stretches, sorted by start; a band without any is left out. slow: what made the rank slower all along."""
    words = {name: found.alike.words[name].words for name in (PHASE, REGION)}
    code = {name: found.alike.column(name) for name in words}
    named = [(s, found.alike.band(STEP, f"step {s['step']}" if s["kind"] == "step" else "evaluation")) for s in run]
    out = {STEP: [(s["start_ts"], s["end_ts"], row) for s, row in named]}
    edges = np.array(sorted(s["start_ts"] for s in run), np.int64)
    for name in (PHASE, REGION):
        many = len(words[name]) + 1
        rows = [found.alike.band(name, word) for word in words[name]]
        first, last, label = _stretches(found, code[name], edges, many)
        out[name] = [
            (a, b, rows[c % many])
            for a, b, c in zip(first.tolist(), last.tolist(), label.tolist(), strict=True)
            if words[name][c % many]
        ]
    out[THROTTLED] = _throttled(found, edges)
    out[SLOWED] = [(s["start_ts"], s["end_ts"], found.alike.band(SLOWED, slow)) for s in run if slow]
    return {name: band for name, band in out.items() if band}


def _throttled(found: Tracks, edges: NDArray[np.int64]) -> Band:
    """The stretches in which the tensor engine ran below its speed, where single instructions were simulated."""
    cold = found.alike.column(THROTTLED)
    if not (cold > 0).any():
        return []
    row = found.alike.band(THROTTLED, THROTTLED)
    first, last, label = _stretches(found, cold, edges, 2, (Engine.TENSOR,))
    return [(a, b, row) for a, b, c in zip(first.tolist(), last.tolist(), label.tolist(), strict=True) if c % 2]


def _stretches(
    found: Tracks,
    code: NDArray[np.int64],
    edges: NDArray[np.int64],
    many: int,
    engines: Sequence[Engine] = COMPUTE_ENGINES,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Runs of one label in one segment among the events of these engines: start, end, segment * many + label."""
    parts = []
    for start, end, shared in _in_time(found, engines):
        label = code[shared]
        known = label >= 0
        start, end, label = start[known], end[known], label[known]
        mixed = np.searchsorted(edges, start, side="right") * many + label
        parts.append(spans.runs(start, end, mixed))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 3
    return spans.runs(columns[0], columns[1], columns[2])


def _in_time(
    found: Tracks, engines: Sequence[Engine]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Start, end and alike row of these engines' events, sorted by start, a stretch of time after another."""
    lanes = [lane for lane in found.lanes if lane.engine in engines]
    at = {id(lane): lane.first for lane in lanes}
    start, duration = found.columns["start"], found.columns["duration"]
    while open_lanes := [lane for lane in lanes if at[id(lane)] < lane.last]:
        until = min(int(start[min(at[id(lane)] + _AT_ONCE, lane.last) - 1]) for lane in open_lanes)
        rows = []
        for lane in open_lanes:
            first = at[id(lane)]
            at[id(lane)] = first + int(np.searchsorted(start[first : lane.last], until, side="right"))
            rows.append(np.arange(first, at[id(lane)]))
        chosen = np.concatenate(rows)
        begin = start[chosen].astype(np.int64)
        order = np.argsort(begin, kind="stable")
        chosen, begin = chosen[order], begin[order] + found.origin
        yield begin, begin + duration[chosen].astype(np.int64), found.columns["alike"][chosen].astype(np.int64)
