"""What HBM holds over time, by category, on the rank that holds most; a click asks the page for the place in the timeline."""

from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof import units
from neuronprof.analyze.memory import CATEGORIES
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.plotting import figure as Figure

_NEAR = 0.25  # the capacity is drawn where the peak takes more than this share of it


def figure(table: "pd.DataFrame", capacity: float) -> "Figure":
    """The stack of categories.

    Args:
        table: `memory_over_time` of the analyzers, with something held.
        capacity: bytes of the rank's HBM; NaN if it is not known.
    """
    from bokeh.models import AdaptiveTicker, ColumnDataSource, CustomJS, HoverTool, TapTool
    from bokeh.plotting import figure as new_figure

    rank = int(table["rank"].to_numpy()[int(table["bytes"].argmax())])
    own = table[table["rank"] == rank].sort_values("start_ts")
    shown = [name for name in CATEGORIES if own[name].any()]
    plot = new_figure(
        height=300, sizing_mode="stretch_width", name="memory", tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
        active_drag="xpan", active_scroll="xwheel_zoom", y_axis_label=f"HBM in use, rank {rank}",
    )  # fmt: skip
    look.apply(plot, 90)
    look.name_axes(plot)
    look.time_axis(plot)
    look.scale(plot.yaxis, "return size(tick)")
    plot.yaxis.ticker = AdaptiveTicker(
        base=1024, mantissas=[2**power for power in range(10)]
    )  # whole numbers of binary units
    source = ColumnDataSource(_steps(own, shown))
    colours = [tracks.ROLE_COLOURS.get(name, tracks.GREY) for name in shown]
    plot.varea_stack(
        shown,
        x="x",
        source=source,
        fill_color=colours,
        fill_alpha=0.75,
        legend_label=[name.replace("_", " ") for name in shown],
    )
    total = plot.line("x", "bytes", source=source, line_color=look.INK, line_width=1, line_alpha=0.6, name="total")
    told = [
        ("At", "@at"),
        *((name.replace("_", " "), f"@{{{name} told}}") for name in reversed(shown)),
        ("total", "@{bytes told}"),
    ]
    plot.add_tools(HoverTool(renderers=[total], mode="vline", line_policy="prev", tooltips=told), TapTool(renderers=[]))
    _limit(plot, float(own["bytes"].max()), capacity)
    code = f"document.dispatchEvent(new CustomEvent('neuronprof.place', {{detail: {{rank: {rank}, start: cb_obj.x, end: cb_obj.x}}}}))"
    plot.js_on_event("tap", CustomJS(code=code))
    plot.y_range.start = 0
    look.legend_above(plot)
    return plot


def _steps(own: "pd.DataFrame", shown: list[str]) -> dict[str, Any]:
    """Each level from its time to the next one's, with what the hover says."""
    times = own["start_ts"].to_numpy()
    columns: dict[str, Any] = {"x": np.repeat(times, 2)[1:], "at": np.repeat([units.time(ns) for ns in times], 2)[:-1]}
    for name in (*shown, "bytes"):
        columns[name] = np.repeat(own[name].to_numpy(), 2)[:-1]
        columns[f"{name} told"] = np.repeat([units.size(held) for held in own[name]], 2)[:-1]
    return columns


def _limit(plot: "Figure", most: float, capacity: float) -> None:
    """The capacity as a dashed line, where it is near."""
    from bokeh.models import Span

    if most > _NEAR * capacity:
        plot.add_layout(Span(location=capacity, dimension="width", line_color=look.LIMIT, line_dash=[5, 4]))
        plot.y_range.end = 1.05 * max(capacity, most)
