"""Operators under the roofs of the machine: FLOPs per byte against FLOP/s, both logarithmic."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof import units
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.plotting import figure as Figure

_HOVER = (
    ("Operator", "@op_name"), ("Layer", "@layer"), ("Phase", "@phase"), ("Type", "@dtype"), ("Time", "@time"),
    ("FLOPs per byte", "@intensity{0.[00]}"), ("Achieved", "@achieved"), ("Of roof", "@of_roof"), ("Bound by", "@bound"),
)  # fmt: skip
_SMALLEST, _LARGEST = 5, 26  # points, of the operator with the longest time
_DECADE = 10**0.5  # free around what is drawn
_DASHES = {"fp8": "dotted", "bf16": "solid", "fp32": "dashed"}
_MOST = 2000  # operators; they come sorted by time


def figure(table: "pd.DataFrame", machine: Mapping[str, Any]) -> "Figure":
    """The roofline of a trace.

    Args:
        table: `roofline` of the analyzers.
        machine: `machine.rank` of the metadata: peak_flops by type, FLOP/s, and hbm_bandwidth, B/s; without them there are no roofs.
    """
    from bokeh.plotting import figure

    points = _points(table)
    plot = figure(
        x_axis_type="log", y_axis_type="log", height=440, sizing_mode="stretch_width", name="roofline",
        tools="pan,wheel_zoom,box_zoom,reset,save", x_axis_label="FLOPs per byte of HBM traffic", y_axis_label="FLOP/s",
    )  # fmt: skip
    look.apply(plot, 70)
    look.scale(plot.yaxis, "return count(tick, '')")
    look.name_axes(plot)
    _roofs(plot, points, machine)
    _operators(plot, points)
    if plot.legend:
        plot.legend.location, plot.legend.click_policy = "bottom_right", "hide"
        look.legend(plot)
    return plot


def _points(table: "pd.DataFrame") -> "pd.DataFrame":
    """The operators that have a place, with what the hover says of them."""
    shown = table[(table["intensity"] > 0) & (table["flops_per_second"] > 0)].head(_MOST)
    time = shown["time_ns"].to_numpy(float)
    return shown.assign(
        size=_SMALLEST + (_LARGEST - _SMALLEST) * np.sqrt(time / max(time.max(initial=0.0), 1.0)),
        time=[units.time(ns) for ns in time],
        achieved=[units.count(rate, "FLOP/s") for rate in shown["flops_per_second"]],
        of_roof=["" if share != share else units.percent(share) for share in shown["roof_share"]],
    )


def _roofs(plot: "Figure", points: "pd.DataFrame", machine: Mapping[str, Any]) -> None:
    """What memory lets through and what the tensor engine can do in each type; each roof ends where another one is lower."""
    peaks, bandwidth = machine.get("peak_flops") or {}, float(machine.get("hbm_bandwidth") or 0)
    known = {kind: float(peak) for kind, peak in peaks.items() if peak}
    if not known or not bandwidth:
        return
    ridges = [peak / bandwidth for peak in known.values()]
    low = min(points["intensity"].min(), min(ridges)) if len(points) else min(ridges)
    high = max(points["intensity"].max(), max(ridges)) if len(points) else max(ridges)
    low, high = low / _DECADE, high * _DECADE
    top = max(known.values())
    plot.line([low, top / bandwidth], [low * bandwidth, top], line_color=look.LIMIT, line_width=1.5,
              legend_label=f"HBM {units.count(bandwidth, 'B/s')}")  # fmt: skip
    for kind, peak in sorted(known.items(), key=lambda pair: -pair[1]):
        plot.line([peak / bandwidth, high], [peak, peak], line_color=look.LIMIT, line_dash=_DASHES.get(kind, "dashdot"), line_width=1.5,
                  legend_label=f"{kind.upper()} {units.count(peak, 'FLOP/s')}")  # fmt: skip


def _operators(plot: "Figure", points: "pd.DataFrame") -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    columns = [*(field.strip("@").partition("{")[0] for _, field in _HOVER), "flops_per_second", "size"]
    drawn = []
    for phase in sorted(points["phase"].unique(), key=tracks.phase_order):
        source = ColumnDataSource({name: points[points["phase"] == phase][name].to_numpy() for name in columns})
        colour = tracks.PALETTE[tracks.phase_colour(phase)]
        drawn.append(
            plot.scatter("intensity", "flops_per_second", size="size", source=source, fill_color=colour, fill_alpha=0.55,
                         line_color=colour, legend_label=look.plain(phase) or "no phase", name="operators")
        )  # fmt: skip
    plot.add_tools(HoverTool(renderers=drawn, tooltips=list(_HOVER)))
