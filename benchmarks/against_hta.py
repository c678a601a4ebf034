"""Kineto traces, here and in HolisticTraceAnalysis 0.5.0: the same question to the same files, in one run.

The question: how much of the device's time is compute, communication, copies and idle, and how much communication is hidden. Each tool
runs in a process of its own, import included; the best of three. Wall and CPU time, and the peak of resident memory of the process and of
its children.

    python benchmarks/against_hta.py FILE.json.gz ... [--hta PYTHON]

PYTHON is an interpreter that has HolisticTraceAnalysis 0.5.0, of a virtual environment; without it only our figures are printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_MEASURE = """
import json, resource, sys, time
begun = time.perf_counter()
{task}
own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
print("MEASURED", json.dumps([time.perf_counter() - begun, cpu, max(own.ru_maxrss, children.ru_maxrss) / 1024]))
"""
_OURS = "from neuronprof.cli import main\nmain(['import', *sys.argv[2:], '--json'{more}])"
_TASKS = {
    "neuronprof, figures": _OURS.format(more=""),
    "neuronprof, figures and trace": _OURS.format(more=", '-o', sys.argv[1] + '/t.parquet'"),
    "HolisticTraceAnalysis": """from hta.trace_analysis import TraceAnalysis
analysis = TraceAnalysis(trace_files=dict(enumerate(sys.argv[2:])), trace_dir=sys.argv[1])
analysis.get_temporal_breakdown(visualize=False)
analysis.get_comm_comp_overlap(visualize=False)""",
}
_NAMES = ("wall s", "CPU s", "peak MB")


def measured(python, task, files):
    """The best of three runs: wall seconds, CPU seconds, MB."""
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            command = [python, "-c", _MEASURE.format(task=task), folder, *files]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in result.stdout.splitlines() if line.startswith("MEASURED ")]
        if not lines:
            raise SystemExit(f"{python} failed:\n{result.stderr[-2000:]}")
        found.append(json.loads(lines[0].removeprefix("MEASURED ")))
    return [min(column) for column in zip(*found, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--hta", metavar="PYTHON")
    args = parser.parse_args()
    files = [str(Path(file).resolve()) for file in args.files]
    results = {}
    for name, task in _TASKS.items():
        if name == "HolisticTraceAnalysis" and not args.hta:
            print(
                "skipped: HolisticTraceAnalysis 0.5.0; give --hta an interpreter that has it (pip install HolisticTraceAnalysis==0.5.0)"
            )
            continue
        results[name] = measured(args.hta if name == "HolisticTraceAnalysis" else sys.executable, task, files)
        print(
            f"{name:<30}", "  ".join(f"{unit} {value:8.2f}" for unit, value in zip(_NAMES, results[name], strict=True))
        )
    if theirs := results.pop("HolisticTraceAnalysis", None):
        for name, ours in results.items():
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            print(f"{name}: {ratios[0]:.1f} times as fast (CPU {ratios[1]:.1f}), {ratios[2]:.1f} times less memory")


if __name__ == "__main__":
    main()
