"""Fits the links of A100, H100 and Trainium1 to measured collectives, and prints the values that stand in their TOML files.

    python benchmarks/fit_collectives.py

Each link has a handful of parameters for all collectives, sizes and numbers of ranks; `LINKS` says which, and to which rows. The loss is
the mean of |log(predicted / measured)|, which a few odd measurements do not sway, made smaller one parameter at a time by ever smaller
factors, from rough values on, so that the same values come out each time. collectives.py prints the error of each collective, and of each
size with --rows.
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


def main() -> None:
    chips: dict[str, Chip] = {}
    for name, link, begin, ranks in LINKS:
        chip = load_chip(name)
        if link == "efa":  # with NVLink as fitted before
            chip = changed(chip, "neuronlink", {f: getattr(chips["a100-80gb"].neuronlink, f) for f in _NVLINK})
        rows = [row for row in measured() if row.chip == name and row.ranks in ranks and row.collective != "alltoallv"]
        values = fitted(begin, lambda tried, c=chip, k=link, r=rows: loss(changed(c, k, tried), r))
        shown = {field: float(f"{value:.3g}") for field, value in values.items()}
        chips[name] = changed(chip, link, shown)
        error = exp(loss(chips[name], rows)) - 1
        print(f"{name} [{link}], {len(rows)} rows, mean error {error:.1%}")
        for field, value in shown.items():
            print(f"    {field:<22} {value:g}")


if __name__ == "__main__":
    main()
