"""neuronprof compare-chips: one script on several machines, time and cost beside each other."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.cli import sweep as sweeping
from neuronprof.cli.record import add_script, add_style
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.pipeline.grid import Grid
    from neuronprof.pipeline.sweep import Machines

_CHIPS = "trainium2,trainium3,trainium4,h100"
_COUNT = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "neuronprof compare-chips [options] train.py [script arguments]"
    add = parser.add_argument
    add("--chips", default=_CHIPS, metavar="NAME,...", help="machines of 'neuronprof chips' (default: %(default)s)")
    add("--count", type=int, default=_COUNT, metavar="N", help="chips of each machine (default: %(default)s)")
    add("--price", action="append", default=[], metavar="CHIP=USD", help="of one chip for an hour: h100=6.88")
    add("--json", action="store_true", help="print the table as one JSON object on the last line")
    add("--workers", type=int, metavar="N", help="processes (default: as many as the machine has cores)")
    add_script(parser.add_argument_group("script").add_argument)
    group = parser.add_argument_group("layouts to try (default: for each machine those that are likely to fit)")
    sweeping.add_grid(group)
    parser.set_defaults(tp=None, pp=None, zero=None)
    add_style(parser.add_argument_group("how the step is run on every machine").add_argument)
    add("script", help="the training script, written for one device")
    add("argv", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def run(args: argparse.Namespace) -> int:
    """Captures once, finds the best layout on each machine, prints the table."""
    from neuronprof.analyze.summary import plain
    from neuronprof.distribute.styles import Style
    from neuronprof.pipeline.compare import compare
    from neuronprof.progress import Progress

    machines = _machines(args)
    step = sweeping.captured(args)
    with Progress() as progress:
        table = compare(
            step,
            machines,
            _grid(args),
            style=Style(args.recompute, args.fp8, args.fp32_gradients),
            global_batch=args.global_batch,
            workers=args.workers or os.cpu_count() or 1,
            done=lambda n, count: progress.of("machine", n, count),
        )
    if args.json:
        print(json.dumps(plain({"machines": table.to_dict("records")})))
    else:
        print(f"\n{_text(table, Path(args.script).name, step.tokens)}")
    return 0


def _grid(args: argparse.Namespace) -> "Grid | None":
    """The layouts that were asked for, if any were."""
    given = {axis: getattr(args, axis) for axis in ("tp", "pp", "zero") if getattr(args, axis) is not None}
    for axis in ("tp", "pp", "zero"):
        setattr(args, axis, given.get(axis, (0,) if axis == "zero" else (1,)))
    asked = sweeping.grid_of(args)
    default = replace(type(asked)(), global_batch=asked.global_batch)
    return asked if given or asked != default else None


def _machines(args: argparse.Namespace) -> "list[Machines]":
    from neuronprof.hardware.load import load_chip
    from neuronprof.pipeline.simulated import check_world, cores_a_rank
    from neuronprof.pipeline.sweep import Machines

    if args.count < 1:
        raise NeuronprofError(f"--count {args.count} is no machine; give at least 1.")
    chips = [load_chip(name.strip()) for name in args.chips.split(",")]
    prices = _prices(args.price)
    if unknown := sorted(set(prices) - {chip.name for chip in chips}):
        raise NeuronprofError(f"--price names {unknown[0]}, which is not among --chips {args.chips}.")
    machines = []
    for chip in (replace(chip, eager=args.eager and chip.kernels is not None) for chip in chips):
        lnc = cores_a_rank(chip, None)
        machines.append(Machines(chip, lnc, args.count, prices.get(chip.name, chip.price.hour)))
        check_world(chip, lnc, machines[-1].ranks)
    return machines


def _prices(texts: list[str]) -> dict[str, float]:
    from neuronprof.hardware.load import load_chip

    found = {}
    for text in texts:
        chip, _, usd = text.partition("=")
        try:
            found[load_chip(chip).name] = float(usd)
        except ValueError:
            raise NeuronprofError(f"--price {text} cannot be read; write it like h100=6.88.") from None
    return found


def _text(table: "pd.DataFrame", script: str, tokens: float) -> str:
    batch = f"{table['global_batch'].max():,} samples" + (f" of {tokens:,.0f} tokens" if tokens else "")
    heads = ("chip", "step", "MFU", "tokens/s", "USD/h a chip", "USD a step", "USD/M tokens", "layout")
    cells = [heads, *(_cells(row) for row in table.to_dict("records"))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = (0, len(heads) - 1)
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    prices = ", ".join(f"{label(r)} {r['price_provenance']}" for r in table.to_dict("records"))
    return "\n".join(
        [
            f"{script} on {table['chips'].iloc[0]} chips of each machine, each step {batch}",
            "",
            *lines,
            *_verdict(table),
            "",
            f"prices: {prices}",
        ]
    )


def _verdict(table: "pd.DataFrame") -> list[str]:
    """Which machine is the fastest and which the cheapest, against the first one that fits."""
    from neuronprof.pipeline import sweep

    fitting = table[table["status"] == sweep.FITS]
    if len(fitting) < 2:
        return []
    rows = fitting.to_dict("records")
    first, fastest, cheapest = rows[0], *(min(rows, key=lambda r: r[c]) for c in ("step_time_ns", "cost_per_step"))
    speed, cost = first["step_time_ns"] / fastest["step_time_ns"], cheapest["cost_per_step"] / first["cost_per_step"]
    return [
        "",
        f"fastest: {label(fastest)}, {speed:.2f} times {label(first)}",
        f"cheapest: {label(cheapest)}, {units.percent(cost)} of the cost of {label(first)}",
    ]


def label(row: Mapping[Any, Any]) -> str:
    """A chip with the instance that has it: 'h100-80gb (p5)'."""
    return f"{row['chip']} ({row['instance']})" if row["instance"] else str(row["chip"])


def _cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    from neuronprof.pipeline import sweep

    if row["status"] != sweep.FITS:
        over = (
            f"needs {units.size(row['over_bytes'])} more HBM a rank with " if row["status"] == sweep.TOO_LARGE else ""
        )
        why = f"{over}{sweeping.name(row)}" if over else f"{sweeping.name(row)}: {row['reason']}"
        return (label(row), *["-"] * 3, f"{row['price_hour']:g}", "-", "-", why)
    known = row["tokens_per_second"] == row["tokens_per_second"]
    return (
        label(row),
        units.time(row["step_time_ns"]),
        units.percent(row["mfu"]),
        units.count(row["tokens_per_second"]) if known else "-",
        f"{row['price_hour']:g}",
        f"{row['cost_per_step']:.4g}",
        f"{row['cost_per_million_tokens']:.4g}" if known else "-",
        sweeping.name(row),
    )
