"""neuronprof explain: why an event took as long as it did, and why it did not start sooner.

Prints the formula of its duration, each number in it with unit, provenance and source, and what bound it: compute, bytes, latency or
overhead. EVENT is an id (the trace's column id), or a name, operator or layer, of which the longest event is taken: MATMUL, '*.mlp'.

The object of --json: event (its columns), chosen (how it was found), worked (lines, parameters, factors, bound and seconds; null where the
trace holds no formula, and note says why), released_by (columns of the event whose end let it start).
"""

import argparse
import json
import shutil


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("trace", help="the trace.parquet that neuronprof record wrote")
    parser.add_argument("event", metavar="EVENT", help="an id, or a name, operator or layer, with * and ? as wildcards")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    from neuronprof.analyze.explain import explain
    from neuronprof.cli import opened

    explanation = explain(opened(args.trace), args.event)
    if args.json:
        print(json.dumps(explanation.to_dict()))
    else:
        from neuronprof.view import why

        print(why.text(explanation, shutil.get_terminal_size().columns))
    return 0
