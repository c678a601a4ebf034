"""`neuronprof import`: what other profilers recorded, as one of our traces.

FILE is a Chrome JSON trace of PyTorch's profiler (.json or .json.gz, one a rank) or a folder of Neuron Explorer's Parquet tables. Without
-o only the figures of each rank are printed, from the device's events alone; that is fast. Clocks of several ranks are brought together by
the collectives that they share; the error that is left is printed.

The object of --json: trace (path or null), ranks (an object each: rank, events, total_ns, busy_ns, idle_ns, compute_ns, communication_ns,
memory_ns, overlapped_ns, exposed_ns, each class by the union of its intervals), clocks (rank, offset_ns, error_ns, most_ns, collectives),
skipped (events without a readable time).
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.cli import spare_inputs
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.exchange.breakdown import Breakdown
    from neuronprof.exchange.clocks import Offset

_TIMES = (
    "total_ns",
    "busy_ns",
    "idle_ns",
    "compute_ns",
    "communication_ns",
    "memory_ns",
    "overlapped_ns",
    "exposed_ns",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("files", nargs="+", metavar="FILE", help="a JSON trace of one rank, or a folder of tables")
    parser.add_argument("-o", "--output", metavar="TRACE", help="the trace to write, trace.parquet")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Reads the files, writes the trace, prints what each rank did."""
    paths = [Path(file) for file in args.files]
    spare_inputs(args.output, paths)
    if args.output:
        from neuronprof.trace import storage  # takes Arrow, which figures alone do without

        storage.check(args.output)
    for path in paths:
        if not _exists(path):
            raise NeuronprofError(f"There is no file {path}; check the path.")
    found = _import(paths, args.output, args.json) if args.output else _glance(paths, args.json)
    if args.json:
        print(json.dumps(found, default=vars))
    else:
        _print(found)
    return 0


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _import(paths: Sequence[Path], output: str, quiet: bool) -> dict[str, Any]:
    from neuronprof.exchange import explorer_import, kineto_trace
    from neuronprof.progress import Progress
    from neuronprof.trace import storage

    with Progress(quiet) as shown, storage.writable(output) as trace:
        if any(path.is_dir() for path in paths):
            result = explorer_import.write(_all_folders(paths), trace, shown.of)
        else:
            result = kineto_trace.write(
                paths, trace, lambda name, done, size: shown.of(f"{name}: MB", done >> 20, size >> 20)
            )
    return {"trace": output, "ranks": result.breakdowns, "clocks": result.offsets, "skipped": result.skipped}


def _all_folders(paths: Sequence[Path]) -> Sequence[Path]:
    """The paths, if none of them is a file."""
    for path in paths:
        if not path.is_dir():
            raise NeuronprofError(f"{path} is a file beside folders; import traces of one profiler at a time.")
    return paths


def _glance(paths: Sequence[Path], quiet: bool) -> dict[str, Any]:
    for path in paths:
        if path.is_dir():
            raise NeuronprofError(f"{path} is a folder; give -o to read it in full.")
    from neuronprof.exchange import glance
    from neuronprof.progress import Progress

    with Progress(quiet) as shown:
        found = glance.breakdowns(paths, partial(shown.of, "file"))
    return {"trace": None, "ranks": found, "clocks": [], "skipped": 0}


def _print(found: dict[str, Any]) -> None:
    ranks: list[Breakdown] = found["ranks"]
    clocks: list[Offset] = found["clocks"]
    if found["trace"]:
        print(f"wrote {found['trace']}")
    header = ["rank", "events", *(name.removesuffix("_ns") for name in _TIMES)]
    rows = [[str(r.rank), f"{r.events:,}", *(units.time(getattr(r, name)) for name in _TIMES)] for r in ranks]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for clock in clocks[1:]:
        print(_clock(clock))
    if found["skipped"]:
        print(f"{found['skipped']:,} events without a readable time are left out")


def _clock(clock: "Offset") -> str:
    if not clock.collectives:
        return f"clock of rank {clock.rank}: taken as it is, the rank shares no collective with another"
    moved = f"moved by {units.time(clock.offset_ns)}" if clock.offset_ns else "taken as it is"
    return (
        f"clock of rank {clock.rank}: {moved}, error {units.time(clock.error_ns)} (at most {units.time(clock.most_ns)}, "
        f"{clock.collectives} shared collectives)"
    )
