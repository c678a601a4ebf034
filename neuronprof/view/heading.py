"""The figures at the top of the page and the summary page, as HTML: everything that comes from a trace is escaped."""

import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.view import terminal, tracks

if TYPE_CHECKING:
    from neuronprof.analyze.summary import Summary
    from neuronprof.trace.reader import TraceFile

SPLIT_COLOURS = {
    "tensor": tracks.BLUE,
    "vector": tracks.ORANGE,
    "scalar": tracks.GREEN,
    "gpsimd": tracks.PURPLE,
    "hbm": tracks.SKY,
    "neuronlink": tracks.VERMILLION,
    "waiting": tracks.YELLOW,
    "host": tracks.WINE,
    "idle": f"var(--pale, {tracks.PALE})",
}
BOUND = {
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


def fragment(name: str, **variables: Any) -> str:
    """One of the package's HTML fragments, filled in: names of layers and scripts are the trace's, so whatever it is given is escaped."""
    import jinja2

    text = (files("neuronprof.view") / f"{name}.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text).render(**variables)


def title(trace: "TraceFile") -> dict[str, str]:
    """What stands in the page's title, known before anything is analysed."""
    metadata = trace.metadata
    ranks, world = len(trace.ranks), int(metadata.get("world_size") or 0)
    machine = metadata.get("machine") or {}
    where = [
        machine.get("title") or machine.get("chip") or "",
        _plural(len(trace.steps), "step"),
        f"{ranks:,} of {world:,} ranks" if world > ranks else _plural(ranks, "rank"),
        _plural(trace.num_events, "event"),
        "the recording did not end" if metadata.get("partial") else "",
    ]
    return {"name": str(metadata.get("script") or trace.path), "where": " · ".join(filter(None, map(str, where)))}


def figures(summary: "Summary") -> list[tuple[str, str, str]]:
    """Label, value, note of what stands at the top; what the trace does not tell is left out."""
    of = "" if math.isnan(summary.capacity_bytes) else f"of {units.size(summary.capacity_bytes)}"
    known = [
        ("Step time", summary.step_time_ns, units.time, ""),
        ("MFU", summary.mfu, units.percent, ""),
        ("HFU", summary.hfu, units.percent, ""),
        ("MBU", summary.mbu, units.percent, ""),
        ("HBM peak", summary.peak_bytes, units.size, of),
        ("Exposed communication", summary.exposed_ns, units.time, "a step"),
    ]
    return [(label, form(value), note) for label, value, form, note in known if not math.isnan(value)]


def split(summary: "Summary") -> list[dict[str, Any]]:
    """What bounds the step, largest part first."""
    return parts(dict(summary.split), summary.step_time_ns)


def parts(times: dict[str, float], whole: float) -> list[dict[str, Any]]:
    """The classes of a stretch of time as parts of a bar, largest first."""
    if not whole > 0:
        return []
    ordered = sorted(((time, name) for name, time in times.items() if time > 0), reverse=True)
    return [
        {
            "name": BOUND[name],
            "time": units.time(time),
            "share": units.percent(time / whole),
            "weight": round(time / whole, 5),
            "colour": SPLIT_COLOURS.get(name, tracks.GREY),
        }
        for time, name in ordered
    ]


def costs(summary: "Summary") -> list[dict[str, str]]:
    """What costs most time."""
    return [
        {
            "time": units.time(c.time_ns),
            "share": units.percent(c.share),
            "what": terminal.describe(c),
        }
        for c in summary.costs
    ]


def advice(summary: "Summary") -> list[dict[str, str]]:
    """What to change first: what it gives, what is wrong, what to do, and where the timeline shows it."""
    return [
        {"worth": terminal.worth(found), "wrong": found.wrong, "change": found.change, "link": found.link}
        for found in summary.advice
    ]


def remarks(summary: "Summary") -> list[str]:
    """What was softened to record, what has no cost rule, and what the trace is too large for."""
    told = (
        ("Softened to record", summary.notes),
        ("Operators without a cost rule, costed by their bytes", summary.unknown_operators),
    )
    found = [
        f"{what}: " + ", ".join(f"{name} ({n:,})" for name, n in counts.items()) for what, counts in told if counts
    ]
    return [*found, *summary.left_out]


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
