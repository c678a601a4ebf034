"""`neuronprof export`: a trace for other tools.

The name of the output says what is written: *.json or *.json.gz is Chrome JSON for Perfetto, *.csv a table of events, any other name a
folder of Neuron Explorer's Parquet tables (schema 7.4.0), one folder a rank. What the tables have no place for is counted and told.
"""

import argparse
from pathlib import Path

from neuronprof import units
from neuronprof.cli import spare_inputs
from neuronprof.errors import NeuronprofError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("trace", help="the trace.parquet to export")
    parser.add_argument("-o", "--output", required=True, help="*.json, *.json.gz, *.csv, or a folder")
    parser.add_argument("--rank", type=int, metavar="N", help="only this rank")
    parser.add_argument("--start", metavar="TIME", help="only events that run at this time, 1.5ms, or later")
    parser.add_argument("--end", metavar="TIME", help="only events that start before this time")


def run(args: argparse.Namespace) -> int:
    """Writes the export and says what was written."""
    from neuronprof.cli import opened
    from neuronprof.exchange import chrome, csvtable, explorer
    from neuronprof.exchange.selected import Selection

    output = Path(args.output)
    spare_inputs(args.output, [args.trace])
    if not output.parent.is_dir():
        raise NeuronprofError(f"The folder {output.parent} does not exist; make it, or choose another with -o.")
    selection = Selection(opened(args.trace), args.rank, _time(args.start), _time(args.end))
    name = output.name.lower()
    if name.endswith((".json", ".json.gz", ".csv")):
        written = (csvtable if name.endswith(".csv") else chrome).write(selection, output)
        print(f"wrote {output}: {written:,} events")
        return 0
    tables = explorer.write(selection, output)
    print(f"wrote {output}: {tables.events:,} events of {tables.ranks} ranks")
    if tables.left_out:
        print(
            "no table has a place for: "
            + ", ".join(f"{n:,} events of {engine}" for engine, n in tables.left_out.items())
        )
    return 0


def _time(text: str | None) -> int | None:
    return None if text is None else round(units.parse_time(text))
