"""A page with the timelines of several traces one above the other; what one shows, all show."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuronprof import units
from neuronprof.view import page
from neuronprof.view.timeline import timeline

if TYPE_CHECKING:
    from bokeh.models import UIElement

    from neuronprof.analyze.compare import Difference
    from neuronprof.trace.reader import TraceFile


def sentence(difference: "Difference") -> str:
    """What a comparison found, in one line."""
    before, after = units.time(difference.before_ns), units.time(difference.after_ns)
    change = difference.difference_ns
    share = f" ({100 * change / difference.before_ns:+.1f} %)" if difference.before_ns else ""
    told = f"step time {before} -> {after}: {'+' if change > 0 else ''}{units.time(change)}{share}"
    if math.isnan(difference.noise_ns):
        return f"{told}; how much of it is noise is not known, as a trace has fewer than two steps"
    if difference.is_noise:
        return f"{told}, which is noise: the steps differ by {units.time(difference.noise_ns)} among themselves"
    return f"{told}, more than the noise of {units.time(difference.noise_ns)}"


def write(traces: Sequence["TraceFile"], differences: Sequence["Difference"], output: str) -> Path:
    """Writes the page; one that exists is replaced only when the new one is complete.

    Raises:
        NeuronprofError: the output is no page, cannot be written, or a trace cannot be shown.
    """
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.models import Div
    from bokeh.resources import INLINE

    path = page.check_output(output)
    lines = [Div(text=_escaped(f"{d.before} -> {d.after}: {sentence(d)}")) for d in differences]
    parts: list[UIElement] = []
    for trace in traces:
        parts += [Div(text=_escaped(str(trace.path))), timeline(trace)]
    _link(parts)
    text = file_html(
        column(*lines, *parts, sizing_mode="stretch_width"), INLINE, title="Traces side by side · neuronprof"
    )
    return page.save(text, path)


def _link(parts: Sequence["UIElement"]) -> None:
    """Makes the windows of all timelines one: they reach as far as the longest, and follow each other."""
    ranges = [plot.x_range for part in parts for plot in part.select({"name": "lanes"})]
    low, high = min((r.start for r in ranges), default=0), max((r.end for r in ranges), default=1)
    for own in ranges:
        own.bounds = (low, high)
        for other in ranges:
            if other is not own:
                own.js_link("start", other, "start")
                own.js_link("end", other, "end")


def _escaped(text: str) -> str:
    import html

    return html.escape(text)
