"""The analyzers' tables as sortable tables."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from neuronprof.view import look

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import CellFormatter, DataTable, Div

Results = Mapping[str, Mapping[str, "pd.DataFrame"]]

MOST_ROWS = 2000  # of one table in a page; they come sorted by what they cost
_ROW, _MOST_SHOWN = 26, 14
_UNITS = {"time": "ns", "bytes": "B", "rate": "B/s", "flops": "FLOP/s"}  # of the numbers
_PRINTED = {
    "time": "time(value)",
    "bytes": "size(value)",
    "rate": "count(value, 'B/s')",
    "flops": "count(value, 'FLOP/s')",
}
_FORMATS = {"share": "0.0%", "number": "0,0.[00]"}


class Shown(NamedTuple):
    """A column: its name in the result, its heading, and text, share, number or a quantity of `_UNITS`."""

    name: str
    heading: str
    kind: str = "text"
    width: int = 90


_PLACE = (Shown("op_name", "Operator", width=200), Shown("layer", "Layer", width=260))


class Table(NamedTuple):
    """A table of a page: analyzer and its table, a sentence about it, its columns."""

    analyzer: str
    name: str
    sentence: str
    columns: tuple[Shown, ...]


_BY_OPERATOR = Table(
    "bottlenecks",
    "bottlenecks_by_operator",
    "What the time of all steps was spent on, by what bounds it; the rows add up to the steps.",
    (
        Shown("class", "Bound by"), *_PLACE, Shown("phase", "Phase"), Shown("source", "Source", width=180),
        Shown("per_step_ns", "A step", "time"), Shown("share", "Share", "share"),
    ),
)  # fmt: skip
_BUSY = Table(
    "utilization",
    "utilization",
    "How much of the steps each engine is busy.",
    (Shown("engine", "Engine"), Shown("busy", "Busy", "share"), Shown("busy_ns", "Busy time", "time")),
)
_UNDERUSED = Table(
    "underused",
    "underused",
    "Engines that stand still most of the time, and what they stand still for.",
    (
        Shown("engine", "Engine"), Shown("busy", "Busy", "share"), Shown("cause", "Main cause"),
        Shown("idle_ns", "Idle", "time"), Shown("data_ns", "Data", "time"), Shown("dma_ns", "DMA", "time"),
        Shown("hbm_ns", "HBM", "time"), Shown("link_ns", "Link", "time"), Shown("peer_ns", "Peer", "time"),
        Shown("sbuf_ns", "SBUF", "time"), Shown("no_work_ns", "No work", "time"),
    ),
)  # fmt: skip
_COLLECTIVES = Table(
    "communication",
    "communication",
    "Collectives, those that cost most exposed time first.",
    (
        Shown("name", "Collective", width=110), Shown("algorithm", "Algorithm", width=120), Shown("replica_group", "Group", width=140),
        Shown("layer", "Layer", width=200), Shown("bytes", "Message", "bytes", 110), Shown("count", "Count", "number"),
        Shown("transfer_ns", "Transfer", "time"), Shown("wait_ns", "Wait for peers", "time", 140),
        Shown("overlapped_ns", "Overlapped", "time", 110), Shown("exposed_ns", "Exposed", "time"),
        Shown("bus_bandwidth", "Bus bandwidth", "rate", 150),
    ),
)  # fmt: skip
_ROOFLINE = Table(
    "roofline",
    "roofline",
    "Operators against the machine's peak: FLOPs per byte moved, and what they reach. What computes or moves nothing has no place above.",
    (
        *_PLACE, Shown("phase", "Phase"), Shown("dtype", "Type"), Shown("time_ns", "Time", "time"),
        Shown("intensity", "FLOPs per byte", "number", 110), Shown("flops_per_second", "Achieved", "flops", 130),
        Shown("peak_share", "Of peak", "share"), Shown("roof_share", "Of roof", "share"), Shown("bound", "Bound by"),
    ),
)  # fmt: skip
_STEPS = Table(
    "roofline",
    "roofline_steps",
    "Each step.",
    (
        Shown("step", "Step", "number"), Shown("step_time_ns", "Time", "time"), Shown("mfu", "MFU", "share"),
        Shown("hfu", "HFU", "share"), Shown("mbu", "MBU", "share"), Shown("hbm_share", "HBM busy", "share"),
    ),
)  # fmt: skip
_MEMORY = Table(
    "memory",
    "memory",
    "What HBM holds at its peak, on the rank with the highest one.",
    (
        Shown("rank", "Rank", "number"), Shown("category", "Category", width=160), Shown("bytes", "Held", "bytes"),
        Shown("share", "Of peak", "share"), Shown("capacity_share", "Of capacity", "share", 110),
    ),
)  # fmt: skip
_MEMORY_RANKS = Table(
    "memory",
    "memory_by_rank",
    "The peak of each rank in the trace.",
    (
        Shown("rank", "Rank", "number"), Shown("step", "Step", "number"), Shown("peak_ts", "At", "time"),
        Shown("peak_bytes", "Peak", "bytes"), Shown("capacity_share", "Of capacity", "share", 110),
    ),
)  # fmt: skip
_ON_CHIP = Table(
    "on_chip",
    "on_chip",
    "What SBUF and PSUM hold at their fullest, on the rank where that is most; and on average over time and ranks.",
    (
        Shown("memory", "Memory"), Shown("rank", "Rank", "number"), Shown("peak_ts", "At", "time"),
        Shown("resident_bytes", "Resident", "bytes"), Shown("tiles_bytes", "Tiles", "bytes"),
        Shown("partial_sums_bytes", "Partial sums", "bytes", 110), Shown("peak_bytes", "Peak", "bytes"),
        Shown("peak_share", "Of capacity", "share", 110), Shown("mean_bytes", "Mean", "bytes"),
        Shown("mean_share", "Of capacity", "share", 110),
    ),
)  # fmt: skip
_STAGES = Table(
    "schedule",
    "schedule_stages",
    "A step of each pipeline stage: what it works, and what it loses in bubbles.",
    (
        Shown("stage", "Stage", "number"), Shown("rank", "Rank", "number"), Shown("forward_ns", "Forward", "time"),
        Shown("backward_ns", "Backward", "time"), Shown("optimizer_ns", "Optimizer", "time"),
        Shown("collectives_ns", "Collectives", "time", 110), Shown("bubble_ns", "Bubble", "time"),
        Shown("bubble_share", "Of the step", "share"),
    ),
)  # fmt: skip
PAGES: dict[str, tuple[Table, ...]] = {
    "summary": (_BUSY, _UNDERUSED, _STEPS),
    "operators": (_BY_OPERATOR,),
    "communication": (_COLLECTIVES,),
    "roofline": (_ROOFLINE,),
    "memory": (_MEMORY, _MEMORY_RANKS, _ON_CHIP),
    "schedule": (_STAGES,),
}


def page(name: str, results: Results) -> list[Any]:
    """The tables of a page, each under its sentence."""
    return [part for one in PAGES.get(name, ()) for part in _part(results[one.analyzer][one.name], one)]


def _part(table: "pd.DataFrame", about: Table) -> list[Any]:
    cut = f" The first {MOST_ROWS:,} of {len(table):,} rows." if len(table) > MOST_ROWS else ""
    none = " There are none in this trace." if table.empty else ""
    text = sentence(about.sentence + cut + none)
    return [text] if table.empty else under(text, data_table(table.head(MOST_ROWS), about.columns), about.name)


def under(text: "Div", table: "DataTable", name: str) -> list[Any]:
    """A table under its sentence, with a button that saves it as NAME.csv."""
    from bokeh.layouts import row
    from bokeh.models import Button, CustomJS

    button = Button(label="CSV", width=48, stylesheets=[look.BUTTON_CSS])
    code = look.script("csv.js", then="saveTable(name, table)")
    button.js_on_click(CustomJS(args={"name": name, "table": table}, code=code))
    text.sizing_mode = "stretch_width"
    return [row(text, button, sizing_mode="stretch_width"), table]


def sentence(text: str) -> "Div":
    """A few words above something; names of files and the like are no markup."""
    from bokeh.models import Div

    return Div(text=html.escape(text), stylesheets=[look.SENTENCE_CSS], disable_math=True)


def data_table(table: "pd.DataFrame", shown: Sequence[Shown]) -> "DataTable":
    """A sortable table."""
    from bokeh.models import ColumnDataSource, DataTable, TableColumn

    data: dict[str, Any] = {}
    columns = []
    for one in shown:
        values = table[one.name]
        data[one.name] = (
            values.fillna("").astype(str).to_numpy(object) if one.kind == "text" else values.to_numpy(float)
        )
        unit = [_UNITS[one.kind]] if one.kind in _UNITS else []
        columns.append(
            TableColumn(field=one.name, title=one.heading, width=one.width, formatter=_formatter(one.kind), tags=unit)
        )
    numeric = [place for place, one in enumerate(shown, 1) if one.kind != "text"]
    return DataTable(
        source=ColumnDataSource(data),
        columns=columns,
        height=_ROW * (min(len(table), _MOST_SHOWN) + 1) + 8,
        row_height=_ROW,
        index_position=None,
        reorderable=False,
        sizing_mode="stretch_width",
        stylesheets=[look.TABLE_CSS, look.headings_right(numeric)],
    )


def _formatter(kind: str) -> "CellFormatter":
    """How the values of a column are printed: each quantity in the unit that fits it; the template sees numbers only."""
    from bokeh.models import HTMLTemplateFormatter, NumberFormatter, StringFormatter

    if kind == "text":
        return StringFormatter()
    if kind in _FORMATS:
        return NumberFormatter(format=_FORMATS[kind], text_align="right", nan_format="")
    printed = look.script("format.js", then="")
    return HTMLTemplateFormatter(
        template=f"<% {printed} %><span class=quantity><%= isNaN(value) ? '' : {_PRINTED[kind]} %></span>"
    )
