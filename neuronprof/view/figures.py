"""The Bokeh figures that the timeline is made of; each comes with the source that the page fills."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuronprof.view import look, tracks

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, Div, LinearColorMapper, Range1d, Select
    from bokeh.plotting import figure as Figure

ROW_HEIGHT = 22
GUTTER = 178  # left of every plot, for the labels; the same everywhere, so that the plots line up
NARROWEST_NS = 20  # as far as one can zoom in
SLOTS = 8  # categories of memory that are told apart
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
    from bokeh.models import BoxZoomTool, PanTool, ResetTool, WheelZoomTool
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
    look.time_axis(plot)
    look.apply(plot, GUTTER)
    return plot


def lanes(x_range: "Range1d") -> tuple["Figure", dict[str, "ColumnDataSource"]]:
    """The rows of events, which the page lays out, with the sources of rectangles, of words inside them, and of what lies over them."""
    from bokeh.core.properties import value
    from bokeh.models import BoxSelectTool, ColumnDataSource, FixedTicker, Range1d

    plot = _figure(x_range, 15 * ROW_HEIGHT, y_range=Range1d(-1, 0), x_axis_location="above", name="lanes")
    plot.yaxis.ticker = FixedTicker(ticks=[])
    plot.ygrid.ticker = FixedTicker(ticks=[])
    look.label_axis(plot.yaxis)
    box = ("left", "right", "top", "bottom")
    events = ColumnDataSource({name: [] for name in (*box, "colour", "row")})
    words = ColumnDataSource({name: [] for name in ("x", "y", "text", "colour")})
    _quads(plot, events, name="events")
    advice = ColumnDataSource({name: [] for name in (*box, "number")})
    plot.quad(*box, source=advice, fill_color=tracks.YELLOW, line_color=None, name="advice")
    plot.add_tools(BoxSelectTool(dimensions="width", renderers=[], description="Choose a range"))
    colour = {"field": "colour", "transform": _colours(tracks.TEXT_PALETTE, "words")}
    font = {"text_font_size": "11px", "text_font": value(look.FONT), "text_baseline": "middle"}
    plot.text("x", "y", "text", source=words, text_color=colour, **font)
    return plot, {"events": events, "advice": advice, "labels": words, **_overlays(plot)}


def _overlays(plot: "Figure") -> dict[str, "ColumnDataSource"]:
    """What lies over the events: the stretch and the places that are marked, the chosen event, arrows to what belongs to it."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, Range1d

    box = ("left", "right", "bottom", "top")
    spans, chosen = (ColumnDataSource({name: [] for name in (*box, *more)}) for more in (("colour",), ()))
    arrows = ColumnDataSource({name: [] for name in ("x0", "y0", "x1", "y1")})
    notes = ColumnDataSource({name: [] for name in ("x", "y", "text")})
    # Behind the events, in the figure's own height whatever its rows are.
    plot.extra_y_ranges = {"whole": Range1d(0, 1)}
    plot.quad(*("left", "right", "top", "bottom"), source=spans, y_range_name="whole", fill_color="colour", fill_alpha=0.14,
              line_color="colour", line_alpha=0.7, level="underlay")  # fmt: skip
    plot.quad(
        "left",
        "right",
        "top",
        "bottom",
        source=chosen,
        fill_color=None,
        line_color=look.INK,
        line_width=2,
        name="chosen",
    )
    plot.segment("x0", "y0", "x1", "y1", source=arrows, line_color=look.LIMIT, line_width=1.5, name="arrows")
    plot.scatter("x1", "y1", source=arrows, size=7, color=look.LIMIT, name="arrow heads")
    plot.text("x", "y", "text", source=notes, y_range_name="whole", text_font_size="11px", text_font=value(look.FONT),
              text_color=look.INK, text_baseline="top", x_offset=4, y_offset=2, background_fill_color=look.PAPER,
              background_fill_alpha=0.85, name="notes")  # fmt: skip
    return {"spans": spans, "chosen": chosen, "arrows": arrows, "notes": notes}


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
    colour = {"field": "colour", "transform": _colours(tracks.PALETTE, "colours")}
    plot.quad("left", "right", "top", "bottom", source=source, fill_color=colour, line_color=None, name=name)


def _colours(palette: Sequence[str], name: str) -> "LinearColorMapper":
    """Colours by their place in a palette; its last two are the pale ones, which a dark page replaces by that name."""
    from bokeh.models import LinearColorMapper

    return LinearColorMapper(palette=list(palette), low=-0.5, high=len(palette) - 0.5, name=name)


# What stands at a value's place, in JavaScript: an amount with its unit, or a share of the limit.
_AMOUNT, _UTILIZATION = "count(VALUE, 'UNIT')", "percent(VALUE / limit.location)"


