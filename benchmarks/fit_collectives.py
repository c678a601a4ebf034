"""Fits the links of A100, H100 and Trainium1 to measured collectives, and prints the values that stand in their TOML files.

    python benchmarks/fit_collectives.py

Each link has a handful of parameters for all collectives, sizes and numbers of ranks; `LINKS` says which, and to which rows. The loss is
the mean of |log(predicted / measured)|, which a few odd measurements do not sway, made smaller one parameter at a time by ever smaller
factors, from rough values on, so that the same values come out each time. Below them stands predicted / measured of each collective and
size.
"""

from collections.abc import Callable
from dataclasses import replace
from math import exp, log

from collectives import Row, measured

from neuronprof.hardware.load import load_chip
from neuronprof.hardware.spec import Chip

# chip, link, parameters with where to begin, and the numbers of ranks to whose rows they are fitted
_NVLINK = {
    "efficiency": 0.7,
    "latency": 1e-6,
    "start": 5e-5,
    "quick_start": 1e-5,
    "quick_efficiency": 0.4,
    "local_bandwidth": 5e11,
}
_NETWORK = {"efficiency": 0.7, "start": 5e-4, "quick_start": 1e-4, "quick_efficiency": 0.3}
LINKS = (
    ("a100-80gb", "neuronlink", _NVLINK, (2, 8)),
    ("a100-p4de", "efa", _NETWORK, (16,)),
    ("h100-80gb", "neuronlink", _NVLINK | {"in_switch_efficiency": 0.6}, (2, 8)),
    ("trainium1", "neuronlink", {"start": 5e-5, "local_bandwidth": 1e11}, (2,)),
)


def chosen(chip: str, ranks: tuple[int, ...]) -> list[Row]:
    return [row for row in measured() if row.chip == chip and row.ranks in ranks and row.collective != "alltoallv"]


def changed(chip: Chip, link: str, values: dict[str, float]) -> Chip:
    return replace(chip, **{link: replace(getattr(chip, link), **values)})


def loss(chip: Chip, rows: list[Row]) -> float:
    return sum(abs(log(row.predicted(chip).picoseconds / 1e12 / row.seconds)) for row in rows) / len(rows)


def fitted(begin: dict[str, float], error: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """The values with the least error; efficiencies stay at most 1."""
    best, least = begin, error(begin)
    step = 0.4
    while step > 0.002:
        before = least
        for name in best:
            for factor in (exp(step), exp(-step)):
                tried = best | {name: best[name] * factor}
                if tried[name] > 1 and name.endswith("efficiency"):
                    continue
                if (found := error(tried)) < least:
                    best, least = tried, found
        step = step if least < before * 0.9999 else step / 2
    return best


def table(chip: Chip, rows: list[Row]) -> str:
    """Predicted / measured: a line a size, a column a collective."""
    cases = list(dict.fromkeys(row.case.removeprefix(row.chip).strip() for row in rows))
    ratios = {
        (row.nbytes, row.case.removeprefix(row.chip).strip()): row.predicted(chip).picoseconds / 1e12 / row.seconds
        for row in rows
    }
    lines = ["      bytes  " + "  ".join(cases)]
    for size in sorted({row.nbytes for row in rows}):
        cells = [f"{ratios[size, c]:.2f}" if (size, c) in ratios else "" for c in cases]
        lines.append(f"{size:>11}  " + "  ".join(cell.rjust(len(c)) for cell, c in zip(cells, cases, strict=True)))
    return "\n".join(lines)


def main() -> None:
    chips: dict[str, Chip] = {}
    for name, link, begin, ranks in LINKS:
        chip = load_chip(name)
        if link == "efa":  # with NVLink as fitted before
            chip = changed(chip, "neuronlink", {f: getattr(chips["a100-80gb"].neuronlink, f) for f in _NVLINK})
        rows = chosen(name, ranks)
        values = fitted(begin, lambda tried, c=chip, k=link, r=rows: loss(changed(c, k, tried), r))
        shown = {field: float(f"{value:.3g}") for field, value in values.items()}
        chips[name] = changed(chip, link, shown)
        error = exp(loss(chips[name], rows)) - 1
        print(f"{name} [{link}], {len(rows)} rows, mean error {error:.1%}")
        for field, value in shown.items():
            print(f"    {field:<22} {value:g}")
        print(table(chips[name], rows) + "\n")


if __name__ == "__main__":
    main()
