"""neuronprof record: run a training script on a simulated machine and write its trace."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof import pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "neuronprof record [options] train.py [script arguments]"
    parser.add_argument("-o", "--output", default="trace.parquet", help="the trace to write (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on the last line")
    _add_machine(parser.add_argument_group("machine").add_argument)
    _add_script(parser.add_argument_group("script").add_argument)
    parser.add_argument("script", help="the training script, as you would give it to python")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def _add_machine(add: Callable[..., Any]) -> None:
    add("--chip", default="trainium4", help="a chip of 'neuronprof chips', or a TOML file (default: %(default)s)")
    add("--lnc", type=int, help="physical NeuronCores in a logical one, which is one rank (default: the chip's)")
    add("--dp", type=int, default=1, metavar="N", help="data-parallel ranks, each with the script's batch (default: 1)")
    add("--bucket", default="25M", metavar="SIZE", help="gradient bucket of an all-reduce (default: %(default)s)")
    add("--jitter", default="0", metavar="SHARE", help="vary each instruction of each rank by up to this, as 2%%")
    add("--slow-chip", action="append", default=[], metavar="CHIP=X", help="a chip that computes X times slower")
    add("--seed", type=int, default=0, help="of the jitter (default: 0)")
    add("--allow-oom", action="store_true", help="simulate a model that does not fit into HBM all the same")


def _add_script(add: Callable[..., Any]) -> None:
    add(
        "--values",
        choices=["real", "none", "auto"],
        default="auto",
        help="real: compute on the CPU, so that printed losses are true; none: compute nothing, so that a model of any "
        "size can be recorded; auto: real while the model is small (default)",
    )
    add("--steps", type=int, metavar="N", help="record N steps, then end the script (default: 3, and it runs on)")
    add("--warmup", type=int, default=1, metavar="N", help="steps to skip first, if more follow (default: %(default)s)")
    add("--run-on", action="store_true", help="with --steps: let the script run on to its end, unrecorded")
    add("-m", dest="module", action="store_true", help="the script is the name of a module, as for python -m")


def run(args: argparse.Namespace) -> int:
    """Records, prints the summary, and returns the script's exit code."""
    from neuronprof import pipeline

    options = _options(args)
    result = pipeline.record(args.script, tuple(args.argv), options)
    if result.trace is not None:
        _report(result.trace, result.ended_by, args)
    return result.exit_code


def _options(args: argparse.Namespace) -> "pipeline.Options":
    from neuronprof import pipeline

    if args.steps is not None and args.steps < 1:
        raise NeuronprofError(f"--steps {args.steps} records nothing; give at least 1.")
    if args.warmup < 0:
        raise NeuronprofError(f"--warmup {args.warmup} is not a number of steps; give 0 or more.")
    output = Path(args.output)
    if not output.parent.is_dir():
        raise NeuronprofError(
            f"The folder {output.parent} for the trace does not exist; create it or choose another path with -o."
        )
    return pipeline.Options(
        output=output,
        chip=args.chip,
        lnc=args.lnc,
        dp=args.dp,
        bucket_bytes=units.parse_size(args.bucket),
        values=args.values,
        steps=args.steps,
        warmup=args.warmup,
        run_on=args.run_on,
        module=args.module,
        allow_oom=args.allow_oom,
        jitter=_jitter(args.jitter),
        slow_chips=dict(_slow_chip(text) for text in args.slow_chip),
        seed=args.seed,
    )


def _jitter(text: str) -> float:
    share = units.parse_fraction(text)
    if not 0 <= share < 1:
        raise NeuronprofError(f"--jitter {text} is not between 0 and 100 %; give a share like 2%.")
    return share


def _slow_chip(text: str) -> tuple[int, float]:
    chip, _, factor = text.partition("=")
    try:
        number, times = int(chip), float(factor)
    except ValueError:
        number, times = -1, 0.0
    if number < 0 or times <= 0:
        raise NeuronprofError(f"--slow-chip {text} is not CHIP=FACTOR; write it like 17=1.3.")
    return number, times


_CUT_SHORT = {"error": "failed", "interrupt": "was interrupted", "terminated": "was terminated"}


def _report(trace: Path, ended_by: str, args: argparse.Namespace) -> None:
    """The summary, the file written, and what to run next."""
    from neuronprof import api

    loaded = api.load(trace)
    sys.stdout.flush()
    if args.json:
        print(json.dumps(loaded.summary().to_dict()))
        return
    print(f"\n{loaded.summary()}")
    if ended_by in _CUT_SHORT:
        print(f"\nThe script {_CUT_SHORT[ended_by]}; the trace holds the steps before that.")
    print(f"\nwrote {trace} ({units.size(_bytes(trace))})")
    print(f"next: neuronprof view {trace}      the timeline, in a browser")
    print(f"      neuronprof analyze {trace}   every table behind this summary")


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.glob("*.parquet"))
