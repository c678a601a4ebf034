"""The page of a trace: one file that needs no network, or one that asks the server; the same pages around the same timeline."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError
from neuronprof.view import figures, heading, look, sheets, timeline

if TYPE_CHECKING:
    from bokeh.models import UIElement
    from bokeh.resources import Resources

    from neuronprof.analyze.kept import Kept
    from neuronprof.trace.reader import TraceFile

ENDINGS = (".html", ".htm")
SERVER = "ask/"  # where the served page asks
_SCRIPTS = (
    "format.js",
    "about.js",
    "served.js",
    "dress.js",
    "page.js",
    "sheets.js",
    "csv.js",
    "tree.js",
    "keys.js",
    "choosetracks.js",
    "pane.js",
    "search.js",
    "overlays.js",
)


def write(traces: "TraceFile | Sequence[TraceFile]", output: str | Path, rank: int | None = None) -> Path:
    """Writes the page of a trace, or of several that are compared; a page that exists is replaced only when the new one is complete.

    Args:
        traces: opened traces.
        output: the page, *.html.
        rank: the rank to show; None for as many as a page holds.

    Raises:
        NeuronprofError: the output is no page, or cannot be written, or the trace cannot be shown.
    """
    output = check_output(output)
    traces = list(traces) if isinstance(traces, Sequence) else [traces]
    for trace in traces:
        timeline.choose_ranks(trace, rank)
    return save(render(traces, rank), output)


def save(content: str | bytes, output: Path) -> Path:
    """Writes a page or picture under a name of its own and then gives it its name.

    Raises:
        NeuronprofError: it cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(output)
    except OSError as error:
        raise NeuronprofError(f"Cannot write {output}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_output(output: str | Path, endings: Sequence[str] = ENDINGS) -> Path:
    """The output as a path, before any work is done for it.

    Raises:
        NeuronprofError: it does not end as it should, its folder does not exist, or it cannot be written there.
    """
    output = Path(output)
    if output.suffix.lower() not in endings:
        raise NeuronprofError(f"'{output}' is not the name of a page or picture; end it in {' or '.join(endings)}.")
    if output.is_dir():
        raise NeuronprofError(f"{output} is a folder; give the name of a page in it.")
    if not output.parent.is_dir():
        raise NeuronprofError(f"The folder {output.parent} does not exist; make it, or choose another with -o.")
    if not os.access(output.parent, os.W_OK):
        raise NeuronprofError(f"The folder {output.parent} cannot be written to; choose another with -o.")
    return output


def render(traces: Sequence["TraceFile"], rank: int | None = None) -> str:
    """The page as text, with everything in it."""
    from bokeh.resources import INLINE, Resources

    from neuronprof.analyze import registry
    from neuronprof.analyze.bottlenecks import Bottlenecks

    found = sheets.find(traces[0])
    names = sheets.SHEETS
    if len(traces) > 1:
        results = [found.tables, *(registry.run(trace, [Bottlenecks()]) for trace in traces[1:])]
        found, names = replace(found, differences=sheets.compare(traces, results)), (*names, sheets.COMPARE)
    items = {name: _inside_script(sheets.item(name, found)) for name in names}
    tables = Resources(mode="inline", components=["bokeh-tables"]).js_raw
    return _html(traces, timeline.embedded(traces, rank), INLINE, items=items, scripts=tables)


def served(kept: Sequence["Kept"]) -> str:
    """The page that the server sends: only the timeline's frame; what is shown in it, and the other pages, it asks for."""
    from bokeh.resources import Resources

    traces = [one.trace for one in kept]
    segments = [segment for trace in traces for segment in trace.metadata.get("segments") or ()]
    extent = (min((s["start_ts"] for s in segments), default=0), max((s["end_ts"] for s in segments), default=0))
    shown = timeline.what(traces, [one.ranks for one in kept], extent)
    empty = not any(trace.num_events for trace in traces)
    root = figures.nothing() if empty else timeline.layout(shown, {"url": SERVER}, "phase")
    [tables] = Resources(mode="server", root_url="", components=["bokeh-tables"]).js_files
    return _html(traces, root, Resources(mode="server", root_url=""), server=SERVER, tables=tables)


def _html(traces: Sequence["TraceFile"], root: "UIElement", resources: "Resources", **variables: Any) -> str:
    import jinja2
    from bokeh.embed import file_html

    names = " and ".join(str(trace.metadata.get("script") or trace.path.name) for trace in traces)
    about = {
        "headings": [heading.title(trace) for trace in traces],
        "pages": sheets.pages(len(traces)),
        "css": look.style("page.css"),
        "page_js": "{" + look.script(*_SCRIPTS, then="begin()") + "}",
        "items": {},
        "scripts": [],
        **variables,
    }
    template = jinja2.Environment(autoescape=True).from_string(look.style("page.html"))
    title = f"{names} · neuronprof"
    text: str = file_html(root, resources, title=title, template=template, template_variables=about)
    return text


def _inside_script(json: str) -> str:
    """JSON in which nothing ends the script element around it."""
    return json.replace("<", "\\u003c")
