"""All ranks of a job over its steps, by what one chooses to see; a click asks the page for the rank's timeline.

A step is one unit wide, a row one unit high, around the places of their labels. Where a job has more ranks than a screen has rows, as many
as needed stand side by side in a row, in each step.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.view import look

if TYPE_CHECKING:
    from bokeh.models import CustomJS, UIElement

    from neuronprof.analyze.everyrank import Map

_ROWS = 256  # at most
_LOWEST, _HIGHEST = 150, 520  # pixels


def figure(found: "Map") -> "UIElement":
    """The map with the choice of what it shows.

    Args:
        found: from `everyrank.over_steps`; with at least one rank.
    """
    from bokeh.layouts import column
    from bokeh.models import ColumnDataSource, CustomJS, LinearColorMapper, Range1d, Select
    from bokeh.palettes import Cividis256
    from bokeh.plotting import figure as new_figure

    across = beside(len(found.ranks))
    rows = -(-len(found.ranks) // across)
    images = {name: [_folded(values, across)] for name, values in found.values.items()}
    first = next(iter(images))
    source = ColumnDataSource({"image": images[first]})
    extents = {name: look.extent(image) for name, [image] in images.items()}
    low, high = extents[first]
    mapper = LinearColorMapper(palette=list(Cividis256), low=low, high=high, nan_color="rgba(0, 0, 0, 0)")
    plot = new_figure(
        x_range=Range1d(-0.5, len(found.steps) - 0.5, bounds="auto"), y_range=Range1d(rows - 0.5, -0.5, bounds="auto"),
        height=int(np.clip(22 * rows + 60, _LOWEST, _HIGHEST)), sizing_mode="stretch_width", name="rank map",
        tools="pan,wheel_zoom,box_zoom,reset,save,tap", x_axis_label="step" + (f", {across} ranks beside each other" if across > 1 else ""),
        y_axis_label="rank",
    )  # fmt: skip
    look.apply(plot, 70)
    look.name_axes(plot)
    plot.grid.visible = False
    drawn = plot.image("image", x=-0.5, y=-0.5, dw=len(found.steps), dh=rows, source=source, color_mapper=mapper)
    about = {"ranks": found.ranks, "steps": found.steps, "beside": across}
    _axes(plot, about)
    _bar(plot, mapper)
    _hover(plot, drawn, about)
    plot.js_on_event("tap", _script(about, "ask(cb_obj, about)"))
    choice = Select(value=first, options=list(images), width=260, stylesheets=[look.CONTROL_CSS], name="measure")
    choice.js_on_change("value", CustomJS(
        args={"source": source, "kept": ColumnDataSource(images), "mapper": mapper, "extents": extents},
        code="source.data = {image: kept.data[this.value]}\nconst [low, high] = extents[this.value]\nmapper.setv({low, high})",
    ))  # fmt: skip
    return column(choice, plot, sizing_mode="stretch_width")


def beside(ranks: int) -> int:
    """How many ranks stand side by side: a power of two, as jobs have groups of."""
    return 1 << max(0, (max(1, ranks) - 1) // _ROWS).bit_length()


def _folded(values: NDArray[np.float32], beside: int) -> NDArray[np.float32]:
    """(R, S) as the picture: a row holds `beside` ranks for each step."""
    ranks, steps = values.shape
    rows = -(-ranks // beside)
    full = np.full((rows * beside, steps), np.nan, np.float32)
    full[:ranks] = values
    return np.ascontiguousarray(full.reshape(rows, beside, steps).transpose(0, 2, 1).reshape(rows, steps * beside))


def _script(about: dict[str, Any], then: str) -> "CustomJS":
    from bokeh.models import CustomJS

    return CustomJS(args={"about": about}, code=look.script("format.js", "heatmap.js", then=then))


def _axes(plot: Any, about: dict[str, Any]) -> None:
    from bokeh.models import CustomJSTickFormatter

    for axis, code in ((plot.xaxis, "about.steps[tick] ?? ''"), (plot.yaxis, "about.ranks[tick * about.beside] ?? ''")):
        axis.formatter = CustomJSTickFormatter(args={"about": about}, code=f"return {code}")
        axis.ticker.min_interval = 1


def _bar(plot: Any, mapper: Any) -> None:
    from bokeh.models import ColorBar

    bar = ColorBar(color_mapper=mapper, width=10, label_standoff=6, border_line_color=None, background_fill_color=None,
                   major_label_text_font=look.FONT, major_label_text_font_size="11px", major_label_text_color=look.FAINT)  # fmt: skip
    look.scale(bar, "return time(tick)")
    plot.add_layout(bar, "right")


def _hover(plot: Any, drawn: Any, about: dict[str, Any]) -> None:
    from bokeh.models import CustomJSHover, HoverTool

    code = look.script("format.js", "heatmap.js", then="return tell(special_vars, about, value, format)")
    cell = CustomJSHover(args={"about": about}, code=code)
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=look.fields_tooltip("@image"), formatters={"@image": cell}))
