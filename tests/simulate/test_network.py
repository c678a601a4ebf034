"""Times and bytes of collectives, by hand: NeuronLink 100 GB/s and 1 us a hop, EFA 10 GB/s and 10 us, 128 chips an UltraServer."""

from dataclasses import replace

import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware import spec
from neuronprof.hardware.load import load_chip
from neuronprof.simulate.job import Job
from neuronprof.simulate.network import Network
from neuronprof.simulate.network.placement import place
from neuronprof.terms import Algorithm, Collective, Engine

US = 1_000_000  # picoseconds
LINK = toys.chip().neuronlink
EFA = toys.chip().efa


def machine(ranks_a_chip=1, link=LINK, efa=EFA, topology="switch"):
    package = replace(toys.chip().package, cores=ranks_a_chip)
    return toys.chip(package=package, neuronlink=link, efa=efa, topology=topology)


def moved(kind, nbytes, *extents, chip=None, world=0, uneven=1.0, **job):
    group = ReplicaGroup("x", extents)
    chip = chip or machine()
    whole = Job(chip, int(chip.package.lnc), max(world, group.span), **job)
    return Network(whole).transfer(CollectiveCall(kind, nbytes, group, uneven=uneven))


def time(*args, **kwargs):
    """Microseconds."""
    return moved(*args, **kwargs).picoseconds / US


class TestInsideAnUltraServer:
    def test_one_rank_moves_nothing(self):
        alone = moved(Collective.ALL_REDUCE, 10**6)
        assert (alone.neuronlink, alone.efa, alone.wire, alone.picoseconds) == (0, 0, 0, 1)

    def test_a_ring_over_128_ranks(self):
        # 1.28 GB: 2 x 127 steps of 1 us; each chip sends 2 x 127 / 128 x 1.28 GB = 2.54 GB at 100 GB/s.
        ring = moved(Collective.ALL_REDUCE, 1_280_000_000, (128, 1), algorithm="ring")
        assert (ring.algorithm, ring.neuronlink) == (Algorithm.RING, 2_540_000_000)
        assert (ring.wire, ring.picoseconds) == (25_400 * US, (25_400 + 254) * US)

    def test_a_tiny_all_reduce_is_one_step(self):
        # 8 ranks, 800 bytes: each sends all of it to 7 others, 5.6 kB at 100 GB/s, and one hop; two steps of a mesh would take 2.014 us.
        tiny = moved(Collective.ALL_REDUCE, 800, (8, 1))
        assert (tiny.algorithm, tiny.neuronlink, tiny.picoseconds) == (Algorithm.SINGLE_STEP_MESH, 5600, 1_056_000)

    def test_a_small_all_reduce_is_a_mesh(self):
        # 8 ranks, 80 kB: each sends 2 x 7/8 x 80 kB = 140 kB at 100 GB/s, and two steps of 1 us. All at once would be 560 kB.
        small = moved(Collective.ALL_REDUCE, 80_000, (8, 1))
        assert (small.algorithm, small.neuronlink, small.picoseconds) == (Algorithm.MESH, 140_000, 3_400_000)

    def test_a_middling_all_reduce_halves_and_doubles(self):
        # 8 MB over 8 ranks: 14 MB at 100 GB/s, 2 x log2(8) steps; KangaRing would take 7.
        middling = moved(Collective.ALL_REDUCE, 8_000_000, (8, 1))
        assert (middling.algorithm, middling.picoseconds) == (Algorithm.RDH, 146 * US)

    def test_a_large_all_gather_is_a_kangaring(self):
        # 160 MB over 16 ranks of one instance: 150 MB at 100 GB/s, half of 15 steps.
        large = moved(Collective.ALL_GATHER, 160_000_000, (16, 1))
        assert (large.algorithm, large.picoseconds) == (Algorithm.KANGARING, 1_507_500_000)

    def test_over_more_chips_than_an_instance_no_ring_is_taken_for_its_size(self):
        # 160 MB over 128 chips: KangaRing's 63.5 steps against 7, with the same 158.75 MB.
        large = moved(Collective.ALL_GATHER, 160_000_000, (128, 1))
        assert (large.algorithm, large.picoseconds) == (Algorithm.RDH, 1_594_500_000)

    def test_ranks_that_no_power_of_two_counts_take_the_ring(self):
        # 9 ranks, 9 MB: 8 MB at 100 GB/s and 8 steps.
        odd = moved(Collective.ALL_GATHER, 9_000_000, (9, 1))
        assert (odd.algorithm, odd.picoseconds) == (Algorithm.RING, 88 * US)

    def test_the_busiest_rank_holds_up_an_uneven_all_to_all(self):
        # 16 MB over 16 ranks: 15 MB at 100 GB/s; the busiest one sends 1.5 times as much.
        assert time(Collective.ALL_TO_ALL, 16_000_000, (16, 1)) == 151
        uneven = moved(Collective.ALL_TO_ALL, 16_000_000, (16, 1), uneven=1.5)
        assert (uneven.picoseconds, uneven.neuronlink) == (226 * US, 15_000_000)

    def test_a_permute_sends_once_and_a_barrier_nothing(self):
        assert time(Collective.PERMUTE, 1_000_000, (8, 1)) == 1 + 10
        barrier = moved(Collective.BARRIER, 10**9, (8, 1))
        assert (barrier.picoseconds, barrier.neuronlink) == (1 * US, 0)

    def test_a_broadcast_is_a_ring_where_that_is_cheaper(self):
        # 8 ranks, 800 kB: scatter and gather 2 x 700 kB and 2 steps = 16 us; the ring 700 kB and 7 steps (KangaRing 3.5) = 10.5 us.
        assert time(Collective.BROADCAST, 800_000, (8, 1)) == 10.5
        assert time(Collective.BROADCAST, 800_000, (8, 1), algorithm="mesh") == 16

    def test_an_algorithm_that_cannot_do_it_is_not_taken(self):
        assert moved(Collective.ALL_REDUCE, 80_000, (6, 1), algorithm="rdh").algorithm is Algorithm.MESH

    def test_what_is_no_algorithm_is_refused(self):
        with pytest.raises(
            NeuronprofError, match="no collective algorithm 'star'; choose one of ring, kangaring, mesh"
        ):
            time(Collective.ALL_REDUCE, 8, (8, 1), algorithm="star")
        with pytest.raises(NeuronprofError, match=r"oversubscription of 0.5 is not 1 or more"):
            time(Collective.ALL_REDUCE, 8, (8, 1), oversubscription=0.5)


