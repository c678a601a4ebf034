"""The explanation of an event as text, for terminals and for the page."""

import textwrap
from collections.abc import Iterator

from neuronprof import units
from neuronprof.analyze.durations import OPERAND, Parameter, Worked
from neuronprof.analyze.explain import Event, Explanation
from neuronprof.terms import Engine

_WAITS = {
    "data": "for an operand from another engine",
    "dma": "for a DMA to bring its data",
    "hbm": "for HBM, which served another transfer",
    "link": "for its link, which carried something else",
    "peer": "for a rank that had not arrived",
    "sbuf": "for room in SBUF or PSUM",
}
_NARROWEST = 40
LETTERS = 42  # in a line of the page's details


def text(explanation: Explanation, width: int) -> str:
    """All that is known, in lines of about this many letters."""
    whole = [_head(explanation), *why_so_long(explanation, width), *_not_sooner(explanation)]
    return "\n\n".join(whole)


def why_so_long(explanation: Explanation, width: int) -> Iterator[str]:
    """The duration: what bound it, its formula, and the numbers in it."""
    if explanation.worked is None:
        yield "\n".join(
            textwrap.wrap(f"It took {units.time(explanation.event['duration_ns'])}. {explanation.note}", width)
        )
        return
    first, *others = parts(explanation.worked, width, explanation.again)
    yield f"It took {units.time(explanation.event['duration_ns'])}, {first}"
    yield from others


def parts(found: Worked, width: int, again: str) -> list[str]:
    """What bound a duration, its formula, and the numbers in it; again: a sentence about what it moves for want of room, '' without."""
    about = ["\n".join(textwrap.wrap(again, width))] if again else []
    return [f"bound by {found.bound}", *about, _formula(found, width), _numbers(found, width)]


def _head(explanation: Explanation) -> str:
    event = explanation.event
    lines = [title(event)]
    if explanation.chosen:
        lines.append(explanation.chosen)
    place = [event["phase"], event["source"], f"step {event['step']}" if event["step"] >= 0 else "evaluation"]
    lines.append(f"event {event['id']}, rank {event['rank']}, {event['engine']}; {', '.join(p for p in place if p)}")
    return "\n".join(lines)


def title(event: Event) -> str:
    """An event's name, operator and layer."""
    of = f" of {event['op_name']}" if event["op_name"] else ""
    return f"{event['name']}{of}" + (f", {event['layer']}" if event["layer"] else "")


def _formula(found: Worked, width: int) -> str:
    wide = max(len(line.name) for line in found.lines)
    lines = []
    for line in found.lines:
        lines += _wrapped(line.expression, width, f"  {line.name:<{wide}} = ")
        lines.append(f"  {'':<{wide}} = {line.value:.10g}")
    for factor in found.factors:
        lines += _wrapped(f"{factor.times:.10g}  ({factor.what})", width, f"  {factor.of:<{wide}} x ")
    return "\n".join(lines)


def _numbers(found: Worked, width: int) -> str:
    """The operands of the instruction, then every other number with its source."""
    operands = [p for p in found.parameters if p.provenance == OPERAND]
    lines = _wrapped(", ".join(f"{p.name} = {_value(p)}" for p in operands), width, "  ") if operands else []
    for p in found.parameters:
        if p.provenance != OPERAND:
            table = f"  {p.name:<26} {_value(p):>24}  {p.provenance}"
            lines.append(table if len(table) <= width else f"  {p.name} = {_value(p)}, {p.provenance}")
            lines += _wrapped(p.source, width, "      ")
    return "\n".join(lines)


def _wrapped(text: str, width: int, before: str) -> list[str]:
    """A text in lines, the first one after `before` and the others under it."""
    return textwrap.wrap(
        text, max(width, _NARROWEST), initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False
    )


def _value(parameter: Parameter) -> str:
    return f"{parameter.value:,.15g} {parameter.unit}".rstrip()


def _not_sooner(explanation: Explanation) -> Iterator[str]:
    """What it waited for, and whose end let it start."""
    event, before = explanation.event, explanation.released_by
    waited = event["wait_ns"] and _WAITS.get(event["wait_for"] or "")
    start = f"It waited {units.time(event['wait_ns'])} {waited}." if waited else "It waited for nothing but its turn."
    if before is not None:
        gap = event["start_ts"] - before["start_ts"] - before["duration_ns"]
        elsewhere = f" on rank {before['rank']}" if before["rank"] != event["rank"] else ""
        start += (
            f" What let it start: {title(before)} (event {before['id']}{elsewhere}), which ended {_before(event, gap)}."
        )
    elif event["released_by"] >= 0:
        start += f" What let it start is event {event['released_by']}, on a rank that the trace does not hold."
    yield start


def _before(event: Event, gap: int) -> str:
    if gap <= 0:
        return "just then"
    start = ", for a DMA takes that long to start (dma.start)" if event["engine"] == Engine.DMA else ""
    return f"{units.time(gap)} before{start}"
