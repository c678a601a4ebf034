"""The timeline as a Bokeh layout: it shows inline in a notebook, and the page is built around it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError
from neuronprof.view import figures, look, scene, tracks

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, CustomJS, Range1d, UIElement
    from bokeh.plotting import figure as Figure

    from neuronprof.trace.reader import TraceFile

MOST_RANKS = 8  # in one page
MOST_EVENTS = 4_000_000  # in one page, all its ranks together

_SCRIPTS = ("format.js", "decode.js", "hover.js", "timeline.js")
_BANDWIDTHS = {
    "hbm": ("HBM bandwidth", "hbm_bandwidth"),
    "neuronlink": ("NeuronLink", "neuronlink_bandwidth"),
    "efa": ("EFA", "efa_bandwidth"),
}
_COLOURINGS = ("phase", "opcode", "engine")


def timeline(trace: "TraceFile", rank: int | None = None, colour: str = "phase") -> "UIElement":
    """The timeline of one rank, or of the first few with a choice.

    Args:
        trace: an opened trace.
        rank: the rank to show; None for as many of the trace's ranks as a page holds, the first one shown.
        colour: what colours mean at first: phase, opcode or engine.

    Raises:
        NeuronprofError: the trace has no such rank, or more events than a page holds, or the colouring is unknown.
    """
    if colour not in _COLOURINGS:
        raise NeuronprofError(f"'{colour}' is not a colouring; choose one of {', '.join(_COLOURINGS)}.")
    scenes = [scene.build(trace, number) for number in choose_ranks(trace, rank)]
    return _layout(scenes, trace.metadata, colour)


def choose_ranks(trace: "TraceFile", rank: int | None) -> list[int]:
    """The ranks that a page of this trace holds.

    Raises:
        NeuronprofError: the trace has no such rank, or one rank has more events than a page holds.
    """
    present = trace.ranks
    if rank is not None and rank not in present:
        known = f"it has ranks {_listed(present)}" if present else "it has no events"
        raise NeuronprofError(f"{trace.path} has no events of rank {rank}; {known}.")
    per_rank = trace.num_events // max(1, len(present))
    if per_rank > MOST_EVENTS:
        raise NeuronprofError(
            f"{trace.path} has about {per_rank:,} events a rank, a page holds {MOST_EVENTS:,}; record fewer steps with --steps."
        )
    if rank is not None:
        return [rank]
    return present[: max(1, min(MOST_RANKS, MOST_EVENTS // max(1, per_rank)))] or [0]


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8])
    return f"{shown}, ... {numbers[-1]}" if len(numbers) > 8 else shown


def _layout(scenes: Sequence[scene.Scene], metadata: dict[str, Any], colour: str) -> "UIElement":
    from bokeh.layouts import column, gridplot, row
    from bokeh.models import ColumnDataSource, CustomJS, WheelZoomTool

    rows = sorted({at for one in scenes for at in one.rows})
    if not rows and not _roles(scenes):
        return figures.nothing()
    start, end = min(one.start for one in scenes), max(one.end for one in scenes)
    x_range = figures.time_range(start, end)
    main, events, labels = figures.lanes(x_range, tracks.labels(rows))
    strip, strip_source = figures.overview(x_range)
    quantities = _quantities(scenes, (metadata.get("machine") or {}).get("rank") or {}, x_range)
    choices = figures.choices([str(one.rank) for one in scenes], colour)
    legend = figures.legend(_legend(scenes))
    models = {
        "packed": {str(one.rank): ColumnDataSource({"packed": one.packed}) for one in scenes},
        "rows": [list(at) for at in rows],
        "step_colours": [tracks.PALETTE.index(tracks.PALE), tracks.PALETTE.index(tracks.PALER)],
        "whole": {"start": x_range.start, "end": x_range.end},
        "x_range": x_range,
        "main": main,
        "events": events,
        "labels": labels,
        "strip": strip,
        "strip_source": strip_source,
        "quantities": {name: source for name, (_, source) in quantities.items()},
        "roles": _roles(scenes),
        "legend": legend,
        **choices,
    }
    update = CustomJS(args={"models": models}, code=look.script(*_SCRIPTS, "start.js", then="start(models)"))
    _connect(update, x_range, [main, strip, legend["figure"]], list(choices.values()))
    figures.hover(
        main, look.script(*_SCRIPTS, then="return describe(x_range.neuronprof.scene, value, format)"), x_range
    )
    bar = row(
        *(choices.values() if len(scenes) > 1 else [choices["colour"]]), legend["figure"], sizing_mode="stretch_width"
    )
    plots = [[main], *([plot] for plot, _ in quantities.values())]
    grid = gridplot(plots, sizing_mode="stretch_width", toolbar_location="right", toolbar_options={"logo": None})
    wheels = [next(tool for tool in plot.tools if isinstance(tool, WheelZoomTool)) for (plot,) in plots]
    for (plot,), wheel in zip(plots, wheels, strict=True):
        plot.toolbar.active_scroll = wheel
    grid.toolbar.active_scroll = next(
        tool for tool in grid.toolbar.tools if getattr(tool, "tools", [None])[0] in wheels
    )
    return column(bar, strip, grid, sizing_mode="stretch_width", name="timeline")


def _quantities(
    scenes: Sequence[scene.Scene], machine: dict[str, float], x_range: "Range1d"
) -> dict[str, tuple["Figure", "ColumnDataSource"]]:
    """A plot for each bandwidth that some rank has, and for memory; with the source that the page fills."""
    out = {}
    for engine, (label, limit) in _BANDWIDTHS.items():
        largest = max(one.largest.get(engine, 0.0) for one in scenes)
        if largest:
            out[engine] = figures.bandwidth(x_range, engine, label, machine.get(limit), largest)
    if roles := _roles(scenes):
        most = max(one.held or 0 for one in scenes)
        out["memory"] = figures.memory(x_range, roles, machine.get("hbm_capacity"), most)
    return out


def _roles(scenes: Sequence[scene.Scene]) -> list[str]:
    return list(dict.fromkeys(name for one in scenes for name in one.roles))


def _legend(scenes: Sequence[scene.Scene]) -> dict[str, list[tuple[str, int]]]:
    """What the colours of each colouring mean, for all ranks of the page."""
    return {name: list(dict.fromkeys(pair for one in scenes for pair in one.colours[name])) for name in _COLOURINGS}


def _connect(update: "CustomJS", x_range: Any, plots: Sequence[Any], choices: Sequence[Any]) -> None:
    """Draws when the page has laid itself out, when the window moves, and when a choice is made."""
    for name in ("start", "end"):
        x_range.js_on_change(name, update)
    for plot in plots:
        plot.js_on_change("inner_width", update)
    for choice in choices:
        choice.js_on_change("value", update)