class TestRanksOfAChip:
    """Four ranks a chip."""

    def test_a_group_inside_a_chip_uses_no_link(self):
        # 4 ranks, 4 MB all-gathered by a ring: 3 steps, 3 MB from rank to rank and 1 MB to the own result at 50 GB/s.
        inside = moved(
            Collective.ALL_GATHER,
            4_000_000,
            (4, 1),
            chip=machine(4, replace(LINK, local_bandwidth=5e10)),
            algorithm="ring",
        )
        assert (inside.neuronlink, inside.wire, inside.picoseconds) == (0, 0, (3 + 60 + 20) * US)

    def test_groups_that_run_at_once_share_the_links(self):
        # Ranks 0, 4, 8 and 12 stand on four chips, and so do three more groups: each chip sends 4 x 3/4 x 40 MB.
        strided = moved(Collective.ALL_GATHER, 40_000_000, (4, 4), chip=machine(4), algorithm="ring")
        assert (strided.neuronlink, strided.picoseconds) == (30_000_000, (1200 + 3) * US)

    def test_a_ring_through_neighbours_leaves_each_chip_once(self):
        # 16 ranks on four chips: each sends 15/16 x 16 MB, of four ranks one across: 15 MB a chip.
        ring = moved(Collective.ALL_GATHER, 16_000_000, (16, 1), chip=machine(4), algorithm="ring")
        assert (ring.neuronlink, ring.picoseconds) == (3_750_000, (150 + 15) * US)

    def test_a_mesh_through_neighbours_sends_from_every_rank(self):
        # 16 ranks on four chips, 800 kB: each rank sends 12 parts of 50 kB across, 2.4 MB a chip.
        mesh = moved(Collective.ALL_GATHER, 800_000, (16, 1), chip=machine(4), algorithm="mesh")
        assert (mesh.neuronlink, mesh.picoseconds) == (600_000, (24 + 1) * US)

    def test_halving_adds_up_on_the_chip_first(self):
        # 16 ranks on four chips, 16 MB: inside 8 + 4 MB at 50 GB/s; across 2 + 1 MB a rank, 12 MB a chip; own result 1 MB; 4 steps.
        chip = machine(4, replace(LINK, local_bandwidth=5e10))
        rdh = moved(Collective.REDUCE_SCATTER, 16_000_000, (16, 1), chip=chip, algorithm="rdh")
        assert (rdh.neuronlink, rdh.wire, rdh.picoseconds) == (3_000_000, 120 * US, (240 + 120 + 20 + 4) * US)

    def test_stages_on_a_chip_do_not_run_the_same_collective(self):
        # Digits: two ranks of a stage, two stages, four data-parallel ranks on four chips: two ranks a chip reduce at once.
        network = Network(Job(machine(4), 1, 16, stages=(2, 2), algorithm="ring"))
        found = network.transfer(
            CollectiveCall(Collective.ALL_GATHER, 40_000_000, ReplicaGroup("dp", ((4, 4),))), stage=1
        )
        assert found.picoseconds == (2 * 300 + 3) * US


