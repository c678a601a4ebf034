"""The Bokeh figures that the timeline is made of; each comes with the source that the page fills."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, Div, Range1d, Select
    from bokeh.plotting import figure as Figure

ROW_HEIGHT = 22
GUTTER = 178  # left of every plot, for the labels; the same everywhere, so that the plots line up
NARROWEST_NS = 20  # as far as one can zoom in
_NEAR = 0.25  # memory that peaks below this share of the capacity is drawn to its own scale
_MARGIN = 0.004  # free at both ends of the trace, as a share of it


def nothing() -> "Div":
    """What stands where the timeline of a trace without events would be."""
    from bokeh.models import Div

    return Div(
        text="This trace has no events.",
        name="timeline",
        stylesheets=[look.SENTENCE_CSS],
        styles={"padding": "40px 12px"},
    )


def time_range(start: int, end: int) -> "Range1d":
    """The window that all plots share, at first the whole trace; it cannot leave the trace."""
    from bokeh.models import Range1d

    span = max(end - start, NARROWEST_NS)
    low, high = start - _MARGIN * span, end + _MARGIN * span
    high = max(high, low + NARROWEST_NS)
    return Range1d(low, high, bounds=(low, high), min_interval=NARROWEST_NS)


def _figure(x_range: "Range1d", height: int, **options: Any) -> "Figure":
    from bokeh.models import BoxZoomTool, CustomJSTickFormatter, PanTool, ResetTool, WheelZoomTool
    from bokeh.plotting import figure

    tools = [
        PanTool(dimensions="width"),
        WheelZoomTool(dimensions="width"),
        BoxZoomTool(dimensions="width"),
        ResetTool(),
    ]
    plot = figure(
        x_range=x_range, height=height, tools=tools, sizing_mode="stretch_width", lod_threshold=None, **options
    )
    plot.xaxis.formatter = CustomJSTickFormatter(
        code=look.script(
            "format.js",
            then="const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : 1\n"
            "return instant(tick, step, Math.max(...ticks.map(Math.abs)))",
        )
    )
    look.apply(plot, GUTTER)
    return plot


def lanes(x_range: "Range1d", labels: Sequence[str]) -> tuple["Figure", "ColumnDataSource", "ColumnDataSource"]:
    """The rows of events, with the sources of rectangles and of the words inside them."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, FixedTicker, LinearColorMapper, Range1d

    count = len(labels)
    plot = _figure(x_range, ROW_HEIGHT * count + 34, y_range=Range1d(-count, 0), x_axis_location="above", name="lanes")
    centres = [-(place + 0.5) for place in range(count)]
    plot.yaxis.ticker = FixedTicker(ticks=[at for at, label in zip(centres, labels, strict=True) if label])
    plot.yaxis.major_label_overrides = {at: plain(label) for at, label in zip(centres, labels, strict=True) if label}
    plot.ygrid.ticker = FixedTicker(ticks=[-place for place in range(count + 1)])
    look.label_axis(plot.yaxis)
    events = ColumnDataSource({name: [] for name in ("left", "right", "bottom", "top", "colour", "row")})
    words = ColumnDataSource({name: [] for name in ("x", "y", "text", "colour")})
    _quads(plot, events, name="events")
    plot.text(
        x="x",
        y="y",
        text="text",
        source=words,
        text_color={"field": "colour", "transform": _mapper(LinearColorMapper, tracks.TEXT_PALETTE)},
        text_font_size="11px",
        text_font=value(look.FONT),
        text_baseline="middle",
    )
    return plot, events, words


