"""The chips of a job in their UltraServers, coloured by what one chooses; a click asks the page for a chip's first rank."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof import units
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    from bokeh.models import UIElement
    from bokeh.plotting import figure as Figure

    from neuronprof.analyze.places import Measured, Plan, Topology

_HEIGHT = 460
_FEW = 64  # UltraServers that are named


def sentence(topology: "Topology", plan: "Plan", metadata: Mapping[str, Any]) -> str:
    """How the chips of the job are joined, with the machine's numbers."""
    machine = metadata.get("machine") or {}
    known = machine.get("quantities") or {}
    chips, servers = -(-int(metadata["world_size"]) // topology.ranks_per_chip), len(plan.servers)
    how = "in squares of 4 x 4 that are tori" if topology.shape == "torus" else "all to all behind switches"
    speeds = {name: (known.get(f"{name}.bandwidth") or {}).get("value") for name in ("neuronlink", "efa")}
    a_chip = {name: f" at {units.count(value, 'B/s')} a chip" if value else "" for name, value in speeds.items()}
    used = f"{chips:,} {'chip' if chips == 1 else 'chips'} in {servers:,} of these"
    return (
        f"{server(machine)}s of {topology.domain} chips, {how}{a_chip['neuronlink']}, joined by EFA{a_chip['efa']}; the job has {used}. "
        "A click opens the first rank of a chip."
    )


def server(machine: Mapping[str, Any]) -> str:
    """What chips that NeuronLink joins are called."""
    chip = str(machine.get("chip") or "")
    if chip.startswith("trainium1"):
        return "Instance"
    return "UltraServer" if chip.startswith("trainium") else "NeuronLink domain"


def figure(topology: "Topology", plan: "Plan", measured: Mapping[str, "Measured"], name: str) -> "UIElement":
    """The picture with the choice of what it shows.

    Args:
        topology: from `Topology.of`.
        plan: from `plan`.
        measured: from `measures`, at least one.
        name: what an UltraServer is called.
    """
    from bokeh.layouts import column
    from bokeh.models import ColumnDataSource, CustomJS, LinearColorMapper, Select
    from bokeh.palettes import Cividis256

    values = {what: _padded(one.values, len(plan.chip)) for what, one in measured.items()}
    chips = len(next(iter(measured.values())).values)
    first = max(
        measured, key=lambda what: np.count_nonzero(~np.isnan(measured[what].values))
    )  # what is known of most chips
    extents = {what: look.extent(one.values) for what, one in measured.items()}
    low, high = extents[first]
    mapper = LinearColorMapper(palette=list(Cividis256), low=low, high=high, nan_color="rgba(0, 0, 0, 0)")
    source = ColumnDataSource({"x": plan.x, "y": plan.y, "chip": plan.chip, "server": plan.server, "value": values[first]})  # fmt: skip
    about = {
        "kinds": {what: one.kind for what, one in measured.items()}, "chips": chips, "ranks": topology.ranks_per_chip,
        "domain": topology.domain, "server": name,
    }  # fmt: skip
    choice = Select(value=first, options=list(values), width=260, stylesheets=[look.CONTROL_CSS], name="chips by")
    plot = _plot(plan, source, mapper, {"about": about, "choice": choice})
    choice.js_on_change("value", CustomJS(
        args={"source": source, "kept": ColumnDataSource(values), "mapper": mapper, "extents": extents},
        code="const [low, high] = extents[this.value]\nsource.data = {...source.data, value: kept.data[this.value]}\n"
             "mapper.setv({low, high})",
    ))  # fmt: skip
    _name(plot, plan, name)
    return column(choice, plot, sizing_mode="stretch_width")


def _padded(values: "np.typing.NDArray[np.float32]", length: int) -> "np.typing.NDArray[np.float32]":
    """With places that the job does not use."""
    return np.concatenate([values, np.full(length - len(values), np.nan, np.float32)])


def _plot(plan: "Plan", source: Any, mapper: Any, args: Mapping[str, Any]) -> "Figure":
    from bokeh.models import ColorBar, CustomJS, CustomJSHover, DataRange1d, HoverTool
    from bokeh.plotting import figure as new_figure

    plot = new_figure(
        x_range=DataRange1d(range_padding=0.01), y_range=DataRange1d(flipped=True, range_padding=0.01), match_aspect=True, height=_HEIGHT,
        sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,save,tap", name="topology", lod_threshold=None,
    )  # fmt: skip
    look.apply(plot, 10)
    plot.axis.visible, plot.grid.visible = False, False
    left, top, right, bottom = plan.servers.T
    plot.quad(left=left, right=right, top=top, bottom=bottom, fill_color=None, line_color=tracks.GREY, line_alpha=0.6)
    if len(plan.links):
        x0, y0, x1, y1 = plan.links.T
        plot.segment(x0, y0, x1, y1, line_color=tracks.GREY, line_alpha=0.6)
    drawn = plot.rect("x", "y", 0.86, 0.86, source=source, fill_color={"field": "value", "transform": mapper}, line_alpha=0.35,
                      line_color=tracks.GREY if len(plan.servers) <= _FEW else None, name="chips")  # fmt: skip
    told = CustomJSHover(
        args=args, code=look.script("format.js", "topology.js", then="return tell(value, about, choice.value, special_vars, format)")
    )  # fmt: skip
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=look.fields_tooltip("@value"), formatters={"@value": told}))
    plot.js_on_event(
        "tap", CustomJS(args={**args, "source": source}, code=look.script("topology.js", then="ask(cb_obj, source, about)"))
    )  # fmt: skip
    bar = ColorBar(color_mapper=mapper, width=10, label_standoff=6, border_line_color=None, background_fill_color=None,
                   major_label_text_font=look.FONT, major_label_text_font_size="11px", major_label_text_color=look.FAINT)  # fmt: skip
    look.scale(bar, "return printed(tick, about.kinds[choice.value])", "topology.js", **args)
    plot.add_layout(bar, "right")
    return plot


def _name(plot: "Figure", plan: "Plan", name: str) -> None:
    """What each is called, where there are few enough to be read."""
    from bokeh.core.properties import value

    if len(plan.servers) <= _FEW:
        words = [f"{name} {number}" for number in range(len(plan.servers))]
        plot.text(plan.servers[:, 0] + 0.3, plan.servers[:, 1] + 0.8, words, text_font=value(look.FONT), text_color=tracks.GREY,
                  text_font_size="11px", text_baseline="middle")  # fmt: skip