class TestBetweenUltraServers:
    def test_two(self):
        # 256 chips, 128 MB. Inside, scatter and gather: 2 x 127 MB at 100 GB/s, 2 x 7 steps. Between, each chip's 1 MB: 2 x 1/2 x 1 MB at
        # 10 GB/s, once to and fro, 10 us each... or all of it in one step: 1 MB and 10 us, which is quicker.
        two = moved(Collective.ALL_REDUCE, 128_000_000, (256, 1))
        assert (two.algorithm, two.neuronlink, two.efa) == (Algorithm.HIERARCHICAL, 254_000_000, 1_000_000)
        assert (two.wire, two.link) == ((2540 + 100) * US, Engine.EFA)
        assert two.picoseconds == (2540 + 14 + 100 + 10) * US

    def test_256(self):
        # 32,768 chips, 1,280 MB. Inside: 2 x 1270 MB and 2 x 7 steps. Between, 10 MB a chip by halving: 2 x 255/256 x 10 MB at 10 GB/s,
        # 2 x 8 steps of 10 us.
        chip = machine(efa=replace(EFA, domain=32_768))
        all_of_it = moved(Collective.ALL_REDUCE, 1_280_000_000, (32_768, 1), chip=chip)
        assert (all_of_it.neuronlink, all_of_it.efa) == (2_540_000_000, 19_921_875)
        assert all_of_it.picoseconds == pytest.approx((25_400 + 14 + 1992.1875 + 160) * US, abs=1)

    def test_a_gather_goes_between_first(self):
        # 256 chips, 128 MB: between 1/2 x 1 MB at 10 GB/s and 10 us, inside 127 MB and 7 steps.
        gather = moved(Collective.ALL_GATHER, 128_000_000, (256, 1))
        assert (gather.neuronlink, gather.efa, gather.picoseconds) == (127_000_000, 500_000, (1270 + 7 + 50 + 10) * US)

    def test_oversubscription_slows_efa_alone(self):
        assert time(Collective.ALL_GATHER, 128_000_000, (256, 1), oversubscription=3) == 1270 + 7 + 3 * 50 + 10

    def test_pieces_let_the_phases_overlap(self):
        # 1270 us inside and 50 us between in 4 pieces: of the shorter part a quarter shows.
        pieces = time(Collective.ALL_GATHER, 128_000_000, (256, 1), chip=machine(efa=replace(EFA, pieces=4)))
        assert pieces == 1270 + 50 / 4 + 7 + 10

    def test_one_rank_an_ultraserver_uses_efa_alone(self):
        # Every 128th chip: 4 ranks, 4 MB: 3 MB at 10 GB/s and, by halving, 2 steps.
        apart = moved(Collective.ALL_GATHER, 4_000_000, (4, 128), world=512)
        assert (apart.algorithm, apart.neuronlink, apart.efa) == (Algorithm.RDH, 0, 3_000_000)
        assert apart.picoseconds == 320 * US

    def test_an_all_to_all_sorts_inside_before_it_goes_out(self):
        # 256 chips, 256 MB: 127/128 of it inside and 1 step, then half of it between and 1 step.
        everyone = moved(Collective.ALL_TO_ALL, 256_000_000, (256, 1))
        assert (everyone.neuronlink, everyone.efa) == (254_000_000, 128_000_000)
        assert everyone.picoseconds == (2540 + 1 + 12_800 + 10) * US

    def test_a_permute_waits_for_its_one_message_over_efa(self):
        # 256 chips in a circle: two of 256 messages leave the UltraServer.
        circle = moved(Collective.PERMUTE, 1_000_000, (256, 1))
        assert (circle.picoseconds, circle.neuronlink, circle.efa) == (110 * US, 992_188, 7_812)

    def test_the_group_over_most_ultraservers_stands_for_all(self):
        # UltraServers of 3 chips: of the groups 0-1, 2-3 and 4-5 the middle one lies in two.
        chip = machine(link=replace(LINK, domain=3))
        split = moved(Collective.ALL_GATHER, 2_000_000, (2, 1), chip=chip, world=6)
        assert (split.efa, split.neuronlink) == (1_000_000, 0)


