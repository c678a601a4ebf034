"""What each algorithm sends: steps, and bytes on the links and inside the chips, in closed form over the real places of the ranks.

S: bytes of the message, the larger side of one rank's; n: ranks. An all-reduce makes two passes, a reduce-scatter and an all-gather.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from neuronprof.hardware.spec import Link
from neuronprof.simulate.network.placement import Distances, Route
from neuronprof.terms import Algorithm, Collective

REDUCING = (Collective.ALL_REDUCE, Collective.BARRIER)
_HALVING = (*REDUCING, Collective.ALL_GATHER, Collective.REDUCE_SCATTER)


@dataclass(frozen=True, slots=True)
class Motion:
    """A collective by one algorithm among ranks that one kind of link joins.

    hops: latencies in a row. sent: bytes that a rank, on average, sends off its chip. carried: the same for the busiest rank, each byte
    counted on every link that it passes. local: bytes that the busiest rank moves inside its chip, beside what goes over the links or,
    where in_turn, before or after it.
    """

    algorithm: Algorithm
    hops: float
    sent: float
    carried: float
    local: float
    in_turn: bool = False


@dataclass(frozen=True)
class Ranks:
    """Ranks that one kind of link joins.

    chips: of each, by rank, int64[n]; distances: between chips; one_instance: they lie in one instance.
    """

    chips: np.ndarray
    distances: Distances
    one_instance: bool

    def __len__(self) -> int:
        return len(self.chips)

    @cached_property
    def _onward(self) -> Route:
        """Messages from each rank to the next one."""
        return self.distances.route(self.chips, np.roll(self.chips, -1))

    @cached_property
    def _everywhere(self) -> Route:
        """Messages from each rank to each other one."""
        return self.distances.among(self.chips)

    @cached_property
    def _exchanges(self) -> list[Route]:
        """Messages between ranks 1, 2, 4, ... apart; the number of ranks is a power of two."""
        at = np.arange(len(self))
        steps = range((len(self) - 1).bit_length())
        return [self.distances.route(self.chips, self.chips[at ^ (1 << step)]) for step in steps]

    def motions(self, kind: Collective, nbytes: int, link: Link) -> list[Motion]:
        """A collective by each algorithm that can be taken.

        Neuron takes the mesh up to mesh_limit, recursive halving-doubling up to rdh_limit and (Kanga)Ring above, inside an instance (Neuron
        runtime guide, intra-node collectives). Over more chips a ring's latencies outgrow all else, so there rdh_limit does not bind. NCCL
        knows the ring, and an all-reduce in the switch where there are more than two ranks.
        """
        n = len(self)
        if n == 1:
            return [Motion(Algorithm.MESH, 0, 0, 0, 0)]
        if kind is Collective.ALL_TO_ALL:
            return [self._mesh(kind, nbytes)]
        found = [self._ring(kind, nbytes, Algorithm.RING, 1.0)]
        if link.kangaring_steps and n % 2 == 0:
            found.append(self._ring(kind, nbytes, Algorithm.KANGARING, link.kangaring_steps))
        if nbytes <= link.mesh_limit:
            found += [self._mesh(kind, nbytes)] + [self._single_step(nbytes)] * (kind in REDUCING)
        power_of_two = n & (n - 1) == 0
        if link.rdh_limit and kind in _HALVING and power_of_two and (nbytes <= link.rdh_limit or not self.one_instance):
            found.append(self._halving(kind, nbytes))
        if link.in_switch_efficiency and kind in REDUCING and n > 2:
            found.append(self._in_switch(nbytes))
        return found

    def _ring(self, kind: Collective, nbytes: int, algorithm: Algorithm, steps: float) -> Motion:
        """Each rank sends (n - 1) / n of S a pass to the next one in n - 1 steps; KangaRing needs the share `steps` of them."""
        n, passes, route = len(self), _passes(kind), self._onward
        moved = passes * nbytes * (n - 1) / n
        local = moved if route.crossing < 1 else 0
        hops = passes * max(1.0, (n - 1) * steps) * max(route.longest, 1)
        return Motion(algorithm, hops, moved * route.crossing, moved * route.hops, local)

    def _mesh(self, kind: Collective, nbytes: int) -> Motion:
        """Each rank sends each other one its n-th of S, one step a pass; a broadcast scatters first, and the root sends twice."""
        n, passes, route = len(self), _passes(kind), self._everywhere
        moved = passes * nbytes * (n - 1) / n
        steps, busiest, mean = (2, 2.0, 1 + 1 / n) if kind is Collective.BROADCAST else (passes, 1.0, 1.0)
        return _spread(Algorithm.MESH, steps, moved * mean, moved * busiest, route)

    def _single_step(self, nbytes: int) -> Motion:
        """Each rank sends all of S to each other one, which adds up for itself: one step (Neuron runtime guide, single-step mesh)."""
        moved = nbytes * (len(self) - 1)
        return _spread(Algorithm.SINGLE_STEP_MESH, 1, moved, moved, self._everywhere)

    def _halving(self, kind: Collective, nbytes: int) -> Motion:
        """Ranks 1, 2, 4, ... apart exchange 1/2, 1/4, 1/8, ... of S: near ones the most, so that a chip adds up before it sends.

        Source: R. Thakur, R. Rabenseifner, W. Gropp, Optimization of Collective Communication Operations in MPICH (2005).
        """
        passes = _passes(kind)
        hops, sent, carried, local = 0.0, 0.0, 0.0, 0.0
        for step, route in enumerate(self._exchanges):
            moved = passes * nbytes / 2 ** (step + 1)
            hops += passes * max(route.longest, 1)
            sent, carried = sent + moved * route.crossing, carried + moved * route.hops
            local += moved if route.crossing < 1 else 0
        return Motion(Algorithm.RDH, hops, sent, carried, local, in_turn=True)

    def _in_switch(self, nbytes: int) -> Motion:
        """The switch takes S from every rank, adds, and each rank sends its n-th of the sum to all: S + S / n out (NVIDIA NVLink SHARP)."""
        moved = nbytes * (1 + 1 / len(self))
        return Motion(Algorithm.IN_SWITCH, 2, moved, moved, 0)


def _passes(kind: Collective) -> int:
    return 2 if kind in REDUCING else 1


def _spread(algorithm: Algorithm, steps: int, mean: float, busiest: float, route: Route) -> Motion:
    """Messages from every rank to every other one."""
    hops = steps * max(route.longest, 1)
    return Motion(algorithm, hops, mean * route.crossing, busiest * route.hops, busiest * (1 - route.crossing))
