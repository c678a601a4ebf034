"""The picture of a sweep: what a faster step costs in HBM, a point a layout."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError
from neuronprof.view import look, tracks

if TYPE_CHECKING:
    import pandas as pd

_FITS = "fits"
_COLOURS = (
    tracks.BLUE,
    tracks.ORANGE,
    tracks.GREEN,
    tracks.VERMILLION,
    tracks.PURPLE,
    tracks.SKY,
    tracks.WINE,
    tracks.YELLOW,
)
_HOVER = (
    ("layout", "dp @dp, tp @tp, pp @pp, cp @cp, vp @vp, zero @zero"),
    ("run", "recompute @recompute, fp8 @fp8, fp32 gradients @fp32_gradients"),
    ("micro-batches", "@passes"),
    ("step", "@step"),
    ("HBM peak", "@peak"),
    ("MFU", "@share"),
    ("exposed communication", "@exposed"),
    ("bubble", "@bubble"),
    ("USD a million tokens", "@cost_per_million_tokens{0.0000}"),
)


def write(table: "pd.DataFrame", output: Path, title: str) -> None:
    """Writes the picture as one page that needs no network.

    Args:
        table: of `pipeline.sweep.sweep`.
        output: the page.
        title: what was laid out on what.

    Raises:
        NeuronprofError: the page cannot be written.
    """
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    text = file_html(figure(table, title), INLINE, title=f"{title} · neuronprof")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NeuronprofError(f"Cannot write {output}: {error.strerror or error}.") from error


def figure(table: "pd.DataFrame", title: str) -> Any:
    """Step time against HBM peak of what fits, one colour a number of pipeline stages; the Pareto front joined by a line."""
    from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure as new_figure

    fitting = _shown(table[table["status"] == _FITS])
    plot = new_figure(
        title=f"{title}: step time against HBM, {len(fitting)} of {len(table)} layouts fit",
        width=1000, height=600, sizing_mode="stretch_width", x_axis_label="HBM peak of a rank (GiB)", y_axis_label="step time (s)",
        tools="pan,wheel_zoom,box_zoom,reset,save",
    )  # fmt: skip
    look.apply(plot, 60)
    plot.yaxis.formatter = NumeralTickFormatter(format="0[.]00")
    front = fitting[fitting["pareto"]].sort_values("x")
    plot.step(
        front["x"], front["y"], mode="after", line_color=look.FAINT, line_dash="dashed", legend_label="Pareto front"
    )
    points = []
    for number, stages in enumerate(sorted(set(map(int, fitting["pp"])))):
        rows, colour = fitting[fitting["pp"] == stages], _COLOURS[number % len(_COLOURS)]
        points.append(
            plot.scatter(
                "x", "y", source=ColumnDataSource(rows), size="size", marker="circle", fill_color=colour, line_color=look.INK,
                fill_alpha=0.8, legend_label=f"{stages} pipeline stage{'s' if stages > 1 else ''}",
            )
        )  # fmt: skip
    if len(fitting):
        best = fitting.iloc[:1]
        plot.scatter(best["x"], best["y"], marker="star", size=22, color=look.LIMIT, legend_label="fastest")
    plot.add_tools(HoverTool(renderers=points, tooltips=list(_HOVER)))
    plot.legend.location, plot.legend.click_policy = "top_right", "hide"
    return plot


def _shown(fitting: "pd.DataFrame") -> "pd.DataFrame":
    """What the picture and its hover texts need."""
    step = fitting["step_time_ns"]
    return fitting.assign(
        x=fitting["hbm_peak_bytes"] / 2**30,
        y=step / 1e9,
        size=[14 if front else 9 for front in fitting["pareto"]],
        passes=fitting["microbatches"] * fitting["accumulate"],
        step=[units.time(ns) for ns in step],
        peak=[units.size(nbytes) for nbytes in fitting["hbm_peak_bytes"]],
        share=[units.percent(mfu) for mfu in fitting["mfu"]],
        exposed=[units.percent(share) for share in fitting["exposed_ns"] / step],
        bubble=[units.percent(share) for share in fitting["bubble_ns"] / step],
    )
