"""The page of ranks: what each rank of the job did in each step, how many waited how long, and whom the others waited for."""

from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof.analyze.everyrank import every_rank, over_steps
from neuronprof.view import heatmap, look, tables, tracks
from neuronprof.view.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.plotting import figure as Figure

_COLUMNS = (
    Shown("rank", "Rank", "number"),
    Shown("chip", "Chip", "number"),
    Shown("stage", "Pipeline stage", "number", 110),
    Shown("wait_peer_ns", "Waits a step", "time", 120),
    Shown("busy_ns", "Works a step", "time", 120),
    Shown("engine", "Engine"),
)
_BINS = 60


def ranks(totals: "pd.DataFrame") -> list[Any]:
    """The page's parts. totals: the ranks table of the trace."""
    table = every_rank(totals)
    if table.empty:
        return [tables.sentence("The trace does not say what each rank did.")]
    cut = f" The first {tables.MOST_ROWS:,} of {len(table):,}." if len(table) > tables.MOST_ROWS else ""
    return [
        tables.sentence("All ranks of the job. A click opens a rank whose events are in the trace."),
        heatmap.figure(over_steps(totals)),
        tables.sentence("How many ranks wait for others, and how many work, how long in a step."),
        _distribution(table),
        *tables.under(
            tables.sentence(f"Those that wait least come first: the others wait for them.{cut}"),
            tables.data_table(table.head(tables.MOST_ROWS), _COLUMNS),
            "ranks",
        ),
    ]


def _distribution(table: "pd.DataFrame") -> "Figure":
    from bokeh.plotting import figure

    plot = figure(height=200, sizing_mode="stretch_width", tools="xpan,xwheel_zoom,box_zoom,reset,save", toolbar_location="right",
                  x_axis_label="time a step", y_axis_label="ranks", name="distribution")  # fmt: skip
    look.apply(plot, 70)
    look.name_axes(plot)
    look.scale(plot.xaxis, "return time(tick)")
    most = max(float(table["wait_peer_ns"].max()), float(table["busy_ns"].max()), 1.0)
    edges = np.linspace(0, most, _BINS + 1)
    for column, label, colour in (
        ("busy_ns", f"works: {look.plain(tracks.engine_label(str(table['engine'].iloc[0])))}", tracks.BLUE),
        ("wait_peer_ns", "waits for others", tracks.ORANGE),
    ):
        count, _ = np.histogram(table[column], edges)
        some = count > 0
        plot.quad(left=edges[:-1][some], right=edges[1:][some], bottom=0, top=count[some], fill_color=colour, fill_alpha=0.7,
                  line_color=None, legend_label=label)  # fmt: skip
    plot.y_range.start = 0
    look.legend_above(plot)
    return plot
