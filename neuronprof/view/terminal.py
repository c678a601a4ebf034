"""Finished results as text for a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.analyze.summary import Cost, Proposal, Summary
from neuronprof.terms import ROLES

if TYPE_CHECKING:
    import pandas as pd

_SHARES = ("share", "busy", "fill", "gain", "mfu", "hfu", "mbu")
_RATES = {"flops_per_second": "FLOP/s", "algorithm_bandwidth": "B/s", "bus_bandwidth": "B/s"}
_WIDEST = 44
_FIRST = 3  # changes that the summary tells
_WHERE = {
    "idle": "idle",
    "waiting": "waiting for peers",
    "neuronlink": "exposed communication",
    "hbm": "HBM-bound",
    "host": "host",
}


def render_text(summary: Summary) -> str:
    """The summary as lines of text."""
    lines = [_title(summary), *_recorded(summary), *_first(summary), ""]
    lines += _steps(summary)
    lines += _costs(summary)
    lines += _figures(summary)
    lines += _remarks(summary)
    return "\n".join(lines)


def render_table(table: "pd.DataFrame", top: int | None = None) -> str:
    """A table with aligned columns, quantities with their units, at most `top` rows; the rest is counted."""
    shown = table if top is None else table.head(top)
    columns = [[name, *map(_formatter(name), shown[name])] for name in shown.columns]
    numeric = [table[name].dtype.kind in "if" for name in shown.columns]
    widths = [max(map(len, cells)) for cells in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    if len(shown) < len(table):
        lines.append(f"... and {len(table) - len(shown):,} more rows")
    if table.empty:
        lines.append("(no rows)")
    return "\n".join(lines)


def _title(summary: Summary) -> str:
    what = summary.script or summary.trace
    ranks = (
        f"{summary.ranks} of {summary.world_size} ranks"
        if summary.world_size > summary.ranks
        else _plural(summary.ranks, "rank")
    )
    where = f" on {summary.machine}" if summary.machine else ""
    title = f"{what}{where}: {_plural(summary.steps, 'step')}, {ranks}, {_plural(summary.events, 'event')}"
    return f"{title} (the recording did not end)" if summary.partial else title


_VALUES = {
    "real": "values computed on the CPU: what the script printed is true",
    "none": "values not computed: losses and other numbers that the script printed mean nothing",
}


def _recorded(summary: Summary) -> list[str]:
    parameters = f"{units.count(summary.parameters)} parameters" if summary.parameters else ""
    known = ", ".join(filter(None, (parameters, _VALUES.get(summary.values, ""))))
    return [known] if known else []


def _first(summary: Summary) -> list[str]:
    """What to change first, in short."""
    if not summary.advice:
        return []
    lines = ["", "What to change first"]
    for number, found in enumerate(summary.advice[:_FIRST], 1):
        lines += [f"  {number}. {worth(found)}: {found.wrong}", f"     {found.change}"]
    if len(summary.advice) > _FIRST:
        more = len(summary.advice) - _FIRST
        lines.append(f"  and {more} more: neuronprof analyze {summary.trace} advice")
    return lines


def worth(found: Proposal) -> str:
    """What a change would give: '378 us a step less, 29.5 % (high confidence)'."""
    return f"{units.time(found.gain_ns)} a step less, {units.percent(found.gain)} ({found.confidence} confidence)"


def render_advice(advice: Sequence[Proposal]) -> str:
    """The advice in full: with each change where it shows, and the end of the view's address that shows it."""
    lines = []
    for number, found in enumerate(advice, 1):
        where = f"rank {found.rank} of chip {found.chip}, {units.time(found.start_ns)} to {units.time(found.end_ns)}"
        lines += [f"  {number}. {found.rule}: {worth(found)}", f"     {found.wrong}", f"     {found.change}"]
        lines.append(f"     Where: {where}; in the view {found.link}")
    return "\n".join(lines or ["(no rule finds 1 % of the step)"])


def _steps(summary: Summary) -> list[str]:
    if not summary.steps:
        return ["No training step in this trace."]
    least, most = units.time(summary.step_time_min_ns), units.time(summary.step_time_max_ns)
    span = f" (from {least} to {most})" if least != most else ""
    lines = [f"Step time  {units.time(summary.step_time_ns)}{span}"]
    for kind, time in summary.split.items():
        if time:
            share = time / summary.step_time_ns
            lines.append(
                f"  {kind:<10}  {units.time(time):>9}  {units.percent(share):>7}  {'#' * round(40 * share)}".rstrip()
            )
    if summary.evaluation_ns:
        lines.append(f"Evaluation between steps: {units.time(summary.evaluation_ns)}, not counted above.")
    return lines


def _costs(summary: Summary) -> list[str]:
    if not summary.costs:
        return []
    lines = ["", "What costs most time"]
    for number, cost in enumerate(summary.costs):
        lines.append(
            f"  {number + 1}. {units.time(cost.time_ns)} a step, {units.percent(cost.share)}: {describe(cost)}"
        )
    return lines


def describe(cost: Cost) -> str:
    """A cost as a phrase: 'HBM-bound in aten.mm, layers.*.up (12 layers), model.py:40'."""
    what = _WHERE.get(cost.kind, f"{cost.kind} engine")
    layers = f"{cost.layer} ({cost.layers} layers)" if cost.layers > 1 else cost.layer
    place = ", ".join(filter(None, (cost.op_name, layers, cost.source)))
    link = "before" if cost.kind == "idle" else "in"
    return f"{what} {link} {place}" if place else what


def _figures(summary: Summary) -> list[str]:
    busy = ", ".join(f"{engine} {units.percent(share)}" for engine, share in summary.busy.items() if share)
    lines = ["", f"MFU {_percent(summary.mfu)}, HFU {_percent(summary.hfu)}, MBU {_percent(summary.mbu)}"]
    lines.append(f"Engines busy: {busy or 'none'}")
    if not math.isnan(summary.peak_bytes):
        known = not math.isnan(summary.capacity_bytes)
        of = (
            f" of {units.size(summary.capacity_bytes)} ({units.percent(summary.peak_bytes / summary.capacity_bytes)})"
            if known
            else ""
        )
        held = ", ".join(f"{name} {units.size(size)}" for name, size in summary.at_peak.items())
        lines.append(f"HBM peak {units.size(summary.peak_bytes)}{of}: {held}")
    if summary.exposed_ns:
        lines.append(f"Exposed communication {units.time(summary.exposed_ns)} a step")
    return lines


def _remarks(summary: Summary) -> list[str]:
    lines = []
    if summary.notes:
        lines.append("Softened to record: " + _counts(summary.notes))
    if summary.unknown_operators:
        lines.append("Operators without a cost rule, costed by their bytes: " + _counts(summary.unknown_operators))
    lines += summary.left_out
    return ["", *lines] if lines else []


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _percent(fraction: float) -> str:
    return "unknown" if math.isnan(fraction) else units.percent(fraction)


def _formatter(column: str) -> Callable[[Any], str]:
    """How the cells of a column are printed, by the unit in its name."""
    if column.endswith(("_ns", "_ts")):
        return _known(units.time)
    if column in _SHARES or column.endswith("_share"):
        return _known(units.percent)
    if column.endswith("bytes") or column in ROLES:
        return _known(units.size)
    if column in _RATES or column.endswith("flops"):
        return _known(lambda value: units.count(value, _RATES.get(column, "")))
    return _known(lambda value: _cut(f"{value:g}" if isinstance(value, float) else str(value)))


def _known(form: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "-" if isinstance(value, float) and math.isnan(value) else form(value)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else "..." + text[3 - _WIDEST :]