def quantity(x_range: "Range1d", name: str, label: str) -> dict[str, Any]:
    """A quantity over time against its limit; the page shows it, to its scale, where a rank has it.

    Args:
        x_range: the shared window.
        name: of the figure in the page's document, and of the quantity.
        label: what stands left of it.
    """
    from bokeh.models import ColumnDataSource, Range1d

    plot = _figure(x_range, 70, y_range=Range1d(0, 1), name=name)
    source = ColumnDataSource({"x": [], "y": []})
    plot.varea(x="x", y1=0, y2="y", source=source, fill_color=tracks.BLUE, fill_alpha=0.22)
    line = plot.line(x="x", y="y", source=source, line_color=tracks.BLUE, line_width=1.2)
    about = {"figure": plot, "source": source, "label": label, **look.limit(plot)}
    told = _UTILIZATION if name == "mfu" else _AMOUNT.replace("UNIT", "FLOP/s" if name == "flops" else "B/s")
    tick, value = (told.replace("VALUE", what) for what in ("tick", "value"))
    look.quantity_axis(plot, label, f"return {tick}")
    plot.yaxis.formatter.args = {"limit": about["limit"]}
    more = "${count(value, 'FLOP/s')}" if name == "mfu" else "${percent(value / limit.location)} of peak"
    code = f"return {value} + (limit.location ? `  ({more})` : '')"
    _read_off(plot, line, {"limit": about["limit"]}, code, label)
    return about


def held(x_range: "Range1d", name: str, label: str) -> dict[str, Any]:
    """Bytes held in a memory over time, stacked by category, against the capacity; name, label: as of `quantity`."""
    from bokeh.models import ColumnDataSource, Range1d

    whole = name == "memory"
    plot = _figure(x_range, 100 if whole else 84, y_range=Range1d(0, 1), name="held" if whole else name)
    layers = [f"y{slot}" for slot in range(SLOTS + 1)]
    source = ColumnDataSource({"x": [], **{name: [] for name in layers}})
    areas = ColumnDataSource({"xs": [], "ys": [], "colour": []})
    plot.patches("xs", "ys", source=areas, fill_color="colour", fill_alpha=0.75, line_color=None)
    line = plot.line("x", layers[-1], source=source, line_color=look.INK, line_width=1, line_alpha=0.6)
    look.quantity_axis(plot, label, "return size(tick)")
    _read_layers(plot, line, x_range, name)
    words = look.keys(plot)
    about = {"figure": plot, "label": label, "source": source, "areas": areas, "slots": SLOTS, "words": words}
    return {**about, **look.limit(plot)}


def _read_off(plot: "Figure", line: Any, about: dict[str, Any], code: str, label: str) -> None:
    """Shows the value under the pointer."""
    from bokeh.models import CustomJSHover, HoverTool

    at = CustomJSHover(code=look.script("format.js", then="return instant(value, 1, Math.abs(value))"))
    plot.add_tools(
        HoverTool(
            renderers=[line],
            mode="vline",
            line_policy="prev",
            tooltips=look.value_tooltip(label),
            formatters={
                "@y": CustomJSHover(args=about, code=look.script("format.js", then=code)),
                "@x": at,
            },
            attachment="horizontal",
            visible=False,
        )
    )


def _read_layers(plot: "Figure", line: Any, x_range: "Range1d", name: str) -> None:
    """Shows what each category holds under the pointer; the categories' names are the trace's, so they too are put in as text."""
    from bokeh.models import CustomJSHover, HoverTool

    then = f"return held(x_range.neuronprof.scenes[0].seen, '{name}', source.data, {SLOTS}, special_vars.index, format)"
    read = CustomJSHover(
        args={"source": line.data_source, "x_range": x_range}, code=look.script("format.js", "about.js", then=then)
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


def hover(plot: "Figure", name: str, field: str, code: str, x_range: "Range1d") -> None:
    """Shows what is under the pointer among the renderers of this name: what code makes of a field."""
    from bokeh.models import CustomJSHover, HoverTool

    plot.add_tools(
        HoverTool(
            renderers=[r for r in plot.renderers if r.name == name],
            tooltips=look.fields_tooltip(field),
            formatters={field: CustomJSHover(args={"x_range": x_range}, code=code)},
            attachment="horizontal",
            point_policy="follow_mouse",
            limit=1,
            visible=False,
        )
    )


def choices(shown: Mapping[str, Sequence[tuple[str, str]]], colour: str) -> dict[str, "Select"]:
    """The two selectors: what colours mean, and what is shown: for each kind of choice, pairs of keys and a title."""
    from bokeh.models import Select

    colours = [("phase", "Colour: phase"), ("opcode", "Colour: operator kind"), ("engine", "Colour: engine")]
    first = next(iter(shown.values()))
    options: Any = {kind: list(pairs) for kind, pairs in shown.items()} if len(shown) > 1 else list(first)
    return {
        "colour": Select(value=colour, options=colours, width=172, stylesheets=[look.CONTROL_CSS], name="colour"),
        "rank": Select(value=first[0][0], options=options, width=150, stylesheets=[look.CONTROL_CSS], name="rank"),
    }


def legend() -> dict[str, Any]:
    """The strip that says what the colours mean; drawn as a picture, so that names from a trace stay text."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, Range1d
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
    colour = {"field": "colour", "transform": _colours(tracks.PALETTE, "colours")}
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
    return {"figure": plot, "source": source}
