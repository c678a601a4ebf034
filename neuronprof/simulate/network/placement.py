"""Where the ranks of a replica group stand: on which chips, in which UltraServers, and with how many others they share their links."""

from dataclasses import dataclass

import numpy as np

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.simulate.job import Job

_SQUARE = 4  # chips along a side of a torus


@dataclass(frozen=True)
class Placement:
    """The worst placed group of a collective, the one over most UltraServers: the others do not take longer.

    chips: of its members by rank, int64[ranks]; fullest: of those in the UltraServer that has most of them; servers: UltraServers that it
    spans; sharing: ranks of a chip that run such a collective at once, one of each of several groups or several of one.
    """

    chips: np.ndarray
    fullest: np.ndarray
    servers: int
    sharing: int

    @property
    def groups_a_chip(self) -> float:
        """Groups that share a chip's links."""
        return max(1.0, self.sharing / int(np.unique(self.chips, return_counts=True)[1].max()))


def place(group: ReplicaGroup, job: Job, stage: int) -> Placement:
    """Where a group stands that the ranks of a pipeline stage belong to."""
    ranks = job.ranks(stage)
    first = np.unique(group.first(ranks))
    members = first[:, None] + (group.members(int(first[0])) - first[0])
    chips = members // job.ranks_per_chip
    servers = chips // int(job.chip.neuronlink.domain)
    spanned = 1 + (np.diff(servers, axis=1) != 0).sum(axis=1)
    worst = int(spanned.argmax())
    numbers, counts = np.unique(servers[worst], return_counts=True)
    sharing = np.unique(ranks // job.ranks_per_chip, return_counts=True)[1].max()
    inside = servers[worst] == numbers[counts.argmax()]
    return Placement(chips[worst], chips[worst][inside], len(numbers), int(sharing))


@dataclass(frozen=True)
class Distances:
    """Hops between the chips of an UltraServer: one over a switch; in a torus those along x, y and z, each the shorter way round."""

    torus: tuple[int, ...] = ()

    @classmethod
    def of(cls, topology: str, domain: int) -> "Distances":
        """Those of a topology; a torus is 4 x 4 chips, with rings of the equal places of several such squares."""
        square = _SQUARE * _SQUARE
        return cls((_SQUARE, _SQUARE, -(-domain // square)) if topology == "torus" else ())

    def hops(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Hops between chips, 0 for a chip and itself; arguments broadcast."""
        if not self.torus:
            return (one != other).astype(np.int64)
        total = np.zeros(np.broadcast_shapes(one.shape, other.shape), np.int64)
        stride = 1
        for size in self.torus:
            apart = np.abs(one // stride % size - other // stride % size)
            total = total + np.minimum(apart, size - apart)
            stride *= size
        return total

    def route(self, one: np.ndarray, other: np.ndarray) -> "Route":
        """What becomes of messages from `one` to `other`."""
        hops = self.hops(one, other)
        return Route(float((hops > 0).mean()), float(hops.mean()), int(hops.max(initial=0)))

    def among(self, chips: np.ndarray) -> "Route":
        """What becomes of messages from every rank on `chips` to every other."""
        n = len(chips)
        if not self.torus:
            together = (np.unique(chips, return_counts=True)[1].astype(float) ** 2).sum()
            crossing = (n * n - together) / max(n * (n - 1), 1)
            return Route(crossing, crossing, int(crossing > 0))
        route = self.route(chips[:, None], chips)
        others = n / max(n - 1, 1)  # of n messages one is to itself
        return Route(route.crossing * others, route.hops * others, route.longest)


@dataclass(frozen=True, slots=True)
class Route:
    """Messages between ranks. crossing: share that leaves the chip; hops: links that a message passes on average; longest: at most."""

    crossing: float
    hops: float
    longest: int
