"""The timeline as a picture for a document: the same rows, colours and quantities as the page, drawn without a browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof import units
from neuronprof.analyze.pyramid import window
from neuronprof.analyze.pyramid.build import alike_of, build
from neuronprof.analyze.pyramid.store import Detail
from neuronprof.errors import NeuronprofError
from neuronprof.terms import COMPUTE_ENGINES, Engine
from neuronprof.view import canvas, heading, look, page, scene, timeline, tracks
from neuronprof.view.canvas import Canvas
from neuronprof.view.lod import Packer

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

ENDINGS = tuple(canvas.KINDS)
WIDTH = 1600
_LEFT, _RIGHT, _MARGIN = 178, 16, 16
_ROW, _PAD = 22, 2.5
_LEAST = 0.14  # height of a bar whose busy share is nearly nothing
_HEAD, _AXIS, _RATE, _HELD, _GAP = 74, 22, 62, 86, 10
_TICKS = (1, 2, 5)
_MOST_TICKS = 9
_SEAM = 5  # events wider than this end a little early, so that neighbours can be told apart
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))


@dataclass(frozen=True)
class _Panel:
    """One rank as it is drawn. start, end: the stretch of time, nanoseconds; about: what its pictures share, as pages are told it."""

    trace: "TraceFile"
    detail: Detail
    about: Mapping[str, Any]
    start: int
    end: int

    @property
    def height(self) -> int:
        rates = sum(_GAP + _RATE for _ in self.about["rates"])
        held = sum(_GAP + _HELD for _ in self.about["held"])
        return _HEAD + _AXIS + _ROW * len(self.about["rows"]) + rates + held

    def x(self, time: Any) -> Any:
        """Where a time, or an array of them, stands."""
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (time - self.start) / (self.end - self.start)

    def level(self, fineness: int) -> int:
        """The level of detail at which nothing is thinner than a pixel."""
        pixel = (self.end - self.start) / (WIDTH - _LEFT - _RIGHT) / fineness
        return min(int(self.detail.header["top"]), max(0, math.ceil(math.log2(1.5 * pixel))))


def write(
    traces: Sequence["TraceFile"],
    output: str | Path,
    rank: int | None = None,
    extent: tuple[float | None, float | None] = (None, None),
) -> Path:
    """Writes the timeline of a rank of each trace, one below the other; replaces a picture only when the new one is complete.

    Args:
        traces: opened traces.
        output: *.svg or *.png.
        rank: the rank to show; None for the first one of each trace.
        extent: from when to when, nanoseconds; None for the start and the end of the longest.

    Raises:
        NeuronprofError: the output is no picture, or cannot be written; the trace has no such rank, or nothing at that time.
    """
    output = page.check_output(output, ENDINGS)
    ranks = [timeline.choose_ranks(trace, rank)[0] for trace in traces]
    details = [build(trace, one) for trace, one in zip(traces, ranks, strict=True)]
    start, end = _extent(details, extent)
    panels = []
    for trace, detail in zip(traces, details, strict=True):
        about = scene.shared(detail, trace.metadata, Packer())
        about["rates"].pop("mfu", None)  # the tensor engine's FLOP/s against their peak stand there
        panels.append(_Panel(trace, detail, about, start, end))
    height = sum(panel.height for panel in panels) + _MARGIN * len(panels)
    drawing = canvas.KINDS[output.suffix.lower()](WIDTH, height)
    top = 0
    for panel in panels:
        _draw(drawing, panel, top)
        top += panel.height + _MARGIN
    return page.save(drawing.content(), output)


def _extent(details: Sequence[Detail], asked: tuple[float | None, float | None]) -> tuple[int, int]:
    first, last = (min(d.header["origin"] for d in details), max(d.header["end"] for d in details))
    start = first if asked[0] is None else max(first, math.floor(asked[0]))
    end = last if asked[1] is None else min(last, math.ceil(asked[1]))
    if asked != (None, None) and end <= start:
        raise NeuronprofError(
            f"There is nothing between --from and --to: the trace lasts from {units.time(first)} to {units.time(last)}."
        )
    return start, max(end, start + 1)


def _draw(drawing: Canvas, panel: _Panel, top: int) -> None:
    _title(drawing, panel, top)
    top += _HEAD
    bottom = top + panel.height - _HEAD
    _axis(drawing, panel, top + _AXIS, bottom)
    top += _AXIS
    _rows(drawing, panel, top)
    top += _ROW * len(panel.about["rows"]) + _GAP
    for name, about in panel.about["rates"].items():
        _rate(drawing, panel, name, about, top)
        top += _RATE + _GAP
    for name, about in panel.about["held"].items():
        _held(drawing, panel, name, about, top)
        top += _HELD + _GAP


def _title(drawing: Canvas, panel: _Panel, top: int) -> None:
    """What is shown, and what its colours mean."""
    told = heading.title(panel.trace)
    room = WIDTH - 2 * _MARGIN
    drawing.text((_MARGIN, top + 24), canvas.fitted(told["name"], 16, room), 16, look.INK)
    drawing.text((_MARGIN, top + 42), f"Rank {panel.about['rank']} · {told['where']}", 12, look.FAINT)
    x = float(_MARGIN)
    for name, colour in panel.about["legend"]["phase"]:
        name = canvas.fitted(name, 12, 200)
        drawing.boxes([(x, top + 53, x + 10, top + 63)], tracks.PALETTE[colour])
        drawing.text((x + 15, top + 62), name, 12, look.INK)
        x += 34 + canvas.width(name, 12)


def _axis(drawing: Canvas, panel: _Panel, top: int, bottom: int) -> None:
    step = _step((panel.end - panel.start) / _MOST_TICKS)
    first = math.ceil(panel.start / step)
    for tick in range(first, math.floor(panel.end / step) + 1):
        x = panel.x(tick * step)
        drawing.line([(x, top), (x, bottom)], look.LINE)
        label = instant(tick * step, step, max(abs(panel.start), abs(panel.end)))
        half = canvas.width(label, 11) / 2
        drawing.text((min(max(x, half), WIDTH - half - 4), top - 7), label, 11, look.FAINT, "middle")


def _step(least: float) -> float:
    """The next larger of 1, 2, 5, 10, ... nanoseconds."""
    power = 10 ** math.floor(math.log10(max(least, 1)))
    return next((power * n for n in _TICKS if power * n >= least), power * 10)


def instant(ns: float, step: float, largest: float) -> str:
    """A time with as many decimals as the distance between ticks needs, in the unit of the largest."""
    scale, unit = next(((s, u) for s, u in _UNITS if largest >= s), _UNITS[-1])
    return f"{ns / scale:.{max(0, math.ceil(math.log10(scale / step) - 1e-9))}f} {unit}"


def _rows(drawing: Canvas, panel: _Panel, top: int) -> None:
    rows = {at["row"]: number for number, at in enumerate(panel.about["rows"])}
    for number, at in enumerate(panel.about["rows"]):
        y = top + _ROW * number
        drawing.line([(_LEFT, y), (WIDTH - _RIGHT, y)], look.LINE)
        label = canvas.fitted(at["label"], 12, _LEFT - _MARGIN - 10)
        drawing.text((_LEFT - 10, y + 15), label, 12, look.INK, "end")
    table = alike_of(panel.detail)
    colours = scene.phase_colours(panel.detail.header["words"], table)
    for name, bands in panel.detail.header["bands"].items():
        place = rows.get(tracks.row(name))
        if place is not None:
            _band(drawing, panel, top + _ROW * place, name, (bands, colours))
    for lane in panel.detail.header["lanes"]:
        place = rows.get(tracks.row(lane["engine"], lane["queue"], lane["lane"]))
        if lane["engine"] != Engine.HBM and place is not None:
            _lane(drawing, panel, top + _ROW * place, lane, colours)


def _band(
    drawing: Canvas, panel: _Panel, y: float, name: str, found: tuple[Sequence[Sequence[int]], NDArray[Any]]
) -> None:
    """Steps, phases or regions."""
    bands, colours = found
    for number, (first, last, alike) in enumerate(bands):
        if last <= panel.start or first >= panel.end:
            continue
        pale = (tracks.PALE, tracks.PALER)[number % 2]
        colour = tracks.PALETTE.index(pale) if name == tracks.STEP else int(colours[alike])
        box = _box(panel, max(first, panel.start), min(last, panel.end), y, 1.0)
        drawing.boxes([box], tracks.PALETTE[colour])
        _word(drawing, panel, box, alike, colour)


def _lane(drawing: Canvas, panel: _Panel, y: float, lane: Mapping[str, Any], colours: NDArray[Any]) -> None:
    """The events of a row; what is thinner than a pixel as bars as high as they are busy."""
    detail, origin = panel.detail, panel.detail.header["origin"]
    found, alike = window.items(detail, lane, panel.level(drawing.fineness), panel.start - origin, panel.end - origin)
    start, end = np.maximum(found.start + origin, panel.start), np.minimum(found.end + origin, panel.end)
    share = np.where(found.count > 1, found.busy / np.maximum(found.end - found.start, 1), 1.0)
    height = np.where(found.count > 1, _LEAST + (1 - _LEAST) * np.minimum(share, 1.0), 1.0)
    seen = (end > start) | (found.end == found.start)
    for colour in np.unique(colours[alike[seen]]).tolist():
        mine = np.flatnonzero(seen & (colours[alike] == colour))
        places = zip(start[mine].tolist(), end[mine].tolist(), height[mine].tolist(), strict=True)
        boxes = [_box(panel, first, last, y, high, 1 / drawing.fineness) for first, last, high in places]
        drawing.boxes(boxes, tracks.PALETTE[colour])
        for box, row in zip(boxes, mine.tolist(), strict=True):
            if found.count[row] == 1:
                _word(drawing, panel, box, int(alike[row]), colour)


def _box(panel: _Panel, start: int, end: int, y: float, height: float, least: float = 1.0) -> canvas.Box:
    left, right = panel.x(start), panel.x(end)
    right = right - 1 if right - left > _SEAM else max(right, left + least)
    floor = y + _ROW - _PAD
    return left, floor - (_ROW - 2 * _PAD) * height, right, floor


def _word(drawing: Canvas, panel: _Panel, box: canvas.Box, alike: int, colour: int) -> None:
    """What an event is called, inside it, if there is room."""
    room = box[2] - box[0] - 8
    if room < 16:
        return
    words, table = panel.detail.header["words"], alike_of(panel.detail)
    known = {
        name: words[name][table[name][alike]] if table[name][alike] >= 0 else ""
        for name in ("engine", "op_name", "name")
    }
    # As on the page: what computes is known by its operator, what moves data by its instruction.
    operator, instruction = known["op_name"].removeprefix("aten."), known["name"]
    first, second = (operator, instruction) if known["engine"] in COMPUTE_ENGINES else (instruction, operator)
    text = canvas.fitted(first or second, 11, room)
    if text:
        drawing.text((box[0] + 4, box[3] - 4.5), text, 11, tracks.TEXT_PALETTE[colour])


def _rate(drawing: Canvas, panel: _Panel, name: str, about: Mapping[str, Any], top: int) -> None:
    """A quantity over time, and the machine's limit where it comes near."""
    origin = panel.detail.header["origin"]
    low, high = panel.start - origin, panel.end - origin
    found = window.rate(panel.detail, name, panel.level(drawing.fineness), low, high)
    largest, limit = float(about["largest"]), float(about["limit"] or 0)
    near = limit and largest > limit / 4
    most = max(limit if near else 0, largest) or 1.0
    unit = "FLOP/s" if name == "flops" else "B/s"
    drawing.text((_LEFT - 10, top + _RATE / 2), timeline.QUANTITIES[name], 12, look.INK, "end")
    told = f"peak {units.count(largest, unit)}" + (f" of {units.count(limit, unit)}" if limit else "")
    drawing.text((_LEFT - 10, top + _RATE / 2 + 15), told, 10, look.FAINT, "end")
    drawing.line([(_LEFT, top + _RATE), (WIDTH - _RIGHT, top + _RATE)], look.LINE)
    if found is not None and len(found.value):
        times = found.first * found.bin_ns + np.arange(len(found.value)) * found.bin_ns if found.bin_ns else found.time
        line = _steps(panel, times + origin, found.value / most, top + _RATE, _RATE - 6)
        drawing.polygon([(line[0][0], top + _RATE), *line, (line[-1][0], top + _RATE)], canvas.pale(tracks.BLUE, 0.22))
        drawing.line(line, tracks.BLUE)
    if near:
        y = top + _RATE - (_RATE - 6) * limit / most
        drawing.line([(_LEFT, y), (WIDTH - _RIGHT, y)], look.LIMIT)


