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
    add("--tokens", metavar="N", help="of a whole job: also how long it takes and what it costs: 15T, 300M")
    add(
        "--service",
        action="append",
        default=[],
        metavar="NAME=USD",
        help="one that bills a million tokens, as fine-tuning on Amazon Bedrock, beside the machines: bedrock=1.49",
    )
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

    machines, services = _machines(args), _named("--service", args.service, "bedrock=1.49")
    job = units.parse_count(args.tokens) if args.tokens else 0.0
    step = sweeping.captured(args)
    if job and not step.tokens:
        raise NeuronprofError(f"--tokens {args.tokens}: {args.script} trains on no tokens; leave the option out.")
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
    billed = _billed(services, job)
    if job:
        table = _of_job(table, job)
    if args.json:
        print(json.dumps(plain({"machines": table.to_dict("records"), "services": billed})))
    else:
        print(f"\n{_text(table, billed, Path(args.script).name, step.tokens)}")
    return 0


def _of_job(table: "pd.DataFrame", tokens: float) -> "pd.DataFrame":
    """With what a job of so many tokens takes and costs; time with nothing but steps in it."""
    return table.assign(
        job_tokens=tokens,
        job_seconds=tokens / table["tokens_per_second"],
        job_cost=tokens / 1e6 * table["cost_per_million_tokens"],
    )


def _billed(services: Mapping[str, float], tokens: float) -> list[dict[str, Any]]:
    return [
        {"service": name, "cost_per_million_tokens": usd} | ({"job_cost": tokens / 1e6 * usd} if tokens else {})
        for name, usd in services.items()
    ]


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

    return {load_chip(chip).name: usd for chip, usd in _named("--price", texts, "h100=6.88").items()}


def _named(option: str, texts: list[str], example: str) -> dict[str, float]:
    """NAME=USD options as a dictionary."""
    found = {}
    for text in texts:
        name, _, usd = text.partition("=")
        try:
            found[name] = float(usd)
        except ValueError:
            raise NeuronprofError(f"{option} {text} cannot be read; write it like {example}.") from None
    return found


_COLUMNS = ("chip", "step", "MFU", "tokens/s", "USD/h a chip", "USD a step", "USD/M tokens")
_OF_JOB = ("job", "USD a job")


def _text(table: "pd.DataFrame", billed: list[dict[str, Any]], script: str, tokens: float) -> str:
    batch = f"{table['global_batch'].max():,} samples" + (f" of {tokens:,.0f} tokens" if tokens else "")
    job = "job_tokens" in table
    heads = (*_COLUMNS, *(_OF_JOB if job else ()), "layout")
    cells = [
        heads,
        *(_cells(row) for row in table.to_dict("records")),
        *(_service_cells(row, len(heads)) for row in billed),
    ]
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
            f"{script} on {table['chips'].iloc[0]} chips of each machine, each step {batch}"
            + (f"; the job {units.count(table['job_tokens'].iloc[0])} tokens" if job else ""),
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
        f"fastest: {label(fastest)}" + (f", {speed:.2f} times {label(first)}" if fastest is not first else ""),
        f"cheapest: {label(cheapest)}"
        + (f", {units.percent(cost)} of the cost of {label(first)}" if cheapest is not first else ""),
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
        return (label(row), *["-"] * 3, f"{row['price_hour']:g}", "-", "-", *["-"] * (2 * ("job_tokens" in row)), why)
    known = row["tokens_per_second"] == row["tokens_per_second"]
    return (
        label(row),
        units.time(row["step_time_ns"]),
        units.percent(row["mfu"]),
        units.count(row["tokens_per_second"]) if known else "-",
        f"{row['price_hour']:g}",
        f"{row['cost_per_step']:.4g}",
        f"{row['cost_per_million_tokens']:.4g}" if known else "-",
        *((units.span(row["job_seconds"]), f"{row['job_cost']:,.0f}") if "job_tokens" in row else ()),
        sweeping.name(row),
    )


def _service_cells(row: Mapping[str, Any], columns: int) -> tuple[str, ...]:
    """A service tells neither its machines nor how long it takes."""
    price = f"{row['cost_per_million_tokens']:.4g}"
    job = ("-", f"{row['job_cost']:,.0f}") if "job_cost" in row else ()
    found = (row["service"], *["-"] * (len(_COLUMNS) - 2), price, *job)
    return (*found, *["-"] * (columns - len(found)))
