"""The simulator on programs of a few instructions, against times computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronprof.compile.builder import ProgramBuilder
from neuronprof.compile.lower import compile_graph
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware import spec
from neuronprof.program import Opcode, Queue
from neuronprof.simulate import cost, lanes, plain, priced
from neuronprof.simulate.cluster import Cluster, Prepared
from neuronprof.simulate.fleet import fleet
from neuronprof.simulate.job import Faults, Job
from neuronprof.simulate.timing import WAITS
from neuronprof.terms import Collective

US = 1_000_000  # picoseconds


def took(name, chip=None, lnc=1, ranks_on_chip=1, **operands):
    """Nanoseconds by a formula."""
    job = Job(chip or toys.chip(), lnc, 1)
    return cost.FORMULAS[name].evaluate(job.values | {"ranks_on_chip": ranks_on_chip} | operands)["seconds"] * 1e9


class TestCosts:
    """One cycle is one nanosecond on the toy chip."""

    def test_matmul(self):
        engine = toys.chip().tensor
        assert engine.rows == engine.columns == 128

        def ns(batch, m, k, n, itemsize=2, lnc=1):
            return took("matmul", lnc=lnc, batch=batch, M=m, K=k, N=n, itemsize=itemsize)

        # K 256: 2 tiles, M 128: 1 tile, N 512: 512 cycles each; 2 x 512 = 1024 ns.
        assert ns(1, 128, 256, 512) == 1024
        # FP32 takes four passes, FP8 runs twice as fast, two cores share the tiles.
        assert ns(1, 128, 256, 512, itemsize=4) == 4096
        assert ns(1, 128, 256, 512, itemsize=1) == 512
        assert ns(2, 128, 256, 512, lnc=2) == 1024
        # Two cores share K, too: the gradient of a small weight, K 1024 in 8 tiles of 128 columns, is 8 x 128 / 2 = 512 ns.
        assert ns(1, 128, 1024, 128, lnc=2) == 512
        # One moving column takes the shortest interval of 64 cycles.
        assert ns(1, 128, 128, 1) == 64

    def test_lanes(self):
        engine = spec.LaneEngine(
            clock=1e9, lanes=128, minimum=64, overhead=100, speedup_16bit=2, tile=512, speedup_16bit_one=4
        )
        chip = toys.chip(vector=engine)
        # 128 x 1000 elements: 1000 cycles a lane and 100 to start; 16 bits halve the first part.
        assert took("vector", chip, elements=128_000, passes=1, itemsize=4) == 1100
        assert took("vector", chip, elements=128_000, passes=1, itemsize=2) == 600
        # With one tensor they quarter it, and a reduction has no such mode.
        assert took("vector_one", chip, elements=128_000, passes=1, itemsize=2) == 350
        assert took("vector_reduce", chip, elements=128_000, passes=1, itemsize=2) == 1100
        # Ten elements take the minimum.
        assert took("vector", chip, elements=10, passes=1, itemsize=4) == 164
        # One that follows others of its row has no start of its own.
        assert took("vector_next", chip, elements=10, passes=1, itemsize=4) == 64

    def test_dma_takes_the_slower_of_engines_and_hbm(self):
        chip = toys.chip()
        # 1 MB at 1 TB/s of HBM is 1 us; four ranks on the chip share it.
        assert took("dma", bytes=10**6, piece=8192) == 1000
        assert took("dma", ranks_on_chip=4, bytes=10**6, piece=8192) == 4000
        slow = replace(chip, dma=replace(chip.dma, bandwidth=1e10, efficiency_256=0.5))
        # 16 engines x 10 GB/s = 160 GB/s: 6.25 us; in pieces of 256 bytes half of that.
        assert took("dma", slow, bytes=10**6, piece=8192) == 6250
        assert took("dma", slow, bytes=10**6, piece=256) == 12_500

    def test_a_program_is_priced_opcode_by_opcode(self):
        builder = ProgramBuilder()
        builder.launch(0)
        builder.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (10**6, 8192, 0, 0))
        builder.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 128, 256, 512), dtype="bfloat16")
        builder.add(Opcode.HOST_SYNC, Queue.HOST, 0, (0, 0, 0, 0))
        builder.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 128, 128, 1), dtype="float32")
        program, job = builder.finish([], {}), Job(toys.chip(), 1, 1)
        assert priced.durations(program, job).tolist() == [100 * US, US, 1024_000, 0, 4 * 64_000]
        codes, words = priced.texts(program, job)
        assert [words[c] if c >= 0 else None for c in codes] == [
            "launch", "dma bytes=1000000 piece=8192", "matmul batch=1 M=128 K=256 N=512 itemsize=2", None,
            "matmul batch=1 M=128 K=128 N=1 itemsize=4",
        ]  # fmt: skip


def rows(program, timing):
    """(start, end, wait, wait_for, released_by) of each instruction."""

    def row(i):
        times = (int(column[i]) for column in (timing.start, timing.end, timing.wait))
        return (*times, str(WAITS[timing.wait_for[i]]), int(timing.released_by[i]))

    return [row(i) for i in range(len(program))]


SAME = Faults()


def prepared(programs, durations, *, dma_start=0, world=1, stages=(1, 1), faults=SAME, wire=None):
    """Programs of all stages on toy chips, with durations (and times on the wire) given by hand."""
    job = Job(toys.chip(), 1, world, stages, faults)
    whole = fleet(programs, job)
    return Prepared(
        replace(
            whole,
            duration=np.array(durations),
            wire=np.zeros(len(whole), np.int64) if wire is None else np.array(wire),
            link=np.where(np.array(wire if wire is not None else 0) > 0, 0, -1).astype(np.int8)
            + np.zeros(len(whole), np.int8),
            delay=np.where(whole.delay > 0, dma_start, 0),
        ),
        job,
    )


def alone(program, durations, dma_start=0):
    ready = prepared([program], durations, dma_start=dma_start)
    return ready.order, ready.run(0, 0, [0]).timing(0)


def small_program():
    """load a, load b -> matmul -> activate -> store; a third load runs on beside them.

    time        0    5    10   15   20   25   30   35   40
    dma 0       [a  ][b  ]
    dma 1       ..........[c  ]
    tensor      ..........[matmul  ]
    scalar      ...................[act ]
    dma 2       ........................[st ]
    """
    b = ProgramBuilder()
    a = b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0))
    second = b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0))
    b.add(Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS, 0, (1, 1, 0, 0))
    product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1), data=[a, second])
    activated = b.add(Opcode.ACTIVATE, Queue.SCALAR, 0, (1, 1, 0, 0), data=[product])
    b.add(Opcode.DMA_STORE, Queue.DMA_STORES, 0, (1, 1, 0, 0), data=[activated])
    return b.finish([], {}), [5, 5, 5, 10, 5, 5]


def test_queues_run_in_order_and_hbm_serves_one_after_another():
    program, durations = small_program()
    order, timing = alone(program, durations)
    assert rows(program, timing) == [
        (0, 5, 0, "none", -1),
        (10, 15, 5, "hbm", 2),  # c was ready at 0 as well, b only when a had ended
        (5, 10, 5, "hbm", 0),
        (15, 25, 15, "dma", 1),
        (25, 30, 25, "data", 3),
        (30, 35, 15, "data", 4),  # HBM was free from 15 on: only the data was missing
    ]
    assert order.tolist() == [0, 2, 1, 3, 4, 5]


def test_a_dma_starts_late_by_its_start_up():
    program, durations = small_program()
    _, timing = alone(program, durations, dma_start=2)
    # Nothing holds the first three back: their start-up has passed before the program begins. The store waits 2 after its data.
    assert rows(program, timing)[5] == (32, 37, 17, "data", 4)


def test_an_instruction_waits_for_the_last_thing_only_since_the_one_before():
    # The activation needs the matmul's data (10) and room that the load frees (7): for 3 it was ready but for its data.
    b = ProgramBuilder()
    product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
    load = b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0))
    b.add(Opcode.ACTIVATE, Queue.SCALAR, 0, (1, 1, 0, 0), data=[product], space=[load])
    program = b.finish([], {})
    _, timing = alone(program, [10, 7, 5])
    assert rows(program, timing)[2] == (10, 15, 3, "data", 0)


def test_room_in_sbuf_is_its_own_reason_to_wait():
    b = ProgramBuilder()
    first = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
    b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0), space=[first])
    program = b.finish([], {})
    _, timing = alone(program, [10, 5])
    assert rows(program, timing) == [(0, 10, 0, "none", -1), (10, 15, 10, "sbuf", 0)]


def test_a_launch_holds_back_every_queue_once():
    b = ProgramBuilder()
    b.launch(-1)
    b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0))
    b.add(Opcode.DMA_LOAD, Queue.DMA_WEIGHTS, 0, (1, 1, 0, 0))
    program = b.finish([], {})
    assert program.deps.tolist() == [0]
    _, timing = alone(program, [100, 5, 5])
    assert timing.end.tolist() == [100, 105, 110]


def issue(b, kind, queue, group, data=(), peer=0):
    """Adds a collective, or one end of a message."""
    opcode = {Collective.SEND: Opcode.SEND, Collective.RECV: Opcode.RECV}.get(kind, Opcode.COLLECTIVE)
    index = b.add(opcode, queue, 0, (8, group.size, 0, 0), data=data)
    b.collectives[index] = CollectiveCall(kind, 8, group, peer)
    return index


def test_a_collective_starts_when_the_last_rank_arrives():
    # rank 0   [matmul  ]....[AllReduce]        10, waits 5 for its peer
    # rank 1   [matmul       ][AllReduce]       15
    b = ProgramBuilder()
    product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
    issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("dp", ((2, 1),)), [product])
    program = b.finish([], {})
    run = prepared([program], [10, 4], world=2, faults=Faults(throttled={1: 1.5})).run(0, 0, [0, 1])
    assert rows(program, run.timing(0)) == [(0, 10, 0, "none", -1), (15, 19, 5, "peer", 0)]
    assert rows(program, run.timing(1)) == [(0, 15, 0, "none", -1), (15, 19, 15, "data", 0)]
    assert [int(run.timing(r).released_on[1]) for r in (0, 1)] == [1, 1]  # rank 1's matmul released both


PIPELINE = ReplicaGroup("pp", ((2, 1),))


def test_a_stage_waits_for_what_the_other_sends():
    # rank 0   [matmul  ][Send]            0-10, 10-14
    # rank 1   ..........(Recv)[matmul  ]  waits 14 for its peer, then computes
    b = ProgramBuilder()
    product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
    issue(b, Collective.SEND, Queue.CC_SEND, PIPELINE, [product], peer=1)
    first = b.finish([], {})
    b = ProgramBuilder()
    received = issue(b, Collective.RECV, Queue.CC_RECV, PIPELINE, peer=0)
    b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1), data=[received])
    second = b.finish([], {})
    run = prepared([first, second], [10, 4, 0, 10], world=2, stages=(2, 1)).run(0, 0, [0, 1])
    assert rows(first, run.timing(0)) == [(0, 10, 0, "none", -1), (10, 14, 10, "data", 0)]
    assert rows(second, run.timing(1)) == [(14, 14, 14, "peer", 1), (14, 24, 14, "data", 0)]
    assert run.timing(1).released_on.tolist() == [0, 1]
    assert run.totals.end.tolist() == [14, 24]
    assert run.totals.peers.tolist() == [0, 14]


def test_stages_that_wait_for_each_other_are_one_sentence():
    # Each first receives what the other sends only afterwards.
    programs = []
    for peer in (1, 0):
        b = ProgramBuilder()
        received = issue(b, Collective.RECV, Queue.CC_RECV, PIPELINE, peer=peer)
        issue(b, Collective.SEND, Queue.CC_SEND, PIPELINE, [received], peer=peer)
        programs.append(b.finish([], {}))
    with pytest.raises(NeuronprofError, match="wait for each other in a circle"):
        prepared(programs, [0, 4, 0, 4], world=2, stages=(2, 1))


def test_a_message_that_nobody_receives_is_one_sentence():
    b = ProgramBuilder()
    issue(b, Collective.SEND, Queue.CC_SEND, PIPELINE, peer=1)
    with pytest.raises(NeuronprofError, match="stage 0 sends 1 messages to stage 1, which receives 0"):
        prepared([b.finish([], {}), ProgramBuilder().finish([], {})], [4], world=2, stages=(2, 1))


def test_two_collectives_of_a_rank_do_not_get_the_link_twice():
    # Two streams, both ready at 0; each needs the link for 6 of its 10.
    # CC         [AllGather ]
    # CC_REDUCE  ......[AllReduce ]      the link is free at 6
    b = ProgramBuilder()
    group = ReplicaGroup("dp", ((2, 1),))
    issue(b, Collective.ALL_GATHER, Queue.CC, group)
    issue(b, Collective.ALL_REDUCE, Queue.CC_REDUCE, group)
    program = b.finish([], {})
    run = prepared([program], [10, 10], world=2, wire=[6, 6]).run(0, 0, [0])
    assert rows(program, run.timing(0)) == [(0, 10, 0, "none", -1), (6, 16, 6, "link", 0)]


def test_a_degraded_link_slows_its_whole_group_and_nobody_else():
    # Groups {0, 1} and {2, 3}; the chip of rank 3 has half its bandwidth: 6 of wire become 12.
    b = ProgramBuilder()
    issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("tp", ((2, 1),)))
    program = b.finish([], {})
    run = prepared([program], [10], world=4, wire=[6], faults=Faults(links={3: 0.5})).run(0, 0, range(4))
    assert [int(run.timing(r).end[0]) for r in range(4)] == [10, 10, 16, 16]


def test_a_late_host_begins_late_and_its_peers_wait():
    b = ProgramBuilder()
    product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
    issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("dp", ((32, 1),)), [product])
    program = b.finish([], {})
    ready = prepared([program], [10, 4], world=32, faults=Faults(late_hosts={1: 50e-12}))
    run = ready.run(0, 0, range(32))
    late = ready.job.chips_a_host  # the first rank of host 1, with one rank a chip
    assert rows(program, run.timing(late))[0] == (50, 60, 0, "none", -1)
    assert rows(program, run.timing(0)) == [(0, 10, 0, "none", -1), (60, 64, 50, "peer", 0)]
    assert int(run.timing(0).released_on[1]) == late


@st.composite
def programs(draw):
    """Random programs: up to 40 instructions on all queues, each with up to three predecessors."""
    b = ProgramBuilder()
    choices = [
        (Opcode.MATMUL, Queue.TENSOR),
        (Opcode.ACTIVATE, Queue.SCALAR),
        (Opcode.TENSOR_TENSOR, Queue.VECTOR),
        (Opcode.CUSTOM_OP, Queue.GPSIMD),
        (Opcode.DMA_LOAD, Queue.DMA_WEIGHTS),
        (Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS),
        (Opcode.DMA_STORE, Queue.DMA_STORES),
    ]
    n = draw(st.integers(1, 40))
    for i in range(n):
        opcode, queue = draw(st.sampled_from(choices))
        before = st.lists(st.integers(0, i - 1), max_size=3) if i else st.just([])
        b.add(opcode, queue, 0, (1, 1, 0, 0), data=draw(before), space=draw(before))
    times = st.lists(st.integers(1, 50), min_size=n, max_size=n)
    return b.finish([], {}), draw(times), draw(st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(programs())
def test_every_start_has_its_reason(case):
    """Nothing starts before its predecessors have ended, and everything starts as soon as its releaser allows."""
    program, durations, dma_start = case
    order, timing = alone(program, durations, dma_start)
    assert sorted(order.tolist()) == list(range(len(program)))
    for i in range(len(program)):
        start, released = timing.start[i], timing.released_by[i]
        for at in range(program.deps_ptr[i], program.deps_ptr[i + 1]):
            assert timing.end[program.deps[at]] <= start
        assert timing.wait[i] >= 0
        if released < 0:
            assert start == 0
        else:
            assert start - timing.end[released] in (0, dma_start)


@settings(max_examples=60, deadline=None)
@given(programs(), st.sampled_from([Faults(), Faults(jitter=0.1, seed=5), Faults(slow_chips={1: 1.5}, jitter=0.02)]))
def test_lanes_equal_the_plain_form(case, faults):
    program, durations, dma_start = case
    ready = prepared([program], [1000 * d for d in durations], dma_start=dma_start, world=3, faults=faults)
    run = ready.run(7, 1, range(3))
    for rank, by_hand in enumerate(plain.run(ready.fleet, ready.order, ready.job, 7, 1)):
        assert rows(program, run.timing(rank)) == rows(program, by_hand)


def test_a_collective_over_several_blocks_equals_the_plain_form(monkeypatch):
    # 2 stages of 64 lanes in blocks of 32; of each stage, groups of 2 in a block, and one of all, then one of both stages' neighbours:
    # stage 0  (matmul) (tp) (dp) > send        > (both)
    # stage 1  (matmul) (tp) (dp)   > receive   > (both)
    monkeypatch.setattr(lanes, "_BLOCK", 16)
    programs = []
    for stage, (kind, queue) in enumerate([(Collective.SEND, Queue.CC_SEND), (Collective.RECV, Queue.CC_RECV)]):
        b = ProgramBuilder()
        product = b.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 1, 1, 1))
        pair = issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("tp", ((2, 1),)), [product])
        whole = issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("dp", ((64, 1),)), [pair])
        passed = issue(b, kind, queue, ReplicaGroup("pp", ((2, 64),)), [whole], peer=1 - stage)
        issue(b, Collective.ALL_REDUCE, Queue.CC, ReplicaGroup("pp", ((2, 64),)), [passed])
        programs.append(b.finish([], {}))
    faults = Faults(jitter=0.2, seed=3, slow_chips={70: 1.7})
    ready = prepared(programs, [5000, 40, 70, 30, 20, 5000, 40, 70, 0, 20], world=128, stages=(2, 64), faults=faults)
    by_hand = plain.run(ready.fleet, ready.order, ready.job, 7, 1)
    everything, few = ready.run(7, 1, range(128)), ready.run(7, 1, []).keeping([3, 100])
    for rank in range(128):
        assert rows(programs[rank // 64], everything.timing(rank)) == rows(programs[rank // 64], by_hand[rank])
    for rank in (3, 100):
        assert rows(programs[rank // 64], few.timing(rank)) == rows(programs[rank // 64], by_hand[rank])
        assert few.timing(rank).released_on.tolist() == by_hand[rank].released_on.tolist()


def test_the_same_job_twice_is_the_same():
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    job = Job(toys.chip(), 1, 8, faults=Faults(jitter=0.05, seed=3))
    first, second = (Cluster(job).run([program]).timing(0) for _ in range(2))
    np.testing.assert_array_equal(first.start, second.start)
    other = Cluster(replace(job, faults=Faults(jitter=0.05, seed=4))).run([program]).timing(0)
    assert (other.end != first.end).any()


def test_a_rank_is_the_same_whoever_else_runs():
    # No collective in this program: rank 0 must not notice how many others there are.
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    faults = Faults(jitter=0.05, seed=3)
    few, many = (Cluster(Job(toys.chip(), 1, n, faults=faults)).run([program]).timing(0) for n in (2, 8))
    np.testing.assert_array_equal(few.end, many.end)


def test_a_slow_chip_is_slower_by_its_factor():
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    total = Cluster(Job(toys.chip(), 1, 3, faults=Faults(slow_chips={1: 2.0}))).run([program]).totals.end
    assert total[0] == total[2]
    assert total[1] == pytest.approx(2 * total[0], rel=1e-3)


def test_programs_run_one_after_another():
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    cluster = Cluster(Job(toys.chip(), 1, 1))
    first, second = cluster.run([program]), cluster.run([program])
    assert second.begin == first.end
    assert second.end - second.begin == first.end - first.begin
