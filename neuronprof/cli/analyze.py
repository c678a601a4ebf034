"""`neuronprof analyze`: the summary of a trace and tables of its analyses, as text or as one JSON object.

The object of --json: trace (path), steps (number of training steps), step_time_ns (their mean, whole nanoseconds),
mfu (0 to 1), engines (busy fraction by engine, every engine always present), left_out (a sentence for each analysis for
which the trace is too large), analyses (for each table its rows, an object each, keys are the column names). What the
trace does not tell is null. Without names the main tables are printed as far as they have rows, with --json all. A name
is that of an analysis, which prints all its tables, or of one table.
"""

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from neuronprof.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.analyze.summary import Summary

_TOP = 12
# What is printed without names; the other tables by name, and all of them as JSON.
_OVERVIEW = (
    "bottlenecks_by_operator",
    "utilization",
    "communication",
    "underused",
    "pe_array",
    "movable",
    "roofline",
    "roofline_steps",
    "memory",
    "on_chip",
)
# What of a wide table fits a terminal; asked for by name, a table has all its columns.
_BRIEF = {
    "communication": (
        "name", "algorithm", "replica_group", "bytes", "layer", "count", "transfer_ns", "transfer_p95_ns", "wait_ns", "exposed_ns",
        "outliers", "bus_bandwidth", "link_share",
    ),
    "pe_array": ("op_name", "layer", "phase", "source", "time_ns", "unfilled_ns", "throttled_ns", "fill"),
    "movable": ("engine", "to", "op_name", "layer", "phase", "source", "time_ns", "there_ns", "idle_ns"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("trace", help="the trace.parquet that neuronprof record wrote")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="advice, utilization, bottlenecks, attribution, communication, traffic, links, underused, pe_array, movable, "
        "transfers, sbuf, roofline, memory, on_chip, critical_path, stragglers, semaphores",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--top", type=_positive, metavar="N", help=f"rows of each table (default: {_TOP} as text, all as JSON)"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="processes of this machine that read chips (default: 1)",
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="a Dask scheduler, tcp://scheduler:8786, whose workers read chips"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the analyses."""
    from neuronprof.analyze import execution, registry, summary
    from neuronprof.cli import opened

    names = args.names or ((registry.ADVICE.name, *registry.NAMES) if args.json else _OVERVIEW)
    wanted = [table for name in names for table in (_tables(name) if args.names or args.json else [name])]
    trace = opened(args.trace)
    named = dict.fromkeys(registry.find(name) for name in wanted)
    questions = list(dict.fromkeys([*registry.ANALYZERS, registry.ADVICE, *named]))
    left_out: dict[str, str] = {}
    with execution.on(args.workers, args.dask) as mapper, Progress() as progress:
        report = partial(progress.share, "analysing")
        results = registry.run(trace, questions, mapper=mapper, report=report, left_out=left_out)
        for question in named if args.names else ():
            if left_out.pop(question.name, ""):  # what is asked for by name may take what memory there is
                results |= registry.run(trace, [question], mapper=mapper, report=report)
    figures = summary.pick(trace, results, tuple(left_out.values()))
    tables = {name: results[registry.find(name).name][name] for name in dict.fromkeys(wanted)}
    if args.json:
        json.dump(_object(figures, tables, args.top), sys.stdout, allow_nan=False)
        print()
    else:
        if not args.names:
            brief = {name: tables[name][list(columns)] for name, columns in _BRIEF.items()}
            tables = {name: table for name, table in (tables | brief).items() if len(table)}
        _print(figures, tables, args.top or _TOP)
    return 0


def _tables(name: str) -> list[str]:
    """The tables that a name on the command line means."""
    from neuronprof.analyze import registry

    found = registry.find(name)
    return list(found.tables) if name == found.name else [name]


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0; write 1 or more.")
    return number


def _object(figures: "Summary", tables: dict[str, "pd.DataFrame"], top: int | None) -> dict[str, Any]:
    from neuronprof.analyze.summary import plain

    shown = {name: table if top is None else table.head(top) for name, table in tables.items()}
    found: dict[str, Any] = plain(
        {
            "trace": figures.trace,
            "steps": figures.steps,
            "step_time_ns": figures.step_time_ns,
            "mfu": figures.mfu,
            "engines": figures.busy,
            "left_out": list(figures.left_out),
            "analyses": {name: table.to_dict("records") for name, table in shown.items()},
        }
    )
    if found["step_time_ns"] is not None:
        found["step_time_ns"] = round(found["step_time_ns"])
    return found


def _print(figures: "Summary", tables: dict[str, "pd.DataFrame"], top: int) -> None:
    from neuronprof.analyze import registry
    from neuronprof.view.terminal import render_advice, render_table, render_text

    print(render_text(figures))
    for name, table in tables.items():
        print(f"\n== {name}")
        analyzer = registry.find(name)
        if name == analyzer.name:
            print((type(analyzer).__doc__ or "").strip().split("\n")[0])
        print(render_advice(figures.advice[:top]) if name == "advice" else render_table(table, top))
