"""The page of a trace: one file that needs no network, or the document that the server fills; the same pages around the same timeline."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError
from neuronprof.view import heading, look, sheets, timeline

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.models import Column

    from neuronprof.analyze.kept import Kept
    from neuronprof.trace.reader import TraceFile

_SCRIPTS = ("format.js", "about.js", "page.js", "keys.js", "pane.js", "search.js", "overlays.js")
_POLL_MS = 300


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


def check_output(output: str | Path, endings: Sequence[str] = (".html", ".htm")) -> Path:
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
    """The page as text."""
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    found = sheets.find(traces[0])
    roots: list[Any] = [timeline.embedded(traces, rank), _root("heading", [sheets.figures(found)])]
    roots += [_root(name, sheets.sheet(name, found)) for name in sheets.SHEETS]
    text: str = file_html(
        roots,
        INLINE,
        title=_title(traces),
        template=_template(),
        template_variables=_variables(traces),
    )
    return text


def served(kept: Sequence["Kept"]) -> Callable[["Document"], None]:
    """What fills the document of a page that the server sends: the timeline at once, the other pages as soon as the analyses are there."""
    traces = [one.trace for one in kept]
    segments = [segment for trace in traces for segment in trace.metadata.get("segments") or ()]
    extent = (min((s["start_ts"] for s in segments), default=0), max((s["end_ts"] for s in segments), default=0))
    shown = timeline.what(traces, [one.ranks for one in kept], extent)

    def make(document: "Document") -> None:
        document.template = _template()
        document.template_variables.update(_variables(traces))
        document.title = _title(traces)
        document.add_root(timeline.layout(shown, {"url": "ask/"}, "phase"))
        roots = {name: _root(name, [sheets.sentence("Analysing the trace …")]) for name in ("heading", *sheets.SHEETS)}
        roots["heading"].children = [sheets.sentence("")]
        for root in roots.values():
            document.add_root(root)
        _fill(document, kept[0], roots)

    return make


def _fill(document: "Document", kept: "Kept", roots: dict[str, "Column"]) -> None:
    """Puts what was found onto the pages, now or when it is there."""

    def look_again() -> None:
        if _filled(kept, roots):
            document.remove_periodic_callback(callback)

    if not _filled(kept, roots):
        callback = document.add_periodic_callback(look_again, _POLL_MS)


def _filled(kept: "Kept", roots: dict[str, "Column"]) -> bool:
    try:
        results = kept.tables()
    except NeuronprofError as error:
        for name in sheets.SHEETS:
            roots[name].children = [sheets.html("notice", text=str(error))]
        return True
    if results is None:
        return False
    found = sheets.find(kept.trace, results)
    roots["heading"].children = [sheets.figures(found)]
    for name in sheets.SHEETS:
        roots[name].children = sheets.sheet(name, found)
    return True


def _root(name: str, children: list[Any]) -> "Column":
    from bokeh.layouts import column

    return column(*(children or [sheets.sentence("")]), name=name, sizing_mode="stretch_width")


def _template() -> Any:
    import jinja2

    return jinja2.Environment(autoescape=True).from_string(look.style("page.html"))


def _variables(traces: Sequence["TraceFile"]) -> dict[str, Any]:
    return {
        "headings": [heading.title(trace) for trace in traces],
        "pages": sheets.PAGES,
        "css": look.style("page.css"),
        "page_js": "{" + look.script(*_SCRIPTS, then="begin()") + "}",
    }


def _title(traces: Sequence["TraceFile"]) -> str:
    names = " and ".join(str(trace.metadata.get("script") or trace.path.name) for trace in traces)
    return f"{names} · neuronprof"
