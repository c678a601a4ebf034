"""What analyzing costs beside reading: each analyzer against the bare decoding of its columns, and the full report.

    python benchmarks/analyze.py [--events 10_000_000] [--workers 2]
    python benchmarks/analyze.py --peak [--events 200_000_000] [--ranks 16] [--steps 4]

CPU seconds of this process, the best of three; a ratio of 1 is an analyzer that costs nothing. The trace is a synthetic one of four chips.
With --peak: how much memory `neuronprof analyze` takes at most for a trace of so many events on so many ranks, four to a chip.
"""

import argparse
import os
import subprocess
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


def peak(path):
    """Prints what the report of a trace takes, in a process of its own."""
    begun = time.perf_counter()
    report = subprocess.Popen([sys.executable, "-m", "neuronprof", "analyze", str(path)], stdout=subprocess.PIPE)
    text = report.stdout.read().decode()
    _, status, used = os.wait4(report.pid, 0)
    if status:
        sys.exit(text)
    print(f"{open_trace(path).num_events:,} events: {used.ru_maxrss * 1024 / 1e9:.2f} GB at most, "
          f"{used.ru_utime + used.ru_stime:.0f} s of CPU, {time.perf_counter() - begun:.0f} s")  # fmt: skip
    print("".join(f"{line}\n" for line in text.splitlines() if "is left out" in line), end="")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="default: 10 million, with --peak 200 million")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    args.events = args.events or (200_000_000 if args.peak else 10_000_000)
    with tempfile.TemporaryDirectory() as folder:
        if args.peak:
            trace = Path(folder) / "trace.parquet"
            peak(synthetic_trace.write(trace, args.events // args.ranks, args.steps, range(args.ranks)))
            return
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
