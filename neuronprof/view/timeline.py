"""The timeline as a Bokeh layout: it shows inline in a notebook, pages and the server's page are built around it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError
from neuronprof.view import figures, look, tracks

if TYPE_CHECKING:
    from bokeh.models import CustomJS, UIElement

    from neuronprof.trace.reader import TraceFile

MOST_RANKS = 8  # in one page
MOST_EVENTS = 4_000_000  # in one page, all its ranks together
MOST_TOGETHER = 16  # ranks one below the other

_SCRIPTS = (
    "format.js",
    "decode.js",
    "scene.js",
    "about.js",
    "source.js",
    "served.js",
    "advice.js",
    "rows.js",
    "timeline.js",
)
QUANTITIES = {
    "hbm": "HBM bandwidth",
    "neuronlink": "NeuronLink B/s",
    "efa": "EFA B/s",
    "flops": "Tensor FLOP/s",
    "mfu": "MFU",
}
HELD = {"memory": "HBM in use", "sbuf": "SBUF in use", "psum": "PSUM in use"}
COLOURINGS = ("phase", "opcode", "engine")


@dataclass(frozen=True)
class Shown:
    """What a timeline can show. choices: by kind, pairs of keys (of ranks, joined by commas) and their title; names: of each key.

    start, end: nanoseconds; of a rank that is not known yet, what the metadata tells.
    """

    choices: Mapping[str, Sequence[tuple[str, str]]]
    names: Mapping[str, str]
    start: int
    end: int


def timeline(trace: "TraceFile", rank: int | None = None, colour: str = "phase") -> "UIElement":
    """The timeline of one rank, or of the first few with a choice.

    Args:
        trace: an opened trace.
        rank: the rank to show; None for as many of the trace's ranks as a page holds, the first one shown.
        colour: what colours mean at first: phase, opcode or engine.

    Raises:
        NeuronprofError: the trace has no such rank, or more events than a page holds, or the colouring is unknown.
    """
    return embedded([trace], rank, colour)


def embedded(traces: Sequence["TraceFile"], rank: int | None = None, colour: str = "phase") -> "UIElement":
    """As `timeline`, of several traces, that of the first rank of each one below the other at first."""
    from bokeh.models import ColumnDataSource

    from neuronprof.analyze.pyramid.build import build
    from neuronprof.view import reasons, scene

    check_colour(colour)
    ranks = [choose_ranks(trace, rank) for trace in traces]
    details = {
        f"{number}/{one}": (trace, build(trace, one)) for number, trace in enumerate(traces) for one in ranks[number]
    }
    headers = [detail.header for _, detail in details.values()]
    if not any(header["lanes"] or header["held"] for header in headers):
        return figures.nothing()
    shown = what(traces, ranks, (min(h["origin"] for h in headers), max(h["end"] for h in headers)))
    packed = {}
    for key, (trace, detail) in details.items():
        why = reasons.find(trace, detail.header["rank"], detail.header["first_id"])
        packed[key] = ColumnDataSource({"packed": scene.whole(detail, trace.metadata, why)})
    return layout(shown, {"packed": packed}, colour)


def check_colour(colour: str) -> None:
    """Refuses a colouring that nobody knows.

    Raises:
        NeuronprofError: it is unknown.
    """
    if colour not in COLOURINGS:
        raise NeuronprofError(f"'{colour}' is not a colouring; choose one of {', '.join(COLOURINGS)}.")


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
            f"{trace.path} has about {per_rank:,} events a rank, a page holds {MOST_EVENTS:,}; "
            "open it without -o, or record fewer steps with --steps."
        )
    if rank is not None:
        return [rank]
    return present[: max(1, min(MOST_RANKS, MOST_EVENTS // max(1, per_rank)))] or [0]


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8])
    return f"{shown}, ... {numbers[-1]}" if len(numbers) > 8 else shown


def what(traces: Sequence["TraceFile"], ranks: Sequence[Sequence[int]], extent: tuple[int, int]) -> Shown:
    """What a timeline of these ranks of these traces can show: each rank, chips, pipeline stages, and all traces at once."""
    several = len(traces) > 1
    names = {
        f"{number}/{rank}": f"{trace.path.name}, rank {rank}" if several else f"Rank {rank}"
        for number, trace in enumerate(traces)
        for rank in ranks[number]
    }
    choices: dict[str, list[tuple[str, str]]] = {}
    if several:
        choices["Compared"] = [
            (",".join(f"{number}/{rank}" for number in range(len(traces))), f"Rank {rank} of each")
            for rank in ranks[0]
            if all(rank in other for other in ranks)
        ]
    choices["Ranks"] = list(names.items())
    for number, trace in enumerate(traces):
        for kind, groups in _groups(trace.metadata, ranks[number]).items():
            title = f"{kind}s" + (f" of {trace.path.name}" if several else "")
            choices[title] = [
                (",".join(f"{number}/{rank}" for rank in members[:MOST_TOGETHER]), group)
                for group, members in groups.items()
            ]
    return Shown({kind: pairs for kind, pairs in choices.items() if pairs}, names, *extent)


def _groups(metadata: Mapping[str, Any], ranks: Sequence[int]) -> dict[str, dict[str, list[int]]]:
    """By kind, the names and the ranks of chips, pipeline stages and groups along mesh axes that have several of the ranks."""
    machine, pipeline = metadata.get("machine") or {}, metadata.get("pipeline") or {}
    each, stages = int(machine.get("ranks_per_chip") or 1), int(pipeline.get("count") or 1)
    keys: dict[str, Callable[[int], str]] = {"Chip": lambda rank: f"Chip {rank // each}"}
    if stages > 1:
        keys["Stage"] = lambda rank: f"Stage {rank // int(pipeline.get('stride') or 1) % stages}"
    sizes = metadata.get("mesh") or {}
    for axis, stride in ((metadata.get("layout") or {}).get("strides") or {}).items():
        keys[f"{axis} group"] = partial(_along, axis, int(sizes[axis]), int(stride))
    found: dict[str, dict[str, list[int]]] = {kind: {} for kind in keys}
    for kind, group in keys.items():
        for rank in ranks:
            found[kind].setdefault(group(rank), []).append(rank)
    return {kind: groups for kind, groups in found.items() if any(len(members) > 1 for members in groups.values())}


def _along(axis: str, size: int, stride: int, rank: int) -> str:
    """What the group of a rank along a mesh axis is called: 'dp: ranks 1 to 15 by 2'."""
    first = rank - rank // stride % size * stride
    return f"{axis}: ranks {first} to {first + (size - 1) * stride}" + (f" by {stride}" if stride > 1 else "")


def layout(shown: Shown, source: Mapping[str, Any], colour: str) -> "UIElement":
    """The plots around a source of scenes: `packed` ranks, or the `url` of a server."""
    from bokeh.layouts import column, row
    from bokeh.models import CustomJS

    x_range = figures.time_range(shown.start, shown.end)
    main, drawn = figures.lanes(x_range)
    strip, strip_source = figures.overview(x_range)
    quantities = {name: figures.quantity(x_range, name, label) for name, label in QUANTITIES.items()}
    quantities |= {name: figures.held(x_range, name, label) for name, label in HELD.items()}
    choices = figures.choices(shown.choices, colour)
    legend = figures.legend()
    models = {
        **source,
        "names": dict(shown.names),
        "step_colours": [tracks.PALETTE.index(tracks.PALE), tracks.PALETTE.index(tracks.PALER)],
        "whole": {"start": x_range.start, "end": x_range.end},
        "x_range": x_range,
        "main": main,
        "strip": strip,
        "strip_source": strip_source,
        "quantities": quantities,
        "legend": legend,
        **drawn,
        **choices,
    }
    update = CustomJS(args={"models": models}, code=look.script(*_SCRIPTS, "calm.js", "start.js", then="start(models)"))
    plots = [main, *(quantity["figure"] for quantity in quantities.values())]
    models["grid"] = grid = _grid(plots)
    _connect(update, x_range, [main, strip, legend["figure"]], list(choices.values()))
    figures.hover(main, "events", "@row", "return x_range.neuronprof.describe(value, format)", x_range)
    figures.hover(main, "advice", "@number", "return x_range.neuronprof.describeAdvice(value, format)", x_range)
    several = len(shown.names) > 1
    bar = row(*([choices["rank"]] if several else []), choices["colour"], legend["figure"], sizing_mode="stretch_width")
    return column(bar, strip, grid, sizing_mode="stretch_width", name="timeline")


def _grid(plots: Sequence[Any]) -> Any:
    """The plots over time below each other, of which the page shows those that a rank has something for; at first the lanes only."""
    from bokeh.layouts import gridplot
    from bokeh.models import WheelZoomTool

    rows = [[plot] for plot in plots]
    grid = gridplot(rows, sizing_mode="stretch_width", toolbar_location="right", toolbar_options={"logo": None})
    wheels = [next(tool for tool in plot.tools if isinstance(tool, WheelZoomTool)) for plot in plots]
    for plot, wheel in zip(plots, wheels, strict=True):
        plot.toolbar.active_scroll = wheel
    grid.toolbar.active_scroll = next(
        tool for tool in grid.toolbar.tools if getattr(tool, "tools", [None])[0] in wheels
    )
    grid.children = grid.children[:1]
    return grid


def _connect(update: "CustomJS", x_range: Any, plots: Sequence[Any], choices: Sequence[Any]) -> None:
    """Draws when the page has laid itself out, when the window moves, and when a choice is made."""
    for name in ("start", "end"):
        x_range.js_on_change(name, update)
    for plot in plots:
        plot.js_on_change("inner_width", update)
    for choice in choices:
        choice.js_on_change("value", update)
