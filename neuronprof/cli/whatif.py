"""neuronprof whatif: what a step of a trace would take if something were different.

Runs the dependencies, queues, collectives and messages of the median step, or of another, again with other durations. An engine, HBM or
a link is scaled in speed: tensor=2 is twice as fast. Operators are scaled in time: 'layer:*.mlp=0.5' takes half as long, 'op:aten.mm=0'
no time at all. Collectives keep their algorithm, also where a recording with another link would choose another.
"""

import argparse
import json
from typing import TYPE_CHECKING

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.analyze.whatif import Answer

_ROWS = 14
_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    add = parser.add_argument
    add("trace", help="the trace.parquet that neuronprof record wrote")
    add(
        "--scale", nargs="+", action="extend", default=[], metavar="WHAT=X",
        help="tensor, vector, scalar, gpsimd, dma, hbm, neuronlink, efa or host X times as fast; "
        "layer:, op:, source: or phase:PATTERN X times as long",
    )  # fmt: skip
    add(
        "--without-wait",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOR",
        help="peer, hbm, link, dma, data, sbuf or host",
    )
    add(
        "--fix-chip", nargs="+", action="extend", default=[], type=int, metavar="N", help="a chip as good as the others"
    )
    add(
        "--overlap",
        nargs="+",
        action="extend",
        default=[],
        metavar="WHAT",
        help="grad_sync or weight_gather behind compute",
    )
    add(
        "--step",
        metavar="N",
        help="the step to run again, or all, of which the times are printed (default: that of median length)",
    )
    add("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Prints the new step time, each change alone and all together, the new split and the new critical path."""
    from neuronprof.analyze import whatif
    from neuronprof.analyze.walk import Whole
    from neuronprof.cli import opened

    wanted = whatif.parse(args.scale, args.without_wait, args.fix_chip, args.overlap)
    trace = opened(args.trace)
    if args.step == _ALL:
        _print_steps(whatif.over_steps(trace, wanted), as_json=args.json)
        return 0
    answer = whatif.ask(Whole(trace, _number(args.step)), wanted)
    if args.json:
        from neuronprof.analyze.summary import plain

        tables = {"times": answer.times, "split": answer.split, "critical_path": answer.path}
        print(json.dumps(plain({"step": answer.step, **{k: t.to_dict("records") for k, t in tables.items()}})))
    else:
        _print(answer)
    return 0


def _number(step: str | None) -> int | None:
    if step is not None and not step.isdecimal():
        raise NeuronprofError(f"--step {step} is no step; give its number, or {_ALL}.")
    return None if step is None else int(step)


def _print_steps(times: "pd.DataFrame", *, as_json: bool) -> None:
    from neuronprof.analyze.summary import plain
    from neuronprof.view.terminal import render_table

    print(json.dumps(plain({"times": times.to_dict("records")})) if as_json else render_table(times))


def _print(answer: "Answer") -> None:
    from neuronprof.view.terminal import render_table

    print(f"Step {answer.step}\n")
    print(render_table(answer.times))
    print("\nWhere the time goes, a rank's mean")
    shown = answer.split.sort_values("before_ns", ascending=False)
    print(render_table(shown[(shown["before_ns"] > 0) | (shown["after_ns"] > 0)], _ROWS))
    print("\nOn the critical path")
    path = answer.path[answer.path["by"].isin(["engine", "rank", "link"])]
    print(render_table(path, 2 * _ROWS))
