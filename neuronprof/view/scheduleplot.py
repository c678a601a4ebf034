"""The schedule of a pipeline: stages against time, each pass with the number of its micro-batch, bubbles shaded.

What cuts a pass, collectives that nothing hides and waiting for its message, is drawn over it.
A click asks the page for the place in the timeline.
"""

from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

_COLOURS = {
    "forward": tracks.BLUE,
    "backward": tracks.VERMILLION,
    "backward of weights": tracks.YELLOW,
    "optimizer": tracks.GREEN,
    "collectives": tracks.SKY,
}
_PASSES = ("forward", "backward", "backward of weights")
_PARTS = {"warm-up": tracks.ORANGE, "steady": tracks.GREY, "cool-down": tracks.PURPLE}
_LIGHTER = 0.62  # of a chunk's colour to that of the chunk before it
_BUBBLE = "bubble"
_HOVER = (("Stage", "@stage"), ("Rank", "@rank"), ("What", "@what"), ("Time", "@time"), ("Part", "@part"))
_HIGH = 0.36  # half the height of a row
MOST = 20_000  # passes, and as many pieces between them, in one picture: the longest ones
_LONG = 0.25  # of what a pass computes
_PASS = ["step", "stage", "rank", "kind", "microbatch", "chunk"]


def figure(table: "pd.DataFrame") -> "Figure":
    """The schedule, at first of the first step.

    Args:
        table: `schedule` of the analyzers, with at least one row.
    """
    from bokeh.models import CustomJS, HoverTool, Range1d, TapTool
    from bokeh.plotting import figure as new_figure

    table = _drawn(table)
    stages = int(table["stage"].max()) + 1
    first = table[table["step"] == table["step"].min()]
    low, high = int(first["start_ts"].min()), int(first["end_ts"].max())
    bounds = (int(table["start_ts"].min()), int(table["end_ts"].max()))
    plot = new_figure(
        x_range=Range1d(low, high, bounds=bounds, min_interval=20), y_range=Range1d(stages - 0.4, -0.6), name="schedule",
        height=min(96 + 34 * stages, 700), sizing_mode="stretch_width", y_axis_label="pipeline stage", lod_threshold=None,
        tools="xpan,xwheel_zoom,xbox_zoom,reset,save", active_drag="xpan", active_scroll="xwheel_zoom",
    )  # fmt: skip
    look.apply(plot, 70)
    look.name_axes(plot)
    look.time_axis(plot)
    plot.yaxis.ticker = list(range(stages))
    plot.ygrid.visible = False
    drawn = [_pieces(plot, table[table["kind"] == kind], kind) for kind in (*_COLOURS, _BUBBLE)]
    known = [one for one in drawn if one is not None]
    _parts(plot, table)
    words = _numbers(plot)
    sources = [one.data_source for one in known]
    about = {"sources": sources, "words": words, "plot": plot}
    write = CustomJS(args=about, code=look.script("format.js", "schedule.js", then="number(plot, sources, words)"))
    for name in ("start", "end"):
        plot.x_range.js_on_change(name, write)
    plot.js_on_change("inner_width", write)
    plot.add_tools(
        HoverTool(renderers=known, tooltips=list(_HOVER), point_policy="follow_mouse"), TapTool(renderers=[])
    )
    plot.js_on_event(
        "tap", CustomJS(args={"sources": sources}, code=look.script("schedule.js", then="open_at(cb_obj, sources)"))
    )
    look.legend_above(plot)
    return plot


def _drawn(table: "pd.DataFrame") -> "pd.DataFrame":
    """Whole passes, and the pieces between them or over them, with what the hover says of them."""
    import pandas as pd

    table = table.assign(end_ts=table["start_ts"] + table["duration_ns"])
    among = table["kind"].isin(_PASSES)
    ends = {"start_ts": ("start_ts", "min"), "end_ts": ("end_ts", "max"), "duration_ns": ("duration_ns", "sum")}
    pieces = table[among]
    passes = pieces.groupby([*_PASS, _turn(pieces)], as_index=False, sort=False).agg(**ends, part=("part", "first"))
    longest = (rows.nlargest(MOST, "duration_ns") for rows in (passes, table[~among]))
    return _told(pd.concat([rows.sort_index() for rows in longest], ignore_index=True))


