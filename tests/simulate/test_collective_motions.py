"""What each algorithm sends, against the same algorithm carried out message by message on ranks that hold pieces of data.

A piece on a rank is the set of ranks whose contribution is in it: a collective is done when every rank holds what it should, whole.
"""

import numpy as np
import pytest

from neuronprof.hardware.spec import Link
from neuronprof.simulate.network.algorithms import Ranks
from neuronprof.simulate.network.placement import Distances
from neuronprof.terms import Algorithm, Collective

LINK = Link(1, 1, 1, 1, 64, mesh_limit=1e9, rdh_limit=1e9, kangaring_steps=0.5, in_switch_efficiency=1)
SIZE = 960  # bytes of the message; a piece is its n-th


class Ledger:
    """Messages between ranks, in whole pieces: who sent how many to whom, and what every rank holds."""

    def __init__(self, n, reduced):
        self.n = n
        self.sent = np.zeros((n, n))
        # To be reduced: every rank holds its own contribution to every piece. To be gathered: it holds piece r alone, and whole.
        everyone = frozenset(range(n))
        self.held = [{p: frozenset([r]) for p in range(n)} if reduced else {r: everyone} for r in range(n)]

    def step(self, messages, *, add):
        """Messages of one step, all at once: (source, target, pieces)."""
        moved = [(r, t, p, self.held[r][p]) for r, t, pieces in messages for p in pieces]
        for source, target, piece, content in moved:
            self.sent[source, target] += SIZE / self.n
            before = self.held[target].get(piece, frozenset()) if add else frozenset()
            self.held[target][piece] = before | content

    def complete(self, rank, pieces):
        everyone = frozenset(range(self.n))
        return all(self.held[rank].get(p) == everyone for p in pieces)


def ring_scatter(ledger):
    n = ledger.n
    for t in range(n - 1):
        ledger.step([(r, (r + 1) % n, [(r - 1 - t) % n]) for r in range(n)], add=True)


def ring_gather(ledger):
    n = ledger.n
    for t in range(n - 1):
        ledger.step([(r, (r + 1) % n, [(r - t) % n]) for r in range(n)], add=False)


def mesh_scatter(ledger):
    ledger.step([(r, t, [t]) for r in range(ledger.n) for t in range(ledger.n) if r != t], add=True)


def mesh_gather(ledger):
    ledger.step([(r, t, [r]) for r in range(ledger.n) for t in range(ledger.n) if r != t], add=False)


def alike(rank, piece, bits):
    """Whether rank and piece agree in their lowest bits."""
    return (rank ^ piece) & ((1 << bits) - 1) == 0


def halving(ledger):
    n = ledger.n
    for s in range(n.bit_length() - 1):
        pairs = [(r, r ^ (1 << s)) for r in range(n)]
        ledger.step([(r, t, [p for p in range(n) if alike(t, p, s + 1)]) for r, t in pairs], add=True)


def doubling(ledger):
    n = ledger.n
    for s in reversed(range(n.bit_length() - 1)):
        ledger.step([(r, r ^ (1 << s), [p for p in range(n) if alike(r, p, s + 1)]) for r in range(n)], add=False)


def single_step(ledger):
    n = ledger.n
    ledger.step([(r, t, range(n)) for r in range(n) for t in range(n) if r != t], add=True)


