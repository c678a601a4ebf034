"""How full SBUF and PSUM are over time: levels computed by hand, and that no program fills more than there is."""

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronprof.compile.builder import ProgramBuilder
from neuronprof.compile.lower import lower
from neuronprof.hardware.spec import OnChipMemory
from neuronprof.program import Opcode, Queue
from neuronprof.simulate import onchip
from neuronprof.simulate.cluster import Cluster
from neuronprof.simulate.job import Job
from neuronprof.terms import HELD, Held, Phase, Role

NS = 1000
MIB = 2**20
SMALL = OnChipMemory(sbuf=6 * MIB, psum=MIB, psum_banks=8, partitions=128)


def levels_of(program, chip):
    run = Cluster(Job(chip, 1, 1)).run([program])
    return onchip.levels(run.program(0), run.timing(0), run.end)


def test_levels_by_hand():
    # 1 TB/s of HBM is 1000 bytes a nanosecond, a core does 128 elements in one.
    #   load    aaaabbbb            a: 4000 bytes, b: 4000 bytes
    #   vector      ..AAAABB        A: 512 elements after a, B: 256 after b
    #   tiles   4444899994455..     a and A hold 4 kB from 0 to 8, b and B 5 kB from 4 to 10
    #   resident    777777777733    7 kB once A begins, 3 kB once B does
    program = ProgramBuilder()
    a = program.add(Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS, 0, (4000, 4000, 0, 0))
    b = program.add(Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS, 1, (4000, 4000, 0, 0))
    first = program.add(Opcode.TENSOR_TENSOR, Queue.VECTOR, 0, (512, 1, 0, 0), data=[a])
    second = program.add(Opcode.TENSOR_TENSOR, Queue.VECTOR, 1, (256, 1, 0, 0), data=[b])
    program.hold(Held.TILES, a, first, 4000)
    program.hold(Held.TILES, b, second, 5000)
    program.hold(Held.RESIDENT, first, first, 7000)
    program.hold(Held.RESIDENT, second, second, 3000)
    found = levels_of(program.finish([], {}), toys.chip())
    rows = zip(found.what.tolist(), found.start.tolist(), found.end.tolist(), found.nbytes.tolist(), strict=True)
    assert [(HELD[what].value, start // NS, end // NS, nbytes) for what, start, end, nbytes in rows] == [
        ("resident", 4, 8, 7000),
        ("resident", 8, 10, 3000),
        ("tiles", 0, 4, 4000),
        ("tiles", 4, 8, 9000),
        ("tiles", 8, 10, 5000),
    ]


def test_of_many_changes_the_most_of_each_few_is_told():
    # 512 tiles of 1000 bytes and more, one after another, 100 ns each: eight changes in a row become one, with the largest of their tiles.
    # The host copies for 10 us in the middle: a long time without a tile stays empty.
    program = ProgramBuilder()
    last = -1
    for i in range(512):
        if i == 256:
            last = program.add(Opcode.COPY_TO_HOST, Queue.DMA_HOST, 0, (10**5, 10**5, 0, 0), data=[last])
        last = program.add(Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS, 0, (10**5, 10**5, 0, 0), data=[last])
        program.hold(Held.TILES, last, last, 1000 + i)
    found = levels_of(program.finish([], {}), toys.chip())
    assert found.nbytes[:32].tolist() == [1000 + i for i in range(7, 256, 8)]
    assert found.nbytes[-1] == 1000 + 511
    gaps = found.start[1:] - found.end[:-1]
    assert np.flatnonzero(gaps).tolist() == [31]
    assert gaps[31] == pytest.approx(10_000 * NS, rel=0.01)


OPERANDS = {
    "aten.mm.default": 2,
    "aten.mul.Tensor": 2,
    "aten.exp.default": 1,
    "aten._softmax.default": 1,
    "aten.zeros.default": 0,
}


@st.composite
def graphs(draw):
    """Operators on tensors from small to larger than SBUF, each reading earlier ones."""
    g = toys.GraphBuilder()
    rows = draw(st.sampled_from([64, 512, 2048]))
    known = [g.tensor(rows, rows, birth=-1, role=Role.INPUTS)]
    for op in range(draw(st.integers(1, 12))):
        name, phase = draw(st.sampled_from(sorted(OPERANDS))), draw(st.sampled_from([Phase.FORWARD, Phase.BACKWARD]))
        inputs = [draw(st.sampled_from(known)) for _ in range(OPERANDS[name])]
        out = g.tensor(rows, rows, birth=op)
        g.op(name, inputs, [out], phase=phase, attributes=[1, False] if "softmax" in name else ())
        known.append(out)
    return g.graph()


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from([1, 2, 99]))
def test_nothing_fills_more_than_there_is(graph, every):
    # Single instructions of all operators, of every second one, of none.
    chip = toys.chip(memory=SMALL)
    detailed = frozenset(range(every - 1, len(graph), every))
    found = levels_of(lower(graph, chip, 1, detailed).program_of(graph), chip)
    in_psum = found.what == HELD.index(Held.PARTIAL_SUMS)
    for mine, room in ((~in_psum, SMALL.sbuf), (in_psum, SMALL.psum)):
        times = np.concatenate([found.start[mine], found.end[mine]])
        change = np.concatenate([found.nbytes[mine], -found.nbytes[mine]])
        assert np.cumsum(change[np.lexsort((change, times))]).max(initial=0) <= room
