"""How the figures look: one font, few lines, labels that line up."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure
    from numpy.typing import NDArray

FONT = "Inter, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, FAINT, LINE, PAPER = "#1b2330", "#667080", "#e4e7ec", "#ffffff"
# In style sheets the same colours follow the page, which has others where dark is preferred; a notebook keeps these.
_INK, _FAINT, _LINE, _PAPER = (
    f"var(--ink, {INK})",
    f"var(--faint, {FAINT})",
    f"var(--line, {LINE})",
    f"var(--paper, {PAPER})",
)
LIMIT = "#b42318"
TOOLBAR = 40  # right of the plots

_ARROW = "<svg viewBox='0 0 25 20' xmlns='http://www.w3.org/2000/svg'><path d='M 0,0 25,0 12.5,20 Z' fill='%23808896'/></svg>"
CONTROL_CSS = f"""
:host {{ margin: 0 8px 0 0; }}
.bk-input {{
  font: 500 calc(12px * var(--scale, 1)) {FONT}; color: {_INK}; height: calc(28px * var(--scale, 1)); padding: 2px 26px 2px 10px;
  border: 1px solid {_LINE}; border-radius: 6px; background-color: {_PAPER};
}}
select.bk-input.bk-input {{ background-image: url("data:image/svg+xml;utf8,{_ARROW}"); height: calc(28px * var(--scale, 1)); }}
"""

BUTTON_CSS = f"""
:host {{ zoom: var(--page-scale, 1); margin: 4px 5px 4px auto; }}
.bk-btn.bk-btn {{
  font: 500 12px {FONT}; color: {_INK}; height: 24px; padding: 0 8px; border: 1px solid {_LINE}; border-radius: 6px; background: {_PAPER};
}}
"""
SENTENCE_CSS = f":host {{ font: calc(12px * var(--scale, 1))/1.5 {FONT}; color: {_FAINT}; margin: 8px 0 4px; }}"
TABS_CSS = f"""
.bk-header {{ border-bottom: 1px solid {_LINE}; }}
.bk-tab {{
  font: 500 calc(13px * var(--scale, 1)) {FONT}; color: {_FAINT}; padding: 6px 12px; border: none; border-bottom: 2px solid transparent;
}}
.bk-tab:focus {{ outline: none; }}
.bk-tab:focus-visible {{ outline: 2px solid #56b4e9; }}
.bk-tab.bk-active {{ color: {_INK}; background: none; border: none; border-bottom: 2px solid #0072b2; }}
"""
TABLE_CSS = f"""
:host {{ zoom: var(--page-scale, 1); font: 12px {FONT}; color: {_INK}; margin-bottom: 10px; }}
.slick-header-column.slick-header-column {{ font-weight: 600; color: {_FAINT}; background: {_PAPER}; border-right: none; }}
.slick-row.slick-row {{ background: {_PAPER}; color: {_INK}; }}
.slick-row.odd {{ background: var(--wash, #f6f7f9); }}
.slick-row.slick-row, .slick-header-column.slick-header-column {{ font-size: 12px; }}
.quantity {{ float: right; }}
.slick-cell.slick-cell {{ border: none; border-bottom: 1px solid {_LINE}; padding: 3px 6px; font-variant-numeric: tabular-nums;
  text-overflow: ellipsis; }}
"""


def script(*names: str, then: str) -> str:
    """JavaScript of the package's own files, followed by what to do with it."""
    folder = files("neuronprof.view")
    font = f"const FONT = {json.dumps(FONT)}"
    return "\n".join([font, *((folder / name).read_text(encoding="utf-8") for name in names), then])


def style(name: str) -> str:
    """One of the package's style sheets."""
    return (files("neuronprof.view") / name).read_text(encoding="utf-8")


def apply(plot: "Figure", gutter: int) -> None:
    """The common look of a plot over time."""
    plot.min_border_left = gutter
    plot.min_border_right = 10
    plot.min_border_top = plot.min_border_bottom = 4
    plot.outline_line_color = LINE
    plot.toolbar.logo = None
    plot.background_fill_color, plot.border_fill_color = PAPER, None
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = LINE
    plot.axis.axis_line_color = None
    plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = None
    plot.axis.major_label_text_font = FONT
    plot.axis.major_label_text_font_size = "11px"
    plot.axis.major_label_text_color = FAINT
    plot.xaxis.ticker.desired_num_ticks = 8


def bare(plot: "Figure") -> None:
    """Nothing but what is drawn in it."""
    plot.axis.visible = False
    plot.grid.visible = False
    plot.outline_line_color = None
    plot.min_border = 0
    plot.background_fill_color, plot.border_fill_color = PAPER, None


def label_axis(axis: Any) -> None:
    """An axis whose labels are names of rows."""
    axis.major_label_text_font_size = "12px"
    axis.major_label_text_color = INK
    axis.major_label_standoff = 10


def quantity_axis(plot: "Figure", label: str, code: str) -> None:
    """A value axis with few labels and the plot's name left of them."""
    from bokeh.models import FixedTicker

    plot.xaxis.visible = False
    plot.yaxis.ticker = FixedTicker(ticks=[])
    scale(plot.yaxis, code)
    plot.yaxis.axis_label = label
    plot.yaxis.axis_label_orientation = "horizontal"
    name_axes(plot)


def plain(text: str) -> str:
    """A name from a trace as Bokeh's legends and axes print it: as it is, never as a formula."""
    return text.replace("$", "＄").replace("\\", "＼")


def scale(axis: Any, code: str, *names: str, **args: Any) -> None:
    """An axis whose ticks are printed by JavaScript that may use format.js, more files of the package, and models by name."""
    from bokeh.models import CustomJSTickFormatter

    axis.formatter = CustomJSTickFormatter(args=args, code=script("format.js", *names, then=code))


def time_axis(plot: "Figure") -> None:
    """Ticks of an axis of time, with as many decimals as the distance between them needs."""
    step = "const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : 1\n"
    scale(plot.xaxis, f"{step}return instant(tick, step, Math.max(...ticks.map(Math.abs)))")


def name_axes(plot: "Figure") -> None:
    """The look of what axes are called."""
    plot.axis.axis_label_text_font = FONT
    plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_color = INK


def legend(plot: "Figure") -> None:
    """The look of a legend inside a plot."""
    plot.legend.label_text_font, plot.legend.label_text_font_size, plot.legend.label_text_color = FONT, "11px", INK
    plot.legend.border_line_color, plot.legend.background_fill_color = None, PAPER
    plot.legend.background_fill_alpha, plot.legend.padding, plot.legend.spacing = 0.8, 4, 1


def legend_above(plot: "Figure") -> None:
    """A legend in a line above a plot, where there is something to tell."""
    if not plot.legend:
        return
    plot.add_layout(plot.legend[0], "above")
    legend(plot)
    plot.legend.orientation, plot.legend.spacing = "horizontal", 14


def headings_right(places: Sequence[int]) -> str:
    """Style that puts the headings of some columns, counted from 1, over right-aligned numbers."""
    return (
        ",".join(f".slick-header-column:nth-child({place}) .slick-column-name" for place in places)
        + "{ float: right; }"
    )


def extent(values: "NDArray[np.float32]") -> list[float]:
    """What a scale of colours spans, smallest to largest: what differs by little differs in colour. From 0 where all are the same."""
    import numpy as np

    low, high = float(np.nanmin(values, initial=np.inf)), float(np.nanmax(values, initial=0))
    return [low if low < high else 0.0, high or 1.0]


def limit(plot: "Figure") -> dict[str, Any]:
    """A dashed line that the machine cannot exceed, and a few words at the left edge, just above a value."""
    from bokeh.models import Label, Span

    line = {"line_color": LIMIT, "line_dash": [5, 4], "line_width": 1, "line_alpha": 0.8}
    span = Span(location=0, dimension="width", visible=False, **line)
    font = {"text_font": FONT, "text_font_size": "11px", "text_color": FAINT, "text_baseline": "bottom"}
    note = Label(x=6, y=0, x_units="screen", text="", y_offset=1, visible=False, **font)
    plot.add_layout(span)
    plot.add_layout(note)
    return {"limit": span, "note": note}


def keys(plot: "Figure") -> "ColumnDataSource":
    """What the layers of a stack are, in a line at its top right; the page puts names and colours in, x in pixels.

    Bokeh's own legend is made of elements that it builds anew at every change of the data.
    """
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, Range1d

    source = ColumnDataSource({name: [] for name in ("x", "text_x", "text", "colour")})
    plot.extra_x_ranges, plot.extra_y_ranges = {"pixels": Range1d(0, 1)}, {"whole": Range1d(0, 1)}
    place = {"source": source, "x_range_name": "pixels", "y_range_name": "whole", "level": "annotation"}
    font = {"text_font": value(FONT), "text_font_size": "11px", "text_baseline": "middle", "text_color": INK}
    plot.scatter("x", 0.9, size=10, marker="square", fill_color="colour", line_color=None, **place)
    plot.text("text_x", 0.9, "text", name="layer names", **font, **place)
    return source


def value_tooltip(label: str) -> str:
    """What a plot shows under the pointer: its value, which is the field y, and the time, which is x."""
    cells = "".join(
        f'<span style="color:{FAINT}">{name}</span><span style="white-space:pre">{field}</span>'
        for name, field in ((label, "@y{custom}"), ("At", "@x{custom}"))
    )
    return f'<div style="{_TIP}"><div style="{_GRID}">{cells}</div></div>'


def fields_tooltip(field: str) -> str:
    """A title over a column of labels and one of values, all of them formats of one field: Bokeh puts those in as text."""
    columns = (
        f'<span style="white-space:pre;color:{FAINT}">{field}{{labels}}</span>'
        f'<span style="white-space:pre">{field}{{values}}</span>'
    )
    return (
        f'<div style="{_TIP}"><div style="font-weight:600;margin-bottom:4px">{field}{{title}}</div>'
        f'<div style="{_GRID}">{columns}</div></div>'
    )


_TIP = f"font:12px/1.5 {FONT};color:{INK};padding:2px 4px".replace('"', "'")
_GRID = "display:grid;grid-template-columns:max-content auto;column-gap:14px"
