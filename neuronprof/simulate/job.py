"""Where a job runs: its ranks, their pipeline stages, and what makes one differ from another."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from neuronprof.hardware.spec import Chip


@dataclass(frozen=True)
class Faults:
    """What makes ranks differ; nothing by default.

    jitter: each instruction of each rank takes up to this share longer or shorter, by a hash of seed. slow_chips: chip to how many times
    slower it computes and moves data. throttled: rank to how many times slower its matmuls are. links: chip to the share of its link
    bandwidth that is left. late_hosts: host to the seconds by which its ranks begin each step late.
    """

    jitter: float = 0.0
    seed: int = 0
    slow_chips: dict[int, float] = field(default_factory=dict)
    throttled: dict[int, float] = field(default_factory=dict)
    links: dict[int, float] = field(default_factory=dict)
    late_hosts: dict[int, float] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether ranks of one stage can differ at all."""
        return bool(self.jitter or self.slow_chips or self.throttled or self.links or self.late_hosts)


@dataclass(frozen=True)
class Job:
    """Ranks on consecutive cores and chips.

    stages: (count, stride) of the digit of the rank number that is the pipeline stage; a lane is the rank number without that digit.
    algorithm: of all collectives (None: by size and group); oversubscription: of EFA.
    """

    chip: Chip
    lnc: int
    world: int
    stages: tuple[int, int] = (1, 1)
    faults: Faults = field(default_factory=Faults)
    algorithm: str | None = None
    oversubscription: float = 1.0

    @property
    def ranks_per_chip(self) -> int:
        """Logical NeuronCores of a chip."""
        return self.chip.ranks(self.lnc)

    @cached_property
    def values(self) -> dict[str, float]:
        """What formulas of cost name besides operands: the chip's numbers and these of the job."""
        return self.chip.numbers | {
            "lnc": self.lnc,
            "ranks_on_chip": min(self.world, self.ranks_per_chip),
            "oversubscription": self.oversubscription,
        }

    @property
    def ranks_a_stage(self) -> int:
        """Ranks that run the same program."""
        return self.world // self.stages[0]

    @property
    def lanes(self) -> int:
        """Ranks of a stage that can differ: all of them with faults, else one stands for all."""
        return self.ranks_a_stage if self.faults.any else 1

    @property
    def chips_a_host(self) -> int:
        """Chips that one host serves."""
        return int(getattr(self.chip.host, "chips", 16))

    def late(self, rank: int) -> int:
        """Picoseconds by which a rank begins each step late."""
        host = rank // self.ranks_per_chip // self.chips_a_host
        return round(self.faults.late_hosts.get(host, 0.0) * 1e12)

    def link_share(self, rank: int) -> float:
        """The share of a rank's link bandwidth that is left."""
        return self.faults.links.get(rank // self.ranks_per_chip, 1.0)

    def stage(self, rank: Any) -> Any:
        """The pipeline stage of a rank, or of an array of ranks."""
        count, stride = self.stages
        return rank // stride % count

    def lane(self, rank: int) -> int:
        """A rank's place among those of its stage."""
        count, stride = self.stages
        return rank // (stride * count) * stride + rank % stride

    def ranks(self, stage: int) -> np.ndarray:
        """The ranks of a stage by lane, int64[ranks_a_stage]."""
        count, stride = self.stages
        lanes = np.arange(self.ranks_a_stage)
        return lanes // stride * stride * count + stage * stride + lanes % stride
