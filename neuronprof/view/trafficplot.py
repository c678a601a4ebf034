"""Who sends how much to whom: ranks against ranks."""

from typing import TYPE_CHECKING

import numpy as np

from neuronprof.view import look

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

    from neuronprof.analyze.pairs import Pairs

_LOWEST, _HIGHEST = 180, 560  # pixels


def figure(pairs: "Pairs") -> "Figure":
    """The matrix. pairs: from `pairs.matrix`, with at least one."""
    from bokeh.models import (
        ColorBar,
        ColumnDataSource,
        CustomJSHover,
        CustomJSTickFormatter,
        HoverTool,
        LogColorMapper,
        Range1d,
    )
    from bokeh.palettes import Cividis256
    from bokeh.plotting import figure as new_figure

    rows, columns = pairs.bytes.shape
    sent = np.where(pairs.bytes > 0, pairs.bytes, np.nan).astype(np.float32)
    most = float(np.nanmax(sent, initial=1.0))
    mapper = LogColorMapper(palette=list(Cividis256), low=min(float(np.nanmin(sent, initial=most)), most / 2), high=most,
                            nan_color="rgba(0, 0, 0, 0)")  # fmt: skip
    plot = new_figure(
        x_range=Range1d(-0.5, columns - 0.5, bounds="auto"), y_range=Range1d(rows - 0.5, -0.5, bounds="auto"),
        height=int(np.clip(18 * rows + 80, _LOWEST, _HIGHEST)), sizing_mode="stretch_width", name="traffic",
        tools="pan,wheel_zoom,box_zoom,reset,save", x_axis_label=_label("to rank", pairs.together[1]),
        y_axis_label=_label("from rank", pairs.together[0]),
    )  # fmt: skip
    look.apply(plot, 70)
    look.name_axes(plot)
    plot.grid.visible = False
    about = {"sources": pairs.sources, "destinations": pairs.destinations}
    for axis, ranks in ((plot.xaxis, "destinations"), (plot.yaxis, "sources")):
        axis.formatter = CustomJSTickFormatter(args=about, code=f"return {ranks}[tick] ?? ''")
        axis.ticker.min_interval = 1
    source = ColumnDataSource({"image": [sent]})
    drawn = plot.image("image", x=-0.5, y=-0.5, dw=columns, dh=rows, source=source, color_mapper=mapper)
    code = look.script("format.js", then=_TOLD)
    cell = CustomJSHover(args=about, code=code)
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=look.fields_tooltip("@image"), formatters={"@image": cell}))
    bar = ColorBar(color_mapper=mapper, width=10, label_standoff=6, border_line_color=None, background_fill_color=None,
                   major_label_text_font=look.FONT, major_label_text_font_size="11px", major_label_text_color=look.FAINT)  # fmt: skip
    look.scale(bar, "return size(tick)")
    plot.add_layout(bar, "right")
    return plot


_TOLD = """
const from = sources[Math.round(special_vars.y)], to = destinations[Math.round(special_vars.x)]
return {title: `${from} → ${to}`, labels: "Sent", values: isNaN(value) ? "nothing" : size(value)}[format]
"""


def _label(what: str, together: int) -> str:
    return f"{what}, {together} together" if together > 1 else what
