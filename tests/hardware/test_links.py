"""The links of machines that were measured, against the measurements they were fitted to."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from collectives import compared, error, measured
from fit_collectives import LINKS, changed, chosen, loss

from neuronprof.hardware.load import load_chip
from neuronprof.terms import Provenance


@pytest.mark.parametrize(
    ("chip", "cases", "mean"), [("a100-80gb", 8, 0.11), ("h100-80gb", 8, 0.15), ("a100-p4de", 1, 0.10)]
)
def test_few_parameters_describe_all_sizes_and_collectives(chip, cases, mean):
    ratios = compared([row for row in measured() if row.chip == chip], every_row=False)
    off = error([ratio for case in ratios.values() for ratio in case])
    assert len(ratios) == cases
    assert sum(off) / len(off) < mean


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter", "alltoall"])
@pytest.mark.parametrize("chip", ["a100-80gb", "h100-80gb"])
def test_half_a_gigabyte_takes_as_long_as_measured(chip, collective, ranks):
    chosen = [
        r for r in measured() if (r.chip, r.collective, r.ranks) == (chip, collective, ranks) and r.nbytes == 2**29
    ]
    ((ratio,),) = compared(chosen, every_row=False).values()
    assert ratio == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("name", "link", "parameters", "ranks"), LINKS)
def test_the_files_hold_what_the_fit_finds(name, link, parameters, ranks):
    chip, rows = load_chip(name), chosen(name, ranks)
    least = loss(chip, rows)
    for field in parameters:
        quantity = chip.quantities[f"{link}.{field}"]
        assert quantity.provenance is Provenance.CALIBRATED
        for factor in (0.95, 1.05):
            assert loss(changed(chip, link, {field: quantity.value * factor}), rows) > least, field