def overview(x_range: "Range1d") -> tuple["Figure", "ColumnDataSource"]:
    """The strip that always shows the whole trace, with the window to drag."""
    from bokeh.models import ColumnDataSource, FixedTicker, Range1d, RangeTool

    whole = Range1d(x_range.start, x_range.end)
    plot = _figure(whole, 42, y_range=Range1d(-1, 0), name="overview")
    plot.toolbar_location = None
    plot.tools = []
    plot.xaxis.visible = False
    plot.yaxis.ticker = FixedTicker(ticks=[-0.5])
    plot.yaxis.major_label_overrides = {-0.5: "Overview"}
    look.label_axis(plot.yaxis)
    plot.min_border_right = look.TOOLBAR
    source = ColumnDataSource({name: [] for name in ("left", "right", "bottom", "top", "colour", "row")})
    _quads(plot, source, name="whole")
    window = RangeTool(x_range=x_range, start_gesture="pan")
    window.overlay.fill_color, window.overlay.fill_alpha = "#1f6feb", 0.10
    window.overlay.line_color, window.overlay.line_alpha, window.overlay.line_dash = "#1f6feb", 0.7, "solid"
    plot.add_tools(window)
    return plot, source


def _quads(plot: "Figure", source: "ColumnDataSource", name: str) -> None:
    from bokeh.models import LinearColorMapper

    colour = {"field": "colour", "transform": _mapper(LinearColorMapper, tracks.PALETTE)}
    plot.quad("left", "right", "top", "bottom", source=source, fill_color=colour, line_color=None, name=name)


def _mapper(kind: Any, palette: Sequence[str]) -> Any:
    return kind(palette=list(palette), low=-0.5, high=len(palette) - 0.5)


def bandwidth(
    x_range: "Range1d", name: str, label: str, peak: float | None, largest: float
) -> tuple["Figure", "ColumnDataSource"]:
    """Achieved bytes a second over time, against the peak.

    Args:
        x_range: the shared window.
        name: of the figure in the page's document.
        label: what stands left of it.
        peak: bytes a second that the machine can do; None if the trace does not say.
        largest: the highest value drawn, bytes a second.
    """
    from bokeh.models import ColumnDataSource, Range1d

    top = max(peak or 0.0, largest) or 1.0
    plot = _figure(x_range, 70, y_range=Range1d(0, top * 1.22), name=name)
    source = ColumnDataSource({"x": [], "y": []})
    plot.varea(x="x", y1=0, y2="y", source=source, fill_color=tracks.BLUE, fill_alpha=0.22)
    line = plot.line(x="x", y="y", source=source, line_color=tracks.BLUE, line_width=1.2)
    look.quantity_axis(plot, label, "return count(tick, 'B/s')", top)
    if peak:
        look.limit(plot, peak, f"peak {units.count(peak, 'B/s')}")
    share = f" + `  (${{percent(value / {peak!r})}} of peak)`" if peak else ""
    _read_off(plot, line, f"count(value, 'B/s'){share}", label)
    return plot, source


def memory(
    x_range: "Range1d", roles: Sequence[str], capacity: float | None, most: int
) -> tuple["Figure", "ColumnDataSource"]:
    """Bytes held in HBM over time, stacked by category, against the capacity."""
    from bokeh.models import ColumnDataSource, Range1d

    near = bool(capacity) and most > _NEAR * (capacity or 0)
    top = float(max(capacity or 0, most, 1) if near else max(most, 1))
    plot = _figure(x_range, 100, y_range=Range1d(0, top * 1.22), name="memory")
    layers = [f"y{place}" for place in range(len(roles) + 1)]
    source = ColumnDataSource({"x": [], **{name: [] for name in layers}})
    areas = []
    for place, role in enumerate(roles):
        colour = tracks.ROLE_COLOURS.get(role, tracks.GREY)
        area = plot.varea(
            x="x", y1=layers[place], y2=layers[place + 1], source=source, fill_color=colour, fill_alpha=0.75
        )
        areas.append((area, plain(role.replace("_", " "))))
    line = plot.line(x="x", y=layers[-1], source=source, line_color=look.INK, line_width=1, line_alpha=0.6)
    look.quantity_axis(plot, "HBM in use", "return size(tick)", top)
    if capacity and near:
        look.limit(plot, capacity, f"capacity {units.size(capacity)}")
    elif capacity:
        look.note(plot, top, f"peak {units.size(most)}, {units.percent(most / capacity)} of {units.size(capacity)}")
    look.keys(plot, areas)
    _read_layers(plot, line, roles)
    return plot, source


