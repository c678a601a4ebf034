"""What analyzing costs beside reading: each analyzer against the bare decoding of its columns, and the full report.

    python benchmarks/analyze.py [--events 10_000_000] [--workers 2]

CPU seconds of this process, the best of three; a ratio of 1 is an analyzer that costs nothing. The trace is a synthetic one of four chips.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import synthetic_trace

from neuronprof.analyze import analyzer, execution, registry
from neuronprof.analyze.passes import run
from neuronprof.trace.reader import open_trace

_CHIPS = 4


def seconds(act, clock=time.process_time):
    """The best of three."""
    found = []
    for _ in range(3):
        begun = clock()
        act()
        found.append(clock() - begun)
    return min(found)


def decode(trace, names):
    """Reads columns as analyzers get them, chip by chip, and drops them."""
    for chip in trace.chips:
        analyzer.events(trace.columns(names, chip=chip))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic_trace.write(
            Path(folder) / "trace.parquet", args.events // _CHIPS, ranks=range(0, 4 * _CHIPS, 4)
        )
        trace = open_trace(path)
        print(f"{trace.num_events:,} events on {_CHIPS} chips")
        run(trace, registry.ANALYZERS)  # compiles what is compiled
        for one in registry.ANALYZERS:
            names = tuple(dict.fromkeys(analyzer.BASE + one.needs))
            bare = seconds(lambda names=names: decode(trace, names))
            spent = seconds(lambda one=one: run(trace, [one]))
            print(f"{one.name:<16} decoding {bare:6.2f} s  analyzing {spent:6.2f} s  ratio {spent / bare:5.2f}")
        wall = seconds(lambda: run(trace, registry.ANALYZERS), time.perf_counter)
        print(f"full report, one process: {wall:.1f} s")
        with execution.on(args.workers) as mapper:
            run(trace, registry.ANALYZERS, mapper=mapper)  # the workers have started
            wall = seconds(lambda: run(trace, registry.ANALYZERS, mapper=mapper), time.perf_counter)
        print(f"full report, {args.workers} workers: {wall:.1f} s")


if __name__ == "__main__":
    main()
