"""`neuronprof diff`: two or more traces side by side, each against the first.

The difference in step time is split over operators and over what held the step back; both add up to it. Operators are aligned by name,
layer and phase, and where names differ the most alike are. A difference that the steps of one trace show among themselves is called
noise.

The object of --json: traces (an object each: trace, steps, step_time_ns), differences (for each trace after the first: before, after,
difference_ns, noise_ns, is_noise, classes, operators; what is not known is null).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.cli import spare_inputs
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.analyze.compare import Difference, Run

_TOP = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument(
        "traces", nargs="+", metavar="TRACE", help="two or more traces; the first is what the others are compared with"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "-o", "--output", metavar="PAGE", help="write a page with the timelines one above the other, zoomed together"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the differences, and writes the page."""
    from neuronprof.analyze import compare
    from neuronprof.cli import opened

    if len(args.traces) < 2:
        raise NeuronprofError("One trace has nothing to be compared with; give two or more.")
    spare_inputs(args.output, args.traces)
    traces = [opened(path) for path in args.traces]
    runs = [compare.read(trace) for trace in traces]
    differences = compare.compare(runs)
    if args.json:
        json.dump(_object(runs, differences), sys.stdout, allow_nan=False)
        print()
    else:
        for difference in differences:
            _print(difference)
    if args.output:
        from neuronprof.view import page

        page.write(traces, args.output)
        print(f"wrote {args.output}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _object(runs: Sequence["Run"], differences: Sequence["Difference"]) -> dict[str, Any]:
    from neuronprof.analyze.summary import plain

    found: dict[str, Any] = plain(
        {
            "traces": [{"trace": r.trace, "steps": len(r.times), "step_time_ns": r.step_ns} for r in runs],
            "differences": [
                {
                    "before": d.before, "after": d.after, "difference_ns": d.difference_ns, "noise_ns": d.noise_ns, "is_noise": d.is_noise,
                    "classes": d.classes.to_dict("records"), "operators": d.operators.to_dict("records"),
                }
                for d in differences
            ],
        }
    )  # fmt: skip
    return found


def _print(difference: "Difference") -> None:
    from neuronprof.view.comparison import sentence
    from neuronprof.view.terminal import render_table

    print(f"{difference.before} -> {difference.after}\n{sentence(difference)}\n")
    moved = difference.classes[difference.classes["difference_ns"] != 0]
    print(f"{render_table(moved, _TOP)}\n\n{render_table(difference.operators, _TOP)}\n")
    differing = difference.operators["difference_ns"].sum()
    print(f"sum of all parts: {units.time(differing)}\n")
