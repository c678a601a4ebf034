"""Single events of a rank: by their id, next to each other, by what released them, by what they are called."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.pyramid.build import alike_of
from neuronprof.analyze.pyramid.store import Detail
from neuronprof.terms import COMPUTE_ENGINES

SEARCHED = ("op_name", "name", "layer", "source")
MOST_RELEASED = 20
_AT_ONCE = 1 << 20  # events looked through at once
_NEAR = 1 << 16  # events of a lane after an event that are asked whether it released them

Record = dict[str, Any]


def record(detail: Detail, row: int) -> Record:
    """An event as pages know it: id, lane, alike, start, duration, wait, wait_for, released (the id of what released it, or -1)."""
    columns, base = detail.columns, int(detail.header["base"])
    lane = lane_of(detail, row)
    return {
        "id": int(columns["id"][row]),
        "engine": lane["engine"],
        "queue": lane["queue"],
        "lane": lane["lane"],
        "alike": int(columns["alike"][row]),
        "start": base + int(columns["start"][row]),
        "duration": int(columns["duration"][row]),
        "wait": int(columns["wait"][row]),
        "wait_for": int(columns["wait_for"][row]),
        "released": int(columns["released"][row]) - 1,
    }


def lane_of(detail: Detail, row: int) -> Mapping[str, Any]:
    """The lane that a row stands in."""
    lane: Mapping[str, Any] = next(lane for lane in detail.header["lanes"] if lane["first"] <= row < lane["last"])
    return lane


def by_id(detail: Detail, number: int) -> int | None:
    """The row of the event with this id, counted from the rank's first one; None if the rank has none."""
    ids = detail.columns["id"]
    for lane in detail.header["lanes"]:
        mine = ids[lane["first"] : lane["last"]]
        if not 0 <= number <= np.iinfo(mine.dtype).max:
            continue
        wanted = mine.dtype.type(number)
        at = (
            int(np.searchsorted(mine, wanted))
            if lane["ordered"]
            else int(np.argmax(mine == wanted))
            if len(mine)
            else 0
        )
        if at < len(mine) and mine[at] == wanted:
            return int(lane["first"]) + at
    return None


def released_by(detail: Detail, row: int) -> list[int]:
    """The rows of the events that an event released: they start when it ends, or soon after."""
    columns = detail.columns
    number = columns["released"].dtype.type(int(columns["id"][row]) + 1)
    end = int(columns["start"][row]) + int(columns["duration"][row])
    starts, found = columns["start"], []
    end_at = starts.dtype.type(min(end, np.iinfo(starts.dtype).max))
    for lane in detail.header["lanes"]:
        first = lane["first"] + int(np.searchsorted(starts[lane["first"] : lane["last"]], end_at))
        near = columns["released"][first : min(first + _NEAR, lane["last"])]
        found += (first + np.flatnonzero(near == number)).tolist()
    return sorted(found, key=lambda at: int(starts[at]))


def neighbour(detail: Detail, row: int, step: int) -> int | None:
    """The row of the next (step 1) or the previous (-1) event of the same lane."""
    lane = lane_of(detail, row)
    return row + step if lane["first"] <= row + step < lane["last"] else None


def matches(detail: Detail, text: str) -> NDArray[np.bool_]:
    """Which rows of the alike table have the text in a searched column, whatever the case."""
    table, words = alike_of(detail), detail.header["words"]
    found = np.zeros(len(table["op"]), bool)
    for name in SEARCHED:
        hit = np.array([text.lower() in word.lower() for word in words[name]] + [False])
        found |= hit[table[name]]
    return found


def of_operator(detail: Detail, name: str) -> NDArray[np.bool_]:
    """Which rows of the alike table are of an operator: its name, layer and phase, those it has, with spaces between."""
    columns = ("op_name", "layer", "phase")
    table, words = alike_of(detail), [[*detail.header["words"][column], ""] for column in columns]
    codes = zip(*(table[column].tolist() for column in columns), strict=True)
    called = (" ".join(filter(None, (known[code] for known, code in zip(words, row, strict=True)))) for row in codes)
    return np.array([one == name for one in called], bool)


def computing(detail: Detail, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those of the wanted rows of the alike table that compute, if any do; else all of them."""
    computes = np.array([engine in COMPUTE_ENGINES for engine in detail.header["words"]["engine"]] + [False])
    among = wanted & computes[alike_of(detail)["engine"]]
    return among if among.any() else wanted


def find(detail: Detail, wanted: NDArray[np.bool_], after: int, step: int) -> int | None:
    """The row of the first event after a time (nanoseconds; step -1: the last one before) whose alike row is wanted; bandwidth is not."""
    best: tuple[int, int] | None = None
    for lane in detail.header["lanes"]:
        if (
            lane["engine"] != "hbm"
            and (at := _first(detail, lane, wanted, after - int(detail.header["origin"]), step)) is not None
        ):
            start = int(detail.columns["start"][at])
            best = min(best or (step * start, at), (step * start, at))
    return best[1] if best else None


def _first(detail: Detail, lane: Mapping[str, Any], wanted: NDArray[np.bool_], after: int, step: int) -> int | None:
    first, last = int(lane["first"]), int(lane["last"])
    starts, shift = detail.columns["start"][first:last], int(detail.header["base"]) - int(detail.header["origin"])
    at = first + _place(starts, after - shift, "right" if step > 0 else "left")
    while first < at if step < 0 else at < last:
        low, high = (at, min(at + _AT_ONCE, last)) if step > 0 else (max(first, at - _AT_ONCE), at)
        hits = np.flatnonzero(wanted[detail.columns["alike"][low:high]])
        if len(hits):
            return low + int(hits[0] if step > 0 else hits[-1])
        at = high if step > 0 else low
    return None


def _place(starts: NDArray[Any], time: int, side: Literal["left", "right"]) -> int:
    """Where a time stands among starts, whose type may not hold it."""
    limit = np.iinfo(starts.dtype)
    if not limit.min <= time <= limit.max:
        return 0 if time < limit.min else len(starts)
    return int(np.searchsorted(starts, starts.dtype.type(time), side=side))