STEPS = {
    Algorithm.RING: (ring_scatter, ring_gather),
    Algorithm.MESH: (mesh_scatter, mesh_gather),
    Algorithm.RDH: (halving, doubling),
    Algorithm.SINGLE_STEP_MESH: (single_step, None),
}
PLACES = {
    "one chip": ([0] * 8, Distances()),
    "eight chips on a switch": (list(range(8)), Distances()),
    "two a chip": ([0, 0, 1, 1, 2, 2, 3, 3], Distances()),
    "every fourth chip of a torus": (list(range(0, 32, 4)), Distances((4, 4, 4))),
    "two a chip of a torus": ([0, 0, 1, 1, 4, 4, 5, 5], Distances((4, 4, 1))),
    "two and one a chip": ([0, 0, 1, 2, 2, 3], Distances()),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", [Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.ALL_GATHER])
@pytest.mark.parametrize("algorithm", STEPS)
def test_bytes_are_those_of_the_messages(algorithm, kind, where):
    chips, distances = np.array(PLACES[where][0]), PLACES[where][1]
    ranks = Ranks(chips, distances, one_instance=True)
    motion = next((m for m in ranks.motions(kind, SIZE, LINK) if m.algorithm is algorithm), None)
    if motion is None:
        assert (algorithm is Algorithm.SINGLE_STEP_MESH and kind is not Collective.ALL_REDUCE) or (
            algorithm is Algorithm.RDH and len(chips) == 6
        )
        return
    scatter, gather = STEPS[algorithm]
    ledger = Ledger(len(chips), reduced=kind is not Collective.ALL_GATHER)
    if kind is not Collective.ALL_GATHER:
        scatter(ledger)
    if kind is not Collective.REDUCE_SCATTER and gather:
        gather(ledger)
    whole = [range(len(chips))] * len(chips)
    owned = whole if kind is not Collective.REDUCE_SCATTER else [[r] for r in range(len(chips))]
    assert all(ledger.complete(r, pieces) for r, pieces in enumerate(owned))
    hops = distances.hops(chips[:, None], chips)
    assert motion.sent == pytest.approx((ledger.sent * (hops > 0)).sum() / len(chips))
    assert motion.carried == pytest.approx((ledger.sent * hops).sum() / len(chips))
    if len({chips.tolist().count(c) for c in chips}) == 1:  # as many on every chip, so that the mean is the busiest
        assert motion.local == pytest.approx((ledger.sent * (hops == 0)).sum(axis=1).max())


def motion(kind, algorithm, n, *, chips=None, distances=None, link=LINK):
    ranks = Ranks(np.array(chips or range(n)), distances or Distances(), one_instance=True)
    return next(m for m in ranks.motions(kind, SIZE, link) if m.algorithm is algorithm)


@pytest.mark.parametrize(
    ("kind", "algorithm", "hops"),
    [
        (Collective.ALL_REDUCE, Algorithm.RING, 14),  # two passes of n - 1 steps
        (Collective.ALL_REDUCE, Algorithm.KANGARING, 7),
        (Collective.ALL_GATHER, Algorithm.KANGARING, 3.5),
        (Collective.ALL_REDUCE, Algorithm.RDH, 6),  # two passes of log2(n) steps
        (Collective.ALL_REDUCE, Algorithm.MESH, 2),
        (Collective.ALL_REDUCE, Algorithm.SINGLE_STEP_MESH, 1),
        (Collective.ALL_REDUCE, Algorithm.IN_SWITCH, 2),
        (Collective.ALL_TO_ALL, Algorithm.MESH, 1),
        (Collective.BROADCAST, Algorithm.RING, 7),
        (Collective.BROADCAST, Algorithm.MESH, 2),  # scatter, then gather
    ],
)
def test_steps_over_a_switch(kind, algorithm, hops):
    assert motion(kind, algorithm, 8).hops == hops


def test_a_kangaring_of_two_takes_a_step():
    assert motion(Collective.ALL_GATHER, Algorithm.KANGARING, 2).hops == 1


def test_hops_in_a_torus_are_the_shorter_way_round():
    # Chips are x + 4 y + 16 z. From 0: 3 is one back in x; 10 is (2, 2); 63 is one back in each.
    assert Distances((4, 4, 4)).hops(np.array([0, 0, 0, 0]), np.array([0, 3, 10, 63])).tolist() == [0, 1, 4, 3]


def test_a_ring_through_a_torus_takes_its_longest_step_each_time():
    # Rows of four, each followed by the next: three single hops, then to the beginning of the next row, two. Two passes of 15 steps.
    ring = motion(Collective.ALL_REDUCE, Algorithm.RING, 16, distances=Distances((4, 4, 1)))
    assert ring.hops == 2 * 15 * 2
    assert ring.carried == pytest.approx(2 * SIZE * 15 / 16 * (12 * 1 + 4 * 2) / 16)


def test_a_mesh_over_a_torus_passes_two_links_on_average():
    # In a ring of four the others are 1, 2 and 1 away, the mean over all four is 1; in two dimensions 2, of 15 others 32 / 15.
    mesh = motion(Collective.ALL_GATHER, Algorithm.MESH, 16, distances=Distances((4, 4, 1)))
    assert (mesh.hops, mesh.sent) == (4, SIZE * 15 / 16)
    assert mesh.carried == pytest.approx(SIZE * 15 / 16 * 32 / 15)


def test_an_all_reduce_in_the_switch_sends_once():
    assert motion(Collective.ALL_REDUCE, Algorithm.IN_SWITCH, 8).sent == SIZE + SIZE / 8


def test_an_all_to_all_sends_everybody_its_part():
    # 8 ranks, two a chip: of 7 parts of 120 bytes one stays on the chip.
    sent = motion(Collective.ALL_TO_ALL, Algorithm.MESH, 8, chips=[0, 0, 1, 1, 2, 2, 3, 3])
    assert (sent.sent, sent.local) == (pytest.approx(6 * 120), pytest.approx(120))


def test_a_broadcast_over_the_mesh_sends_twice_from_the_root():
    # The root scatters 7 parts of 120 bytes; then every one of 8 ranks sends its part to 7 others.
    mesh = motion(Collective.BROADCAST, Algorithm.MESH, 8)
    assert (mesh.carried, mesh.sent) == (2 * 7 * 120, pytest.approx((7 * 120 + 8 * 7 * 120) / 8))
