"""Collectives of the simulated machines beside what others measured: predicted / measured, one row a collective and size.

    python benchmarks/collectives.py [--rows]

Measured: measured/collectives.csv, with the source of each row; A100 and H100 by NCCL, and what the documentation of nccom-test prints
for Neuron cores on instances that it does not name. Without --rows one line a collective: the geometric mean of the ratios, the mean and
the largest error. The chips' parameters were fitted to these rows by fit_collectives.py: this says how well so few parameters can
describe them, not how well they foretell others.
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
    "A100-80GB-SXM": "a100-80gb",
    "A100 2x p4de.24xlarge (4x100Gb EFA per node)": "a100-p4de",
    "H100-80GB-SXM": "h100-80gb",
    "AWS Neuron cores; instance not stated (trn1/inf2-era doc example)": "trainium1",
}
KINDS = {
    "all_reduce": Collective.ALL_REDUCE,
    "all_gather": Collective.ALL_GATHER,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "alltoall": Collective.ALL_TO_ALL,
    "alltoallv": Collective.ALL_TO_ALL,
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


def measured() -> list[Row]:
    with (Path(__file__).parent / "measured" / "collectives.csv").open(encoding="utf-8") as file:
        return [
            Row(
                CHIPS[row["hardware"]],
                int(row["n_nodes"]),
                int(row["n_ranks"]),
                row["collective"],
                int(row["size_bytes"]),
                float(row["time_us"]) / 1e6,
            )
            for row in csv.DictReader(file)
        ]


def main() -> None:
    chips = {name: load_chip(name) for name in CHIPS.values()}
    ratios: dict[str, list[float]] = {}
    print(
        f"{'chip       nodes  collective':<40} {'bytes':>11} {'algorithm':>16} {'predicted':>12} {'measured':>12} ratio"
    )
    for row in measured():
        found = row.predicted(chips[row.chip])
        ratio = found.picoseconds / 1e12 / row.seconds
        ratios.setdefault(row.case, []).append(ratio)
        if "--rows" in sys.argv:
            times = f"{found.picoseconds / 1e6:9.1f} us {row.seconds * 1e6:9.1f} us {ratio:5.2f}"
            print(f"{row.case:<40} {row.nbytes:>11} {found.algorithm:>16} {times}")
    print(f"\n{'':<40} rows  geometric mean  mean error  largest")
    for case, found in {**ratios, "all": [r for rs in ratios.values() for r in rs]}.items():
        logs = [log(r) for r in found]
        spread = [exp(abs(x)) - 1 for x in logs]
        print(
            f"{case:<40} {len(found):>4} {exp(sum(logs) / len(logs)):>15.2f} {sum(spread) / len(found):>10.1%} {max(spread):>8.1%}"
        )


if __name__ == "__main__":
    main()
