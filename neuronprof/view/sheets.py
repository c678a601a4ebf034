"""The pages around the timeline: what stands on each, from finished tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuronprof.analyze.everyrank import every_rank
from neuronprof.view import heading, look, ranks, tables

if TYPE_CHECKING:
    from bokeh.models import UIElement

    from neuronprof.analyze.summary import Summary
    from neuronprof.trace.reader import TraceFile

PAGES = (
    ("timeline", "Timeline"),
    ("summary", "Summary"),
    ("operators", "Operators"),
    ("communication", "Communication"),
    ("memory", "Memory"),
    ("roofline", "Roofline"),
    ("ranks", "Ranks"),
)
SHEETS = tuple(name for name, _ in PAGES if name != "timeline")


@dataclass(frozen=True)
class Found:
    """What was found in a trace: the finished tables of all analyzers, and the summary of them."""

    trace: "TraceFile"
    tables: tables.Results
    summary: "Summary"


def find(trace: "TraceFile", results: tables.Results | None = None) -> Found:
    """What is in a trace; without finished tables the analyzers run now."""
    from neuronprof.analyze import analyzer, registry, summary

    results = analyzer.run(trace, registry.ANALYZERS) if results is None else results
    return Found(trace, results, summary.pick(trace, results))


def figures(found: Found) -> "UIElement":
    """The figures at the top of the page."""
    return html("heading", figures=heading.figures(found.summary))


def sheet(name: str, found: Found) -> list["UIElement"]:
    """What stands on a page."""
    parts: list[UIElement] = []
    if name == "summary":
        summary = found.summary
        about = {"split": heading.split(summary), "costs": heading.costs(summary), "remarks": heading.remarks(summary)}
        parts.append(html("summary", **about))
    if name == "ranks":
        return ranks.ranks(every_rank(found.trace.totals))
    return [*parts, *tables.page(name, found.tables)]


def html(name: str, **variables: Any) -> "UIElement":
    """A fragment of HTML in which everything that comes from the trace is escaped."""
    from bokeh.models import Div

    return Div(
        text=heading.fragment(name, **variables),
        stylesheets=[look.style("fragment.css")],
        sizing_mode="stretch_width",
        disable_math=True,
    )


def sentence(text: str) -> "UIElement":
    """A few words of our own."""
    from bokeh.models import Div

    return Div(text=text, stylesheets=[look.SENTENCE_CSS], sizing_mode="stretch_width", disable_math=True)
