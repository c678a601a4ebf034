"""The page of a trace: one file that needs no network, with what the analyzers found around the timeline."""

import math
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError
from neuronprof.view import terminal, tracks
from neuronprof.view.tables import tabs
from neuronprof.view.timeline import choose_ranks, timeline

if TYPE_CHECKING:
    from neuronprof.analyze.summary import Summary
    from neuronprof.trace.reader import TraceFile

_SPLIT_COLOURS = {
    "tensor": tracks.BLUE,
    "vector": tracks.ORANGE,
    "scalar": tracks.GREEN,
    "gpsimd": tracks.PURPLE,
    "hbm": tracks.SKY,
    "neuronlink": tracks.VERMILLION,
    "waiting": tracks.YELLOW,
    "host": tracks.WINE,
    "idle": tracks.PALE,
}
_BOUND = {
    "tensor": "Tensor engine",
    "vector": "Vector engine",
    "scalar": "Scalar engine",
    "gpsimd": "GpSimd engine",
    "hbm": "HBM",
    "neuronlink": "Exposed communication",
    "waiting": "Waiting for peers",
    "host": "Host",
    "idle": "Idle",
}


def write(trace: "TraceFile", output: str | Path, rank: int | None = None) -> Path:
    """Writes the page of a trace; a page that exists is replaced only when the new one is complete.

    Args:
        trace: an opened trace.
        output: the page, *.html.
        rank: the rank to show; None for as many as a page holds.

    Raises:
        NeuronprofError: the output is no page, or cannot be written, or the trace cannot be shown.
    """
    output = check_output(output)
    choose_ranks(trace, rank)
    return save(render(trace, rank), output)


def save(text: str, output: Path) -> Path:
    """Writes a page under a name of its own and then gives it its name.

    Raises:
        NeuronprofError: it cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        raise NeuronprofError(f"Cannot write {output}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_output(output: str | Path) -> Path:
    """The output as a path, before any work is done for it.

    Raises:
        NeuronprofError: it does not end in .html, its folder does not exist, or it cannot be written there.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise NeuronprofError(f"'{output}' is not the name of a page; end it in .html.")
    if output.is_dir():
        raise NeuronprofError(f"{output} is a folder; give the name of a page in it.")
    if not output.parent.is_dir():
        raise NeuronprofError(f"The folder {output.parent} does not exist; make it, or choose another with -o.")
    if not os.access(output.parent, os.W_OK):
        raise NeuronprofError(f"The folder {output.parent} cannot be written to; choose another with -o.")
    return output


def render(trace: "TraceFile", rank: int | None = None) -> str:
    """The page as text."""
    import jinja2
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    from neuronprof.analyze import analyzer, registry, summary

    results = analyzer.run(trace, registry.ANALYZERS)
    figures = summary.pick(trace, results)
    folder = files("neuronprof.view")
    css, script, html = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html"))
    # Names of layers and scripts are the trace's: whatever the template does not mark as its own is escaped.
    template = jinja2.Environment(autoescape=True).from_string(html)
    return file_html(
        [timeline(trace, rank), tabs(results)],
        INLINE,
        title=f"{figures.script or trace.path.name} · neuronprof",
        template=template,
        template_variables={"heading": _heading(figures), "css": css, "page_js": script},
    )


def _heading(figures: "Summary") -> dict[str, Any]:
    ranks = (
        f"{figures.ranks} of {figures.world_size} ranks"
        if figures.world_size > figures.ranks
        else _plural(figures.ranks, "rank")
    )
    where = [figures.machine, _plural(figures.steps, "step"), ranks, _plural(figures.events, "event")]
    if figures.partial:
        where.append("the recording did not end")
    return {
        "name": figures.script or figures.trace,
        "where": " · ".join(filter(None, where)),
        "figures": _figures(figures),
        "split": _split(figures),
        "costs": [
            {
                "time": units.time(c.time_ns),
                "share": units.percent(c.share),
                "what": terminal.describe(c),
                "advice": c.advice,
            }
            for c in figures.costs
        ],
        "remarks": _remarks(figures),
    }


def _figures(figures: "Summary") -> list[tuple[str, str, str]]:
    """Label, value, note of what stands at the top; what the trace does not tell is left out."""
    of = "" if math.isnan(figures.capacity_bytes) else f"of {units.size(figures.capacity_bytes)}"
    known = [
        ("Step time", figures.step_time_ns, units.time, ""),
        ("MFU", figures.mfu, units.percent, ""),
        ("HFU", figures.hfu, units.percent, ""),
        ("MBU", figures.mbu, units.percent, ""),
        ("HBM peak", figures.peak_bytes, units.size, of),
        ("Exposed communication", figures.exposed_ns, units.time, "a step"),
    ]
    return [(label, form(value), note) for label, value, form, note in known if not math.isnan(value)]


def _split(figures: "Summary") -> list[dict[str, Any]]:
    """What bounds the step, largest part first."""
    if not figures.step_time_ns > 0:
        return []
    parts = sorted(((time, name) for name, time in figures.split.items() if time > 0), reverse=True)
    return [
        {
            "name": _BOUND[name],
            "share": units.percent(time / figures.step_time_ns),
            "weight": round(time / figures.step_time_ns, 5),
            "colour": _SPLIT_COLOURS.get(name, tracks.GREY),
        }
        for time, name in parts
    ]


def _remarks(figures: "Summary") -> list[str]:
    told = (
        ("Softened to record", figures.notes),
        ("Operators without a cost rule, costed by their bytes", figures.unknown_operators),
    )
    return [f"{what}: " + ", ".join(f"{name} ({n:,})" for name, n in counts.items()) for what, counts in told if counts]


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
