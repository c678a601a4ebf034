"""The page of ranks: how long each rank of the job waits for others, and how long its busiest engine works."""

from typing import TYPE_CHECKING, Any

from neuronprof.view import look, tables, tracks
from neuronprof.view.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.plotting import figure

_COLUMNS = (
    Shown("rank", "Rank", "number"),
    Shown("chip", "Chip", "number"),
    Shown("stage", "Pipeline stage", "number", 110),
    Shown("wait_peer_ns", "Waits a step", "time", 120),
    Shown("busy_ns", "Works a step", "time", 120),
    Shown("engine", "Engine"),
)


def ranks(table: "pd.DataFrame") -> list[Any]:
    """The picture of all ranks, and the table of those that others wait for. table: from analyze.everyrank."""
    from bokeh.models import Div

    if table.empty:
        return [Div(text="The trace does not say what each rank did.", stylesheets=[look.SENTENCE_CSS])]
    cut = f" The first {tables.MOST_ROWS:,} of {len(table):,}." if len(table) > tables.MOST_ROWS else ""
    words = f"All ranks of the job. Those that wait least come first: the others wait for them.{cut}"
    head = Div(text=words, stylesheets=[look.SENTENCE_CSS])
    return [head, _picture(table), tables.data_table(table.head(tables.MOST_ROWS), _COLUMNS)]


def _picture(table: "pd.DataFrame") -> "figure":
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure

    columns = ["rank", "chip", "stage", "wait_peer_ns", "busy_ns"]
    source = ColumnDataSource({c: table[c].to_numpy() for c in columns})
    source.data["wait"], source.data["busy"] = (table[c].to_numpy() / 1e6 for c in ("wait_peer_ns", "busy_ns"))
    plot = figure(
        height=280,
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,box_zoom,reset,hover",
        tooltips=[
            ("rank", "@rank"),
            ("chip", "@chip"),
            ("stage", "@stage"),
            ("waits", "@wait ms"),
            ("works", "@busy ms"),
        ],
        x_axis_label="rank",
        y_axis_label="ms a step",
        name="every rank",
    )
    look.apply(plot, 70)
    for column, label, colour in (
        ("busy", str(table["engine"].iloc[0]), tracks.BLUE),
        ("wait", "waiting for others", tracks.ORANGE),
    ):
        plot.scatter("rank", column, source=source, size=4, color=colour, legend_label=label)
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation, plot.legend.label_text_font_size = "horizontal", "11px"
    plot.toolbar.logo = None
    return plot
