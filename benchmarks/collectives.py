"""Collectives of the simulated machines beside what others measured: predicted / measured, one row a collective and size.

    python benchmarks/collectives.py [--rows]

Measured: measured/collectives.csv, A100 and H100 by NCCL and what the documentation of nccom-test prints for Neuron cores on instances
that it does not name, to which fit_collectives.py fitted the chips' links; and measured/nccom_test.csv, more of that documentation, which
nothing was fitted to and which contradicts itself (all-gathers of 1 KiB take 6, 10, 101 and 151 us), here beside Trainium1 and Trainium2.
Without --rows one line a collective: the geometric mean of predicted / measured, the mean and the largest error.
"""

import csv
import sys
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware.load import load_chip
from neuronprof.hardware.spec import Chip
from neuronprof.simulate.job import Job
from neuronprof.simulate.network import Network, Transfer
from neuronprof.terms import Collective

CHIPS = {
    "A100-80GB-SXM": ("a100-80gb",),
    "A100 2x p4de.24xlarge (4x100Gb EFA per node)": ("a100-p4de",),
    "H100-80GB-SXM": ("h100-80gb",),
    "AWS Neuron cores; instance not stated (trn1/inf2-era doc example)": ("trainium1",),
    "Neuron cores; instance not stated": ("trainium1", "trainium2"),
}
KINDS = {
    "all_reduce": Collective.ALL_REDUCE,
    "all_gather": Collective.ALL_GATHER,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "alltoall": Collective.ALL_TO_ALL,
    "alltoallv": Collective.ALL_TO_ALL,
    "permute": Collective.PERMUTE,
}


@dataclass(frozen=True)
class Row:
    """One measurement. seconds: of a collective of nbytes among `ranks` ranks on `nodes` nodes of a chip."""

    chip: str
    nodes: int
    ranks: int
    collective: str
    nbytes: int
    seconds: float

    @property
    def case(self) -> str:
        """What rows are grouped by: chip, nodes x ranks on each, collective."""
        return f"{self.chip:<10} {self.nodes} x {self.ranks // self.nodes:<2} {self.collective}"

    def predicted(self, chip: Chip) -> Transfer:
        """The same on a simulated chip."""
        job, group = placed(chip, self.nodes, self.ranks)
        return Network(job).transfer(CollectiveCall(KINDS[self.collective], self.nbytes, group))


def placed(chip: Chip, nodes: int, ranks: int) -> tuple[Job, ReplicaGroup]:
    """Ranks side by side, or so far apart that each of the nodes has its part of them."""
    lnc = int(chip.package.lnc)
    a_node = int(chip.neuronlink.domain) * chip.ranks(lnc)
    each = ranks // nodes
    extents = ((each, 1), (nodes, a_node)) if nodes > 1 else ((ranks, 1),)
    group = ReplicaGroup("x", tuple(e for e in extents if e[0] > 1))
    return Job(chip, lnc, group.span), group


def measured(name: str = "collectives.csv") -> list[Row]:
    with (Path(__file__).parent / "measured" / name).open(encoding="utf-8") as file:
        return [
            Row(
                chip,
                int(row["n_nodes"]),
                int(row["n_ranks"]),
                row["collective"],
                int(row["size_bytes"]),
                float(row["time_us"]) / 1e6,
            )
            for row in csv.DictReader(file)
            for chip in CHIPS[row["hardware"]]
        ]


def compared(rows: list[Row], every_row: bool) -> dict[str, list[float]]:
    """Predicted / measured of each case, in the order of the rows; prints each row where wanted."""
    chips = {name: load_chip(name) for name in {row.chip for row in rows}}
    ratios: dict[str, list[float]] = {}
    for row in rows:
        found = row.predicted(chips[row.chip])
        ratio = found.picoseconds / 1e12 / row.seconds
        ratios.setdefault(row.case, []).append(ratio)
        if every_row:
            times = f"{found.picoseconds / 1e6:9.1f} us {row.seconds * 1e6:9.1f} us {ratio:5.2f}"
            print(f"{row.case:<34} {row.nbytes:>11} {found.algorithm:>16} {times}")
    return ratios


def error(ratios: list[float]) -> list[float]:
    """How many times too much or too little, less one, of each."""
    return [exp(abs(log(r))) - 1 for r in ratios]


def main() -> None:
    for title, name in (("fitted to", "collectives.csv"), ("not fitted to", "nccom_test.csv")):
        ratios = compared(measured(name), "--rows" in sys.argv)
        print(f"\n{title:<34} rows  geometric mean  mean error  largest")
        for case, found in {**ratios, "all": [r for rs in ratios.values() for r in rs]}.items():
            mean, off = exp(sum(map(log, found)) / len(found)), error(found)
            print(f"{case:<34} {len(found):>4} {mean:>15.2f} {sum(off) / len(off):>11.1%} {max(off):>8.1%}")


if __name__ == "__main__":
    main()
