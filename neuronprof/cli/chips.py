"""`neuronprof chips`: the simulated machines, and where each of their numbers comes from."""

import argparse
import json
import shutil
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from neuronprof import units

if TYPE_CHECKING:
    from neuronprof.hardware.spec import Chip, Quantity

_LEGEND = "'neuronprof chips NAME' shows every number and its source."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a shipped chip, or a .toml file; default: list the shipped ones"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with values in the units it names")


def run(args: argparse.Namespace) -> int:
    """Prints the table of chips, or every number of one."""
    from neuronprof.hardware.load import chip_names, load_chip

    if args.name:
        chip = load_chip(args.name)
        print(json.dumps(_as_json(chip), indent=2) if args.json else _numbers(chip, shutil.get_terminal_size().columns))
        return 0
    chips = [load_chip(name) for name in chip_names()]
    print(json.dumps([_as_json(chip) for chip in chips], indent=2) if args.json else _overview(chips))
    return 0


def _as_json(chip: "Chip") -> dict[str, Any]:
    numbers = {
        key: {"value": q.value, "unit": q.unit, "provenance": str(q.provenance), "source": q.source}
        for key, q in chip.quantities.items()
    }
    return {"chip": chip.name, "title": chip.title, "topology": chip.topology, "quantities": numbers}


def _overview(chips: list["Chip"]) -> str:
    """Two tables: what the chips can do, and how many of their numbers come from where."""
    from neuronprof.terms import Provenance

    speeds = [["chip", "BF16", "FP8", "HBM", "HBM bandwidth", "NeuronLink", "cores"]]
    used = [p for p in Provenance if any(q.provenance is p for chip in chips for q in chip.quantities.values())]
    origins = [["chip", *used, "title"]]
    for chip in chips:
        counts = Counter(q.provenance for q in chip.quantities.values())
        speeds.append(
            [
                chip.name,
                units.count(chip.peak.bf16, "FLOP/s"),
                units.count(chip.peak.fp8, "FLOP/s"),
                units.size(chip.package.hbm_capacity),
                units.count(chip.package.hbm_bandwidth, "B/s"),
                units.count(chip.neuronlink.bandwidth, "B/s"),
                f"{chip.package.cores:g}",
            ]
        )
        origins.append([chip.name, *(str(counts[p]) for p in used), chip.title])
    return f"{_table(speeds)}\n\nHow many of its numbers are\n{_table(origins, texts=(0, -1))}\n\n{_LEGEND}"


def _table(rows: list[list[str]], texts: tuple[int, ...] = (0,)) -> str:
    """Columns as wide as their longest cell; the columns `texts` to the left, numbers to the right."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    left = {i % len(columns) for i in texts}
    for i, column in enumerate(columns):
        width = max(map(len, column))
        columns[i] = [cell.ljust(width) if i in left else cell.rjust(width) for cell in column]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def _numbers(chip: "Chip", width: int) -> str:
    lines = [f"{chip.name}: {chip.title}", f"NeuronLink topology: {chip.topology}"]
    section = ""
    for key, quantity in chip.quantities.items():
        before, _, field = key.partition(".")
        if before != section:
            section = before
            lines += ["", f"[{section}]"]
        lines.append(f"  {field:<16} {_value(quantity):>26}  {quantity.provenance}")
        indent = " " * 6
        lines += textwrap.wrap(
            quantity.source, max(width, 40), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    return "\n".join(lines)


def _value(quantity: "Quantity") -> str:
    """The number in a readable size, with its unit: 2.4 GHz, 384 GiB, 1.5 us, 128 PE."""
    value, unit = quantity.value, quantity.unit
    if unit == "B":
        return units.size(value)
    if unit == "s":
        return units.time(value * 1e9)
    if unit == "fraction":
        return units.percent(value)
    if unit in ("B/s", "FLOP/s", "Hz"):
        return units.count(value, unit)
    return f"{value:,g} {unit}"