class TestMessages:
    """Two stages; lanes of a stage stand on one chip in fours."""

    def sent(self, world, stride, kind=Collective.SEND, domain=128):
        chip = machine(4, replace(LINK, domain=domain, local_bandwidth=5e10))
        job = Job(chip, 1, world, stages=(2, stride))
        return Network(job).transfer(
            CollectiveCall(kind, 1_000_000, ReplicaGroup("pp", ((2, stride),)), peer=1), stage=0
        )

    def test_to_the_next_chip_four_ranks_share_the_link(self):
        there = self.sent(8, 4)
        assert (there.neuronlink, there.efa, there.picoseconds) == (1_000_000, 0, (1 + 40) * US)

    def test_on_the_same_chip(self):
        there = self.sent(4, 2)
        assert (there.neuronlink, there.wire, there.picoseconds) == (0, 0, (1 + 20) * US)

    def test_to_another_ultraserver(self):
        there = self.sent(8, 4, domain=1)
        assert (there.neuronlink, there.efa, there.picoseconds) == (0, 1_000_000, (10 + 400) * US)
        assert there.link is Engine.EFA

    def test_the_receiver_sends_nothing(self):
        there = self.sent(8, 4, Collective.RECV)
        assert (there.neuronlink, there.efa, there.wire) == (0, 0, 0)


class TestOtherMachines:
    def test_a_torus_carries_a_mesh_over_several_links(self):
        # 16 chips, 800 kB by a mesh: 750 kB at 100 GB/s over 32/15 links on average, the longest way of 4 hops.
        mesh = moved(Collective.ALL_GATHER, 800_000, (16, 1), chip=machine(topology="torus"), algorithm="mesh")
        assert mesh.picoseconds == (16 + 4) * US

    def test_a_quick_protocol_takes_over_where_it_is_quicker(self):
        # Ring of 2, half of the size sent. Ordinary: 30 us and 100 GB/s; quick: 5 us and 20 GB/s; they meet at 1.25 MB.
        link = spec.Link(1e11, 1, 1e-6, 3e-5, 8, quick_start=5e-6, quick_efficiency=0.2)
        times = [time(Collective.ALL_GATHER, size, (2, 1), chip=machine(link=link)) for size in (10**6, 2 * 10**6)]
        assert times == [5 + 1 + 25, 30 + 1 + 10]

    def test_a_switch_that_reduces(self):
        # 8 ranks, 8 MB: 8 + 1 MB at 50 GB/s and two steps take longer than a ring's 14 MB at 100 GB/s and 14 steps.
        link = spec.Link(1e11, 1, 1e-6, 0, 8, in_switch_efficiency=0.5)
        eight = moved(Collective.ALL_REDUCE, 8_000_000, (8, 1), chip=machine(link=link))
        assert (eight.algorithm, eight.neuronlink, eight.picoseconds) == (Algorithm.RING, 14_000_000, 154 * US)
        better = moved(
            Collective.ALL_REDUCE, 8_000_000, (8, 1), chip=machine(link=replace(link, in_switch_efficiency=1))
        )
        assert (better.algorithm, better.neuronlink, better.picoseconds) == (Algorithm.IN_SWITCH, 9_000_000, 92 * US)
        two = moved(Collective.ALL_REDUCE, 8_000_000, (2, 1), chip=machine(link=replace(link, in_switch_efficiency=1)))
        assert two.algorithm is Algorithm.RING