def _turn(pieces: "pd.DataFrame") -> "pd.Series[Any]":
    """How often a pass stood still for long before each of its pieces: there it is not drawn as one."""
    own = pieces.groupby(_PASS, sort=False)
    still = pieces["start_ts"] - own["end_ts"].shift() > _LONG * own["duration_ns"].transform("sum")
    return still.groupby([pieces[name] for name in _PASS], sort=False).cumsum().rename("turn")


def _told(table: "pd.DataFrame") -> "pd.DataFrame":
    several = table["chunk"].max() > 0
    what = [
        kind + (f" of micro-batch {number}" if number >= 0 else "") + (f", chunk {chunk}" if several and number >= 0 else "")
        for kind, number, chunk in zip(table["kind"], table["microbatch"], table["chunk"], strict=True)
    ]  # fmt: skip
    whole, own = table["end_ts"] - table["start_ts"], table["duration_ns"]
    time = [
        units.time(all_) + (f", of which {units.time(part)} computing" if part < all_ else "")
        for all_, part in zip(whole, own, strict=True)
    ]
    return table.assign(what=what, time=time)


def _pieces(plot: "Figure", table: "pd.DataFrame", kind: str) -> Any:
    """The pieces of one kind; None if there are none."""
    from bokeh.models import ColumnDataSource

    if table.empty:
        return None
    stage, number = table["stage"].to_numpy(float), table["microbatch"].to_numpy()
    names = ("start_ts", "end_ts", "stage", "rank", "what", "time", "part")
    data: dict[str, Any] = {name: table[name].to_numpy() for name in names}
    data |= {
        "top": stage - _HIGH,
        "bottom": stage + _HIGH,
        "colour": [_COLOURS.get(kind)] * len(table),
        "number": [str(one) if one >= 0 else "" for one in number],
    }
    place = {"left": "start_ts", "right": "end_ts", "top": "top", "bottom": "bottom", "name": "pieces"}
    if kind == _BUBBLE:
        hatch = {"pattern": "/", "color": tracks.GREY, "alpha": 0.45, "scale": 8, "weight": 0.7}
        return plot.quad(**place, source=ColumnDataSource(data), fill_color=look.PAPER, line_color=None, legend_label=kind,
                         **{f"hatch_{name}": value for name, value in hatch.items()})  # fmt: skip
    data["ink"] = [tracks.TEXT_PALETTE[tracks.PALETTE.index(_COLOURS[kind])]] * len(table)
    data["alpha"] = _LIGHTER ** table["chunk"].to_numpy(float)
    seam = look.PAPER if kind in _PASSES else None
    return plot.quad(**place, source=ColumnDataSource(data), fill_color=_COLOURS[kind], fill_alpha="alpha", line_color=seam,
                     legend_label=kind)  # fmt: skip


def _parts(plot: "Figure", table: "pd.DataFrame") -> None:
    """A stripe under each stage: where it warms up, is steady, cools down."""
    spans = table.groupby(["step", "stage", "part"], as_index=False).agg({"start_ts": "min", "end_ts": "max"})
    for part, colour in _PARTS.items():
        mine = spans[spans["part"] == part]
        stage = mine["stage"].to_numpy(float)
        if len(mine):
            plot.quad(left=mine["start_ts"].to_numpy(), right=mine["end_ts"].to_numpy(), top=stage + _HIGH + 0.03,
                      bottom=stage + _HIGH + 0.11, fill_color=colour, line_color=None, legend_label=part, name=part)  # fmt: skip


def _numbers(plot: "Figure") -> "ColumnDataSource":
    """The numbers inside passes, which the page writes where they have room."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource

    words = ColumnDataSource({name: [] for name in ("x", "y", "text", "ink", "colour")})
    plot.text("x", "y", "text", source=words, text_align="center", text_baseline="middle", text_font_size="11px",
              text_font=value(look.FONT), text_color="ink", background_fill_color="colour", name="numbers")  # fmt: skip
    return words
