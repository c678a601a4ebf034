"""The pages around the timeline: what stands on each, from finished tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuronprof.analyze import pairs, places, tree
from neuronprof.view import (
    comparison,
    heading,
    look,
    memoryplot,
    ranks,
    rooflineplot,
    scheduleplot,
    tables,
    terminal,
    topologyplot,
    trafficplot,
)

if TYPE_CHECKING:
    from bokeh.models import UIElement

    from neuronprof.analyze.compare import Difference
    from neuronprof.analyze.summary import Proposal, Summary
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
COMPARE = "compare"  # of several traces
HEADING = "heading"  # the figures at the top of the page
TREE = "tree"  # the operators by module, on their page
ADVICE = "advice"  # what the timeline's bands tell, which is no page of its own
SHEETS = (HEADING, ADVICE, TREE, *(name for name, _ in PAGES if name != "timeline"))


@dataclass(frozen=True)
class Found:
    """What was found in a trace: the finished tables of all analyzers, and the summary of them."""

    trace: "TraceFile"
    tables: tables.Results
    summary: "Summary"
    differences: Sequence["Difference"] = ()


def pages(traces: int) -> tuple[tuple[str, str], ...]:
    """The pages that there are of so many traces."""
    return PAGES if traces < 2 else (*PAGES, (COMPARE, "Compare"))


def compare(traces: Sequence["TraceFile"], results: Sequence[tables.Results]) -> list["Difference"]:
    """Each trace against the first, from their finished tables."""
    from neuronprof.analyze import compare

    pairs = zip(traces, results, strict=True)
    return compare.compare([compare.taken(str(trace.path), found["bottlenecks"]) for trace, found in pairs])


def find(trace: "TraceFile", results: tables.Results | None = None, left_out: Sequence[str] = ()) -> Found:
    """What is in a trace; without finished tables the analyzers run now. left_out: see `summary.pick`."""
    from neuronprof.analyze import registry, summary

    if results is None:
        said: dict[str, str] = {}
        results = registry.run(trace, [*registry.ANALYZERS, registry.ADVICE], left_out=said)
        left_out = list(said.values())
    return Found(trace, results, summary.pick(trace, results, tuple(left_out)))


def item(name: str, found: Found) -> str:
    """A page, or the heading, as JSON that BokehJS puts into its place; or the advice and the operators, see advice.js and tree.js."""
    if name == TREE:
        text: str = tree.by_layer(found.tables["bottlenecks"]["bottlenecks_by_operator"]).to_json(orient="records")
        return text
    if name == ADVICE:
        return json.dumps([_band(change) for change in found.summary.advice])
    from bokeh.core.json_encoder import serialize_json
    from bokeh.embed import json_item
    from bokeh.layouts import column

    children = _parts(name, found)
    whole = column(*children, sizing_mode="stretch_width")
    return serialize_json(json_item(whole))


def _band(change: "Proposal") -> dict[str, Any]:
    """One advice as the timeline of the first trace knows it."""
    about = {"worth": terminal.worth(change), "wrong": change.wrong, "change": change.change}
    return {"key": f"0/{change.rank}", "start": change.start_ns, "end": change.end_ns, **about}


def _parts(name: str, found: Found) -> list["UIElement"]:
    if name == HEADING:
        return [html("heading", figures=heading.figures(found.summary))]
    if name == COMPARE:
        return comparison.parts(found.differences)
    if name == "ranks":
        return [*_schedule(found), *ranks.ranks(found.trace.totals)]
    if name == "memory" and not found.tables["memory"]["memory_over_time"]["bytes"].any():
        return [tables.sentence("The trace does not tell what HBM holds.")]
    above = _ABOVE[name](found) if name in _ABOVE else []
    return [*above, *tables.page(name, found.tables)]


def _summary(found: Found) -> list["UIElement"]:
    summary = found.summary
    about = {"split": heading.split(summary), "costs": heading.costs(summary), "remarks": heading.remarks(summary)}
    return [html("summary", advice=heading.advice(summary), **about)]


def _roofline(found: Found) -> list["UIElement"]:
    table, machine = found.tables["roofline"]["roofline"], found.trace.metadata.get("machine") or {}
    plot = rooflineplot.figure(table, machine.get("rank") or {})
    return [
        plot if plot.renderers else tables.sentence("The trace tells of no operator both its operations and its bytes.")
    ]


def _schedule(found: Found) -> list["UIElement"]:
    table = found.tables["schedule"]["schedule"]
    if table.empty:
        return []
    told = "What each pipeline stage does when, with the numbers of the micro-batches. A click opens the place in the timeline."
    if len(table) > 2 * scheduleplot.MOST:
        told += " What is shortest is left out."
    return [tables.sentence(told), scheduleplot.figure(table), *tables.page("schedule", found.tables)]


def _memory(found: Found) -> list["UIElement"]:
    table = found.tables["memory"]["memory_over_time"]
    told = "What HBM holds over time, on the rank that holds most. A click opens the place in the timeline."
    return [tables.sentence(told), memoryplot.figure(table, found.summary.capacity_bytes)]


def _topology(found: Found) -> list["UIElement"]:
    metadata = found.trace.metadata
    topology, world = places.Topology.of(metadata), int(metadata.get("world_size") or 0)
    if topology is None or world < 2:
        return []
    traffic, links = found.tables["traffic"]["traffic"], found.tables["links"]["links"]
    known = places.measures(topology, world, found.trace.totals, traffic, links)
    plan = places.plan(topology, -(-world // topology.ranks_per_chip))
    told = tables.sentence(topologyplot.sentence(topology, plan, metadata))
    name = topologyplot.server(metadata["machine"])
    return [told, topologyplot.figure(topology, plan, known, name)] if known else []


def _traffic(found: Found) -> list["UIElement"]:
    sent = pairs.matrix(found.tables["traffic"]["traffic"])
    if not sent.bytes.size:
        return []
    told = "Bytes from rank to rank in all training steps, as the collectives' algorithms send them. Senders are the ranks in the trace."
    return [tables.sentence(told), trafficplot.figure(sent)]


def _communication(found: Found) -> list["UIElement"]:
    return [*_topology(found), *_traffic(found)]


# What stands above the tables of a page.
_ABOVE = {"summary": _summary, "roofline": _roofline, "memory": _memory, "communication": _communication}


def html(name: str, **variables: Any) -> "UIElement":
    """A fragment of HTML in which everything that comes from the trace is escaped."""
    from bokeh.models import Div

    return Div(
        text=heading.fragment(name, **variables),
        stylesheets=[look.style("fragment.css")],
        sizing_mode="stretch_width",
        disable_math=True,
    )
