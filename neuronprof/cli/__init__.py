"""The command line: one module a verb; the only place that catches NeuronprofError and picks the exit code."""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

VERBS = {
    "record": "run a training script on a simulated machine and write its trace",
    "analyze": "find what holds a trace's steps back",
    "explain": "say why an event took as long as it did: the formula, its numbers and their sources",
    "view": "show a trace's timeline in a browser",
    "sweep": "simulate many layouts of a training script, and say which is best and why",
    "compare-chips": "simulate a training script on several machines, with time and cost beside each other",
    "validate": "hold the simulator against training steps that others measured",
    "collectives": "print how long collectives take on a simulated machine",
    "diff": "compare traces: where the difference in step time comes from, and whether it is noise",
    "whatif": "say what a step would take if something were different",
    "check": "fail when a trace does not keep its limits, for continuous integration",
    "import": "read traces of PyTorch's profiler and of Neuron Explorer",
    "export": "write a trace for Perfetto, Neuron Explorer or a spreadsheet",
    "chips": "list the simulated machines and where each of their numbers comes from",
}

# 0: all went well; 1: a script that was recorded failed, or a check found a violation; 2: something the user can mend.
_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(arguments)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except NeuronprofError as error:
        print(f"neuronprof: {error}", file=sys.stderr)
        return _USER_ERROR
    except BrokenPipeError:
        # Whoever read our output has had enough: that is no error. Nothing may be flushed into the closed pipe at exit.
        sys.stdout = None
        return 0


def spare_inputs(output: str | None, inputs: Iterable[str | Path]) -> None:
    """Refuses an output that is one of the inputs: what is read would be gone.

    Raises:
        NeuronprofError: it is.
    """
    for path in map(Path, inputs):
        try:
            same = output is not None and path.samefile(output)
        except (OSError, ValueError):  # one of them does not exist
            same = False
        if same:
            raise NeuronprofError(f"{output} is read and would be written over; choose another output.")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of only the verb that is called: help and start-up load nothing else."""
    parser = argparse.ArgumentParser(
        prog="neuronprof",
        description="Profiles PyTorch and JAX training scripts on a simulated AWS Trainium4.",
        epilog="'neuronprof VERB --help' describes a verb.",
    )
    parser.add_argument("--version", action="version", version=f"neuronprof {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    called = next((a for a in arguments if not a.startswith("-")), None)
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb == called:
            module = importlib.import_module(f"neuronprof.cli.{verb.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def opened(location: str) -> "TraceFile":
    """Opens a trace that a verb is given; one in S3 is fetched first, with progress.

    Raises:
        NeuronprofError: there is no trace, it is damaged, or of a newer version.
    """
    from neuronprof.progress import Progress
    from neuronprof.trace import reader, storage

    with Progress() as progress:
        path = storage.fetched(location, progress.share)
    return reader.open_trace(path)


def _version() -> str:
    import neuronprof

    return neuronprof.__version__