def test_an_instance_of_trainium2_takes_what_its_guide_says():
    # The Neuron runtime guide: mesh below 1 MB (here it gives way at 0.5 MB already), halving-doubling to 56 MB, KangaRing above.
    chosen = {
        size: moved(Collective.ALL_REDUCE, size, (64, 1), chip=load_chip("trainium2")).algorithm
        for size in (400_000, 2_000_000, 20_000_000, 60_000_000)
    }
    assert list(chosen.values()) == [Algorithm.MESH, Algorithm.RDH, Algorithm.RDH, Algorithm.KANGARING]


KINDS = [k for k in Collective if k not in (Collective.SEND, Collective.RECV, Collective.BARRIER)]
GROUPS = st.sampled_from([((4, 1),), ((16, 1),), ((6, 4),), ((64, 4),), ((1024, 1),), ((2, 1), (8, 16)), ((4, 512),)])
CHIPS = st.sampled_from(["trainium1", "trainium2", "trainium4", "h100-80gb"])


@given(st.sampled_from(KINDS), GROUPS, CHIPS, st.integers(0, 2**34), st.integers(0, 2**34))
def test_more_bytes_never_take_less_time(kind, extents, name, one, other):
    chip = load_chip(name)
    world = ReplicaGroup("x", extents).span
    job = Job(chip, int(chip.package.lnc), world)
    network = Network(job)
    less, more = (
        network.transfer(CollectiveCall(kind, size, ReplicaGroup("x", extents))) for size in sorted((one, other))
    )
    assert less.picoseconds <= more.picoseconds
    assert 0 <= less.wire <= less.picoseconds


@given(
    st.sampled_from([Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL]),
    st.sampled_from([2, 4, 8, 32]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 1000),
)
def test_bytes_that_leave_an_ultraserver_are_no_more_than_must(kind, inside, servers, kilobytes):
    # Each UltraServer of n ranks must take in what it lacks: with m of them and S bytes (m - 1) / m x S a pass, spread over its ranks.
    chip = machine(link=replace(LINK, domain=inside, mesh_limit=0))
    job = Job(replace(chip, efa=replace(EFA, mesh_limit=0)), 1, inside * servers)
    nbytes = kilobytes * 1024
    found = Network(job).transfer(CollectiveCall(kind, nbytes, ReplicaGroup("x", ((inside * servers, 1),))))
    passes = 2 if kind is Collective.ALL_REDUCE else 1
    a_server = passes * nbytes * (servers - 1) / servers
    ranks = 1 if kind is Collective.ALL_TO_ALL else inside
    assert found.efa == pytest.approx(a_server / ranks, abs=1)
    assert found.neuronlink == pytest.approx(passes * nbytes * (inside - 1) / inside, abs=2)


def test_where_a_group_stands():
    # Four ranks a chip, 2 chips an UltraServer: ranks 0 2, 8 10, 16 18, 24 26 stand on chips 0, 2, 4 and 6, in four UltraServers.
    job = Job(machine(4, replace(LINK, domain=2)), 1, 32)
    found = place(ReplicaGroup("x", ((2, 2), (4, 8))), job, 0)
    assert found.chips.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert (found.fullest.tolist(), found.servers, found.sharing, found.groups_a_chip) == ([0, 0], 4, 4, 2)


def test_time_does_not_depend_on_who_asks():
    chip = load_chip("trainium4")
    network = Network(Job(chip, 2, 2048, stages=(2, 1024)))
    call = CollectiveCall(Collective.ALL_REDUCE, 10**8, ReplicaGroup("dp", ((256, 4),)))
    assert network.transfer(call, 0) == network.transfer(call, 1)
