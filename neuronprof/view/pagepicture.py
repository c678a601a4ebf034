"""Pictures of the pages for a document: the figures of the pages and of notebooks, drawn without a browser."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError
from neuronprof.view import canvas, heading, look, page, picture, still

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure
    from numpy.typing import NDArray

    from neuronprof.trace.reader import TraceFile

WIDTH = 1200
_MARGIN, _HEAD = 16, 54


@dataclass(frozen=True)
class _Shown:
    """A page's figure, how ticks of its axes, and of its scale of colours, are written, and what colours say."""

    figure: "Figure"
    across: still.Format
    up: still.Format
    scale: still.Format | None = None
    coloured: str = ""


def write(traces: Sequence["TraceFile"], output: str | Path, name: str) -> Path:
    """Writes a page's figure of each trace, one below the other; replaces a picture only when the new one is complete.

    Args:
        traces: opened traces.
        output: *.svg or *.png.
        name: one of PAGES.

    Raises:
        NeuronprofError: the output is no picture, or cannot be written; or a trace has nothing to show there.
    """
    output = page.check_output(output, picture.ENDINGS)
    known = [(trace, PAGES[name](trace)) for trace in traces]
    shown = [(trace, one) for trace, one in known if one is not None]
    if len(shown) < len(known):
        raise NeuronprofError(
            f"{next(trace.path for trace, one in known if one is None)} has nothing to show on the page '{name}'."
        )
    plots, top = [], 0.0
    for _, one in shown:
        plots.append(still.Plot(one.figure, WIDTH, top + _HEAD))
        top = plots[-1].bottom + _MARGIN
    drawing = canvas.KINDS[output.suffix.lower()](WIDTH, round(top))
    for (trace, one), plot in zip(shown, plots, strict=True):
        told = heading.title(trace)
        drawing.text(
            (_MARGIN, plot.top - _HEAD + 24), canvas.fitted(told["name"], 16, WIDTH - 2 * _MARGIN), 16, look.INK
        )
        drawing.text(
            (_MARGIN, plot.top - _HEAD + 42), " · ".join(filter(None, (told["where"], one.coloured))), 12, look.FAINT
        )
        plot.draw(drawing, one.across, one.up, one.scale)
    return page.save(drawing.content(), output)


def _tables(trace: "TraceFile", *names: str) -> Mapping[str, Any]:
    """Finished tables, by their names."""
    from neuronprof.analyze import registry

    questions = [registry.find(name) for name in names]
    found = registry.run(trace, questions)
    return {name: found[question.name][name] for name, question in zip(names, questions, strict=True)}


def _roofline(trace: "TraceFile") -> _Shown | None:
    from neuronprof.view import rooflineplot

    machine = (trace.metadata.get("machine") or {}).get("rank") or {}
    plot = rooflineplot.figure(_tables(trace, "roofline")["roofline"], machine)
    return _Shown(plot, lambda value, _step, _largest: f"{value:g}", _count) if plot.renderers else None


def _memory(trace: "TraceFile") -> _Shown | None:
    from neuronprof.view import memoryplot

    table = _tables(trace, "memory_over_time")["memory_over_time"]
    capacity = ((trace.metadata.get("machine") or {}).get("rank") or {}).get("hbm_capacity") or float("nan")
    return _Shown(memoryplot.figure(table, capacity), picture.instant, _size) if table["bytes"].any() else None


def _schedule(trace: "TraceFile") -> _Shown | None:
    from neuronprof.view import scheduleplot

    table = _tables(trace, "schedule")["schedule"]
    stages = [str(number) for number in range(int(table["stage"].max()) + 1)] if len(table) else []
    return _Shown(scheduleplot.figure(table), picture.instant, _named(stages)) if stages else None


def _traffic(trace: "TraceFile") -> _Shown | None:
    from neuronprof.analyze import pairs
    from neuronprof.view import trafficplot

    sent = pairs.matrix(_tables(trace, "traffic")["traffic"])
    return (
        _Shown(trafficplot.figure(sent), _named(sent.destinations), _named(sent.sources), _size, "bytes sent")
        if sent.bytes.size
        else None
    )


def _ranks(trace: "TraceFile") -> _Shown | None:
    from neuronprof.analyze.everyrank import over_steps
    from neuronprof.view import heatmap

    if trace.totals.empty:
        return None
    found = over_steps(trace.totals)
    rows = found.ranks[:: heatmap.beside(len(found.ranks))]
    return _Shown(
        heatmap.figure(found).select_one({"name": "rank map"}),
        _named(found.steps),
        _named(rows),
        _time,
        next(iter(found.values)),
    )


def _named(names: "Sequence[Any] | NDArray[Any]") -> still.Format:
    """Ticks of an axis along which things stand one by one."""
    return lambda value, _step, _largest: (
        str(names[int(value)]) if value == int(value) and 0 <= value < len(names) else ""
    )


def _size(value: float, _step: float, _largest: float) -> str:
    return units.size(value)


def _time(value: float, _step: float, _largest: float) -> str:
    return units.time(value)


def _count(value: float, _step: float, _largest: float) -> str:
    return units.count(value)


PAGES: Mapping[str, Callable[["TraceFile"], _Shown | None]] = {
    "roofline": _roofline, "memory": _memory, "schedule": _schedule, "traffic": _traffic, "ranks": _ranks,
}  # fmt: skip
