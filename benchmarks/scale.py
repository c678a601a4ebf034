"""What a simulation costs as the job grows: a training step of one model on more and more chips, every rank with its own jitter.

    python benchmarks/scale.py                                   # a trillion parameters, 1,024 to 32,768 chips: some ten minutes
    python benchmarks/scale.py --model 8b --chips 256,1024 --pipeline 8   # a minute

Prints a table, a line for each number of chips, and beside it what other simulators need for comparable work; -o draws the table.
A chip is one rank here (--lnc 8); --lnc 2 makes it four.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "sample_traces" / "train_llm.py"
TENSOR, MICROBATCHES = 8, 16
# Measured on two cores of a Sapphire Rapids class machine in November 2026, each as published: ranks, seconds, GB, what was simulated.
PEERS = (
    ("ASTRA-sim 2, 4 layers of a GPT", 1024, 58, 1.07, "every rank, network without congestion"),
    ("ASTRA-sim 2, one ring all-reduce", 2048, 81.5, 1.40, "every rank, messages of one collective"),
    ("LogGOPSim, one ring all-reduce", 2048, 7.2, 2.3, "every rank, messages of one collective"),
    ("SimuMax 1.2, Megatron 1T", 3072, 197, 1.19, "one rank a stage"),
    ("vTrain, Megatron 1T", 3072, 30.3, 2.2, "one rank a stage"),
    ("SimAI analytical, a MoE", 9216, 11.3, 0.007, "one rank, totals a layer"),
    ("Calculon, Megatron 1T", 3072, 0.54, 0.107, "closed form, no timeline"),
)


def options(args, chips):
    """The layout: the pipeline and the micro-batches stay, the replicas grow with the chips."""
    ranks = chips * 8 // args.lnc
    return {
        "dp": ranks // (TENSOR * args.pipeline), "tp": TENSOR, "pp": args.pipeline, "microbatches": MICROBATCHES, "sequence_parallel": True,
        "zero": 1, "jitter": 0.02, "lnc": args.lnc, "values": "none", "steps": 1, "warmup": 0, "quiet": True,
    }  # fmt: skip


def script_arguments(args):
    return (
        "--model",
        args.model,
        "--batch",
        str(MICROBATCHES),
        "--sequence",
        "2048",
        "--steps",
        "1",
        "--checkpointing",
    )


def recorded(args, chips):
    """Seconds and GB of `neuronprof record` as a user runs it, from start to the written trace."""
    chosen = options(args, chips)
    flags = [
        f"--{name}={chosen[name]}"
        for name in ("dp", "tp", "pp", "microbatches", "zero", "jitter", "lnc", "values", "steps", "warmup")
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "neuronprof",
            "record",
            *flags,
            "--sequence-parallel",
            "-o",
            f"{folder}/trace.parquet",
            str(SCRIPT),
        ]
        begun = time.perf_counter()
        subprocess.run([*command, *script_arguments(args)], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def simulated(args, chips):
    """(instruction, rank) pairs of the step, and the seconds that the lanes alone take."""
    from neuronprof import pipeline
    from neuronprof.pipeline.simulated import Simulation
    from neuronprof.simulate.cluster import Prepared
    from neuronprof.simulate.fleet import fleet

    chosen = pipeline.Options.of(**options(args, chips))
    simulation = Simulation(pipeline.capture(SCRIPT, script_arguments(args), chosen).recording, chosen)
    _, compiled = simulation.compiled[0]
    prepared = Prepared(fleet(compiled.programs, simulation.job), simulation.job)
    begun = time.perf_counter()
    prepared.lanes.run(0)
    return len(prepared.fleet) * simulation.job.lanes, time.perf_counter() - begun


def one(args, chips):
    """A row of the table, measured in processes of its own."""
    row = {"chips": chips, "ranks": chips * 8 // args.lnc}
    for what in ("record", "simulate"):
        command = [
            sys.executable,
            __file__,
            "--only",
            what,
            "--model",
            args.model,
            "--lnc",
            str(args.lnc),
            "--chips",
            str(chips),
        ]
        out = subprocess.run([*command, "--pipeline", str(args.pipeline)], check=True, capture_output=True, text=True)
        row |= json.loads(out.stdout.splitlines()[-1])
    return row


def measure(args):
    """One half of a row, as JSON on the last line."""
    chips = int(args.chips)
    if args.only == "record":
        seconds = recorded(args, chips)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(json.dumps({"record_s": seconds, "gb": peak / 1e9}))
    else:
        pairs, seconds = simulated(args, chips)
        print(json.dumps({"pairs": pairs, "simulate_s": seconds}))


def draw(rows, args):
    """The table as a picture: seconds against chips, both logarithmic, with what linear growth would be."""
    from bokeh.plotting import figure, output_file, save

    output_file(args.output, title="Cost of a simulation")
    title = f"One training step, {args.model} parameters, every rank simulated"
    plot = figure(
        x_axis_type="log",
        y_axis_type="log",
        width=900,
        height=500,
        title=title,
        x_axis_label="chips",
        y_axis_label="seconds",
    )
    chips = [r["chips"] for r in rows]
    for name, label, colour in (
        ("record_s", "record, start to trace", "#0072B2"),
        ("simulate_s", "simulate alone", "#D55E00"),
    ):
        plot.line(chips, [r[name] for r in rows], color=colour, legend_label=label, line_width=2)
        plot.scatter(chips, [r[name] for r in rows], color=colour, size=8)
    last = rows[-1]
    plot.line(
        chips,
        [last["simulate_s"] * c / last["chips"] for c in chips],
        color="grey",
        line_dash="dashed",
        legend_label="linear",
    )
    plot.legend.location = "top_left"
    save(plot)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1t", help="a model of sample_traces/train_llm.py (default: %(default)s)")
    parser.add_argument("--chips", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--pipeline", type=int, default=16, help="stages (default: %(default)s)")
    parser.add_argument("--lnc", type=int, default=8, help="NeuronCores of a rank (default: all 8 of a chip)")
    parser.add_argument("--only", choices=("record", "simulate"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", help="draw the table into this HTML file")
    args = parser.parse_args()
    if args.only:
        measure(args)
        return
    print(
        f"{'chips':>7}{'ranks':>8}{'record s':>10}{'GB':>6}{'simulate s':>12}{'M pairs':>10}{'M pairs/s':>11}{'us a chip':>11}"
    )
    rows = []
    for chips in map(int, args.chips.split(",")):
        rows.append(row := one(args, chips))
        rate, each = row["pairs"] / row["simulate_s"] / 1e6, row["simulate_s"] / chips * 1e6
        print(
            f"{chips:>7,}{row['ranks']:>8,}{row['record_s']:>10.1f}{row['gb']:>6.1f}{row['simulate_s']:>12.2f}"
            f"{row['pairs'] / 1e6:>10,.0f}{rate:>11,.0f}{each:>11,.0f}",
            flush=True,
        )
    print("\nOther simulators, comparable work, on a machine of the same size:")
    for name, ranks, seconds, gigabytes, what in PEERS:
        print(f"  {name:<34}{ranks:>6,} ranks{seconds:>8.1f} s{gigabytes:>8.2f} GB   {what}")
    if args.output:
        draw(rows, args)


if __name__ == "__main__":
    main()