def _held(drawing: Canvas, panel: _Panel, name: str, about: Mapping[str, Any], top: int) -> None:
    """Bytes held in a memory, stacked by category."""
    origin, columns = panel.detail.header["origin"], panel.detail.columns
    low, high = panel.start - origin, panel.end - origin
    rows = window.held(panel.detail, name, panel.level(drawing.fineness), low, high)
    capacity = float(about["capacity"] or 0)
    near = 0 < capacity < 4 * about["most"]
    most = max(float(about["most"]), capacity if near else 0.0) or 1.0
    drawing.text((_LEFT - 10, top + _HELD / 2), timeline.HELD[name], 12, look.INK, "end")
    told = f"peak {units.size(about['most'])}" + (f" of {units.size(capacity)}" if capacity else "")
    drawing.text((_LEFT - 10, top + _HELD / 2 + 15), told, 10, look.FAINT, "end")
    times, values = (columns[f"held_{name}_{part}"][rows] for part in ("time", "value"))
    times, values = times.astype(np.int64) + origin, values.astype(float)
    tops = np.cumsum(values, axis=1) / most
    for slot in reversed(range(tops.shape[1])):  # each covers the lower part of the one above it
        line = _steps(panel, times, tops[:, slot], top + _HELD, _HELD - 22)
        colour = canvas.pale(about["colours"][slot], 0.75)
        if line:
            drawing.polygon([(line[0][0], top + _HELD), *line, (line[-1][0], top + _HELD)], colour)
    if near:
        y = top + _HELD - (_HELD - 22) * capacity / most
        drawing.line([(_LEFT, y), (WIDTH - _RIGHT, y)], look.LIMIT)
    x = float(WIDTH - _RIGHT)
    for word, colour in reversed(list(zip(about["names"], about["colours"], strict=True))):
        word = canvas.fitted(look.plain(word), 11, 150)
        drawing.text((x, top + 11), word, 11, look.INK, "end")
        x -= canvas.width(word, 11) + 15
        drawing.boxes([(x, top + 2, x + 10, top + 12)], canvas.pale(colour, 0.75))
        x -= 14


def _steps(
    panel: _Panel, times: NDArray[Any], values: NDArray[np.float64], floor: float, height: float
) -> list[canvas.Point]:
    """A line of horizontal steps: each value holds until the next time, the last one to the end."""
    ends = np.append(times[1:], panel.end)
    x0, x1 = (panel.x(np.clip(at, panel.start, panel.end)) for at in (times, ends))
    y = floor - height * values
    return [(x, at) for a, b, at in zip(x0.tolist(), x1.tolist(), y.tolist(), strict=True) for x in (a, b)]
