"""neuronprof sweep: simulate many layouts of one script, and say which is best and why."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.cli.record import add_script
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.distribute.styles import Style
    from neuronprof.pipeline.grid import Grid
    from neuronprof.pipeline.sweep import Machines, Step

_SHOWN = 15
_SWITCH = {"off": (False,), "on": (True,), "both": (False, True)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "neuronprof sweep [options] train.py [script arguments]"
    add = parser.add_argument
    add("-o", "--output", default="sweep.parquet", help="the table to write (default: %(default)s); a page beside it")
    add("--json", action="store_true", help="print the table as one JSON object on the last line")
    add("--workers", type=int, metavar="N", help="processes (default: as many as the machine has cores)")
    machine = parser.add_argument_group("machine").add_argument
    machine("--chip", default="trainium4", help="a chip of 'neuronprof chips', or a TOML file (default: %(default)s)")
    machine("--lnc", type=int, help="physical NeuronCores in a logical one, which is one rank (default: the chip's)")
    machine("--chips", type=int, default=128, metavar="N", help="chips of the job (default: %(default)s)")
    machine("--price", type=float, metavar="USD", help="of one chip for an hour (default: the chip file's)")
    add_script(parser.add_argument_group("script").add_argument)
    add_grid(parser.add_argument_group("layouts to try: every combination; --dp takes the ranks that are left"))
    _add_styles(parser.add_argument_group("how every layout is run: every combination").add_argument)
    add("script", help="the training script, written for one device")
    add("argv", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def add_grid(group: Any) -> None:
    """Adds the options that list the sizes to try."""
    add = group.add_argument
    sizes = {"type": _numbers, "metavar": "N,..."}
    add("--tp", **sizes, default=(1, 2, 4, 8), help="tensor-parallel sizes (default: 1,2,4,8)")
    add("--pp", **sizes, default=(1, 2, 4), help="pipeline stages (default: 1,2,4)")
    add("--cp", **sizes, default=(1,), help="context-parallel sizes (default: 1)")
    add("--vp", **sizes, default=(1,), help="virtual stages, for --schedule interleaved (default: 1)")
    add("--microbatches", **sizes, default=(1,), help="parts into which the script's batch is cut (default: 1)")
    add("--zero", **sizes, default=(0, 1), help="ZeRO stages, 0 to 3 (default: 0,1)")
    add("--schedule", default="1f1b", metavar="NAME,...", help="pipeline schedules (default: 1f1b)")
    add("--sequence-parallel", choices=_SWITCH, default="off", help="with --tp above 1 (default: off)")
    add(
        "--global-batch",
        type=int,
        metavar="N",
        help="samples of a step over all ranks, the same for every layout (default: the script's batch on each replica of the "
        "layout that has most); replicas that are fewer take more micro-batches each",
    )


def _add_styles(add: Callable[..., Any]) -> None:
    """Adds the options that list the styles to try."""
    recompute, grad_sync = _some_of("none", "selective", "full"), _some_of("overlapped", "after")
    add(
        "--recompute",
        type=recompute,
        metavar="NAME,...",
        default=("none",),
        help="none, selective, full (default: none)",
    )
    add("--fp8", choices=_SWITCH, default="off", help="products of repeated blocks in FP8 (default: off)")
    add("--fp32-gradients", choices=_SWITCH, default="off", help="gradients of 16 bits summed in FP32 (default: off)")
    add(
        "--grad-sync",
        type=grad_sync,
        metavar="NAME,...",
        default=("overlapped",),
        help="overlapped, after (default: overlapped)",
    )
    add(
        "--prefetch",
        type=_numbers,
        metavar="N,...",
        default=(1,),
        help="with --zero 3: blocks gathered ahead (default: 1)",
    )
    add("--eager", action="store_true", help="on a GPU: each operator is a kernel that the host launches, unfused")


def _some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Reads a list of names of which each must be known."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' does not exist; choose of {', '.join(known)}.")
        return names

    return read


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers; write it like 1,2,4.")
    return tuple(dict.fromkeys(map(int, parts)))


def grid_of(args: argparse.Namespace) -> "Grid":
    """The layouts that the options ask for."""
    from neuronprof.pipeline.grid import Grid

    return Grid(
        tp=args.tp,
        pp=args.pp,
        cp=args.cp,
        vp=args.vp,
        microbatches=args.microbatches,
        zero=args.zero,
        schedules=tuple(args.schedule.split(",")),
        sequence_parallel=_SWITCH[args.sequence_parallel],
        global_batch=args.global_batch,
    )


def _styles(args: argparse.Namespace) -> "tuple[Style, ...]":
    from neuronprof.distribute.styles import Style

    return tuple(starmap(Style, product(args.recompute, _SWITCH[args.fp8], _SWITCH[args.fp32_gradients])))


def captured(args: argparse.Namespace) -> "Step":
    """The script's training step.

    Raises:
        NeuronprofError: it has none, or it failed before.
    """
    from neuronprof import pipeline
    from neuronprof.pipeline.sweep import step_of

    options = pipeline.Options(
        values=args.values, steps=args.steps or 1, warmup=args.warmup, run_on=args.run_on, module=args.module
    )
    outcome = pipeline.capture(args.script, tuple(args.argv), options)
    if outcome.recording is None:
        raise NeuronprofError(
            f"{args.script} ended before its first training step was complete; nothing can be laid out."
        )
    return step_of(outcome.recording)


def run(args: argparse.Namespace) -> int:
    """Captures once, simulates every layout, prints and writes the table."""
    from neuronprof.pipeline.simulated import check_world, chip_run, cores_a_rank
    from neuronprof.pipeline.sweep import Machines, sweep
    from neuronprof.progress import Progress
    from neuronprof.view import tradeoff

    output, chip = check_output(args.output), chip_run(args.chip, args.eager)
    if args.chips < 1:
        raise NeuronprofError(f"--chips {args.chips} is no machine; give at least 1.")
    lnc = cores_a_rank(chip, args.lnc)
    machines = Machines(chip, lnc, args.chips, chip.price.hour if args.price is None else args.price)
    check_world(chip, lnc, machines.ranks)
    step = captured(args)
    grid = replace(grid_of(args), grad_sync=args.grad_sync, prefetch=args.prefetch, styles=_styles(args))
    with Progress() as progress:
        workers = args.workers or os.cpu_count() or 1
        table = sweep(step, machines, grid, workers=workers, done=lambda n, count: progress.of("layout", n, count))
    table.to_parquet(output)
    page = output.with_suffix(".html")
    tradeoff.write(table, page, f"{Path(args.script).name} on {args.chips} x {chip.title}")
    if args.json:
        print(json.dumps(_object(table, machines)))
        return 0
    print(f"\n{_text(table, step, machines)}")
    _next(table, args, output, page)
    return 0


def check_output(output: str) -> Path:
    """The table's path, before any work is done for it.

    Raises:
        NeuronprofError: it is no Parquet file, or its folder does not exist.
    """
    path = Path(output)
    if path.suffix != ".parquet":
        raise NeuronprofError(f"'{output}' is not the name of a table; end it in .parquet.")
    if not path.parent.is_dir():
        raise NeuronprofError(f"The folder {path.parent} does not exist; create it or choose another path with -o.")
    return path


def _object(table: "pd.DataFrame", machines: "Machines") -> dict[str, Any]:
    from neuronprof.analyze.summary import plain
    from neuronprof.pipeline import sweep

    fitting = table[table["status"] == sweep.FITS]
    rows = fitting.to_dict("records")
    found: dict[str, Any] = plain(
        {
            "chip": machines.chip.name,
            "chips": machines.count,
            "price_hour": machines.price,
            "best": rows[0] if rows else None,
            "runner_up": rows[1] if len(rows) > 1 else None,
            "runner_up_loses_ns": sweep.losses(rows[0], rows[1]) if len(rows) > 1 else None,
            "layouts": table.to_dict("records"),
        }
    )
    return found


def _text(table: "pd.DataFrame", step: "Step", machines: "Machines") -> str:
    from neuronprof.pipeline import sweep

    fitting = table[table["status"] == sweep.FITS]
    batch = f"{table['global_batch'].max():,} samples" + (f" of {step.tokens:,.0f} tokens" if step.tokens else "")
    lines = [
        f"{len(table)} layouts on {machines.count} x {machines.chip.title} ({machines.ranks:,} ranks), each step {batch}",
        f"price: {machines.price:g} USD an hour for a chip",
        "",
        *_rows(fitting.head(_SHOWN)),
    ]
    if len(fitting) > _SHOWN:
        lines.append(f"... and {len(fitting) - _SHOWN} slower ones in the table")
    lines += _verdict(fitting)
    large = table[table["status"] == sweep.TOO_LARGE]
    if len(large):
        lines += ["", f"does not fit into {units.size(large['hbm_capacity_bytes'].iloc[0])} a rank:"]
        lines += [
            f"  {name(row)}: needs {units.size(row['hbm_peak_bytes'])}, {units.size(row['over_bytes'])} too much"
            for row in large.head(_SHOWN).to_dict("records")
        ]
        lines += [f"  ... and {len(large) - _SHOWN} more"] if len(large) > _SHOWN else []
    impossible = table[table["status"] == sweep.IMPOSSIBLE]
    if len(impossible):
        lines += ["", "impossible:"]
        for reason, rows in impossible.groupby("reason", sort=False):
            first = name(rows.iloc[0].to_dict())
            lines.append(f"  {first}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}: {reason}")
    return "\n".join(lines)


def name(row: Mapping[Any, Any]) -> str:
    """A layout in few words: 'dp 16, tp 8, pp 4, zero 1'."""
    sizes = [f"{axis} {row[axis]}" for axis in ("dp", "tp", "pp", "cp", "vp", "zero") if row[axis] > (axis == "vp")]
    shown = [s for s in sizes if not s.endswith(" 1") or s.startswith(("dp", "zero"))]
    parts = row["microbatches"] * row["accumulate"]
    shown += [f"{parts} micro-batches"] if parts > 1 else []
    shown += ["sequence parallel"] if row["sequence_parallel"] else []
    shown += [row["schedule"]] if row["pp"] > 1 and row["schedule"] != "1f1b" else []
    return ", ".join(shown + [option.removeprefix("--").replace("-", " ") for option in _style(row)])


def _rows(table: "pd.DataFrame") -> list[str]:
    heads = ("step", "tokens/s", "MFU", "exposed", "bubble", "HBM peak", "USD/M tokens", "", "layout")
    cells = [heads]
    for row in table.to_dict("records"):
        known = row["tokens_per_second"] == row["tokens_per_second"]
        step = row["step_time_ns"]
        cells.append(
            (
                units.time(step),
                units.count(row["tokens_per_second"]) if known else "-",
                units.percent(row["mfu"]),
                units.percent(row["exposed_ns"] / step),
                units.percent(row["bubble_ns"] / step),
                units.size(row["hbm_peak_bytes"]),
                f"{row['cost_per_million_tokens']:.4g}" if known else "-",
                "*" if row["pareto"] else "",
                name(row),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    last = len(heads) - 1
    return [
        "  ".join(
            c.ljust(w) if i == last else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ] + ["* no other layout is better in both step time and HBM"]


def _verdict(fitting: "pd.DataFrame") -> list[str]:
    from neuronprof.pipeline import sweep

    rows = fitting.head(2).to_dict("records")
    if not rows:
        return ["Nothing fits: more chips, larger --tp or --pp, --zero, or activation checkpointing in the script."]
    lines = ["", f"best: {name(rows[0])}"]
    if len(rows) > 1:
        longer = rows[1]["step_time_ns"] - rows[0]["step_time_ns"]
        parts = sorted(sweep.losses(*rows).items(), key=lambda part: -abs(part[1]))
        said = ", ".join(f"{'+' if ns >= 0 else '-'}{units.time(abs(ns))} {what}" for what, ns in parts if abs(ns) >= 1)
        lines.append(
            f"runner-up: {name(rows[1])} takes {units.time(longer)} longer ({units.percent(longer / rows[0]['step_time_ns'])}): {said}"
        )
    return lines


def _next(table: "pd.DataFrame", args: argparse.Namespace, output: Path, page: Path) -> None:
    from neuronprof.pipeline import sweep

    print(f"\nwrote {output} and {page}")
    if table["status"].iloc[0] != sweep.FITS:
        return
    row = table.iloc[0].to_dict()
    given = [
        f"--{axis} {row[axis]}"
        for axis in ("dp", "tp", "pp", "cp", "vp", "microbatches", "accumulate")
        if row[axis] > 1
    ]
    given += [f"--zero {row['zero']}"] if row["zero"] else []
    given += ["--sequence-parallel"] if row["sequence_parallel"] else []
    given += [f"--schedule {row['schedule']}"] if row["pp"] > 1 else []
    given += [*_style(row), *(["--eager"] if args.eager else [])]
    chip = f"--chip {args.chip} " if args.chip != "trainium4" else ""
    print(f"next: neuronprof record {chip}{' '.join(given)} {' '.join([args.script, *args.argv])}")


def _style(row: Mapping[Any, Any]) -> list[str]:
    """The options that say how a layout is run, where they differ from the default."""
    words = (
        ("recompute", "none"),
        ("grad_sync", "overlapped"),
        ("prefetch", 1),
        ("fp8", False),
        ("fp32_gradients", False),
    )
    given = [(name.replace("_", "-"), row[name]) for name, default in words if row[name] != default]
    return [f"--{name}" if value is True else f"--{name} {value}" for name, value in given]