def _read_off(plot: "Figure", line: Any, value: str, label: str) -> None:
    """Shows the value under the pointer."""
    from bokeh.models import CustomJSHover, HoverTool

    def reader(code: str) -> CustomJSHover:
        return CustomJSHover(code=look.script("format.js", then=f"return {code}"))

    at = reader("instant(value, 1, Math.abs(value))")
    plot.add_tools(
        HoverTool(
            renderers=[line],
            mode="vline",
            line_policy="prev",
            tooltips=look.value_tooltip(label),
            formatters={"@y": reader(value), "@x": at},
            attachment="horizontal",
            visible=False,
        )
    )


def _read_layers(plot: "Figure", line: Any, roles: Sequence[str]) -> None:
    """Shows what each category holds under the pointer; the categories' names are the trace's, so they too are put in as text."""
    from bokeh.models import CustomJSHover, HoverTool

    read = CustomJSHover(
        args={"source": line.data_source, "roles": list(roles)},
        code=look.script("format.js", "hover.js", then="return held(source.data, roles, special_vars.index, format)"),
    )
    plot.add_tools(
        HoverTool(
            renderers=[line],
            mode="vline",
            line_policy="prev",
            tooltips=look.fields_tooltip("@x"),
            formatters={"@x": read},
            attachment="horizontal",
            visible=False,
        )
    )


def hover(plot: "Figure", code: str, x_range: "Range1d") -> None:
    """Shows what is under the pointer among the events."""
    from bokeh.models import CustomJSHover, HoverTool

    plot.add_tools(
        HoverTool(
            renderers=[r for r in plot.renderers if r.name == "events"],
            tooltips=look.fields_tooltip("@row"),
            formatters={"@row": CustomJSHover(args={"x_range": x_range}, code=code)},
            attachment="horizontal",
            point_policy="follow_mouse",
            limit=1,
            visible=False,
        )
    )


def choices(ranks: Sequence[str], colour: str) -> dict[str, "Select"]:
    """The two selectors: what colours mean, and the rank."""
    from bokeh.models import Select

    colours = [("phase", "Colour: phase"), ("opcode", "Colour: operator kind"), ("engine", "Colour: engine")]
    return {
        "colour": Select(value=colour, options=colours, width=172, stylesheets=[look.CONTROL_CSS], name="colour"),
        "rank": Select(
            value=ranks[0],
            options=[(r, f"Rank {r}") for r in ranks],
            width=110,
            stylesheets=[look.CONTROL_CSS],
            name="rank",
        ),
    }


def legend(entries: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, Any]:
    """The strip that says what the colours mean; drawn as a picture, so that names from a trace stay text."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d
    from bokeh.plotting import figure

    plot = figure(
        height=34,
        tools="",
        toolbar_location=None,
        name="legend",
        x_range=Range1d(0, 1),
        y_range=Range1d(-1, 1),
        sizing_mode="stretch_width",
    )
    look.bare(plot)
    source = ColumnDataSource({name: [] for name in ("x", "y", "text_x", "text", "colour")})
    colour = {"field": "colour", "transform": _mapper(LinearColorMapper, tracks.PALETTE)}
    plot.scatter("x", "y", size=11, marker="square", source=source, fill_color=colour, line_color=None)
    plot.text(
        "text_x",
        "y",
        "text",
        source=source,
        text_font_size="12px",
        text_font=value(look.FONT),
        text_color=look.INK,
        text_baseline="middle",
        name="legend names",
    )
    return {
        "figure": plot,
        "source": source,
        "entries": {name: [list(pair) for pair in pairs] for name, pairs in entries.items()},
    }


def plain(text: str) -> str:
    """Text that Bokeh does not take for a formula: two dollar signs start one."""
    return text.replace("$", "\uff04")
