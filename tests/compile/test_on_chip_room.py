"""What a program says of SBUF and PSUM: who takes room, from when to when, and who has to wait for it."""

import numpy as np
import toys

from neuronprof.compile.lower import compile_graph
from neuronprof.hardware.spec import OnChipMemory
from neuronprof.program import Opcode
from neuronprof.terms import HELD, Role

MIB = 2**20


def held(program):
    return [(HELD[what].value, first, last, nbytes) for what, first, last, nbytes in program.on_chip.tolist()]


def room_for(program, row):
    """What an instruction waits for to have room."""
    deps = slice(program.deps_ptr[row], program.deps_ptr[row + 1])
    return program.deps[deps][program.deps_space[deps]].tolist()


def test_a_tile_holds_what_it_moves_and_a_product_its_sums():
    # x (128, 512) and w (512, 512), what both operators make of them, in 16 bits, one tile: load x, load w, MATMUL, relu, store y. The sums
    # of 128 x 512 in FP32 stand in PSUM from the MATMUL until relu has read them.
    assert held(compile_graph(toys.mlp(batch=128), toys.chip(), 1)) == [
        ("tiles", 0, 4, 2 * (128 * 512 + 512 * 512 + 2 * 128 * 512)),
        ("partial_sums", 2, 3, 4 * 128 * 512),
    ]


def test_a_tensor_is_resident_while_a_later_operator_wants_it():
    # y = exp(x w) by rows: h of 1 MiB stays for the reduction, and has no more readers once that has begun.
    g = toys.GraphBuilder()
    x, w = g.tensor(512, 512, role=Role.INPUTS), g.tensor(512, 512, role=Role.WEIGHTS)
    h, y = g.tensor(512, 512, birth=0, death=1), g.tensor(512, 512, birth=1)
    g.op("aten.mm.default", [x, w], [h])
    g.op("aten._softmax.default", [h], [y], attributes=[1, False])
    program = compile_graph(g.graph(), toys.chip(), 1)
    softmax = int(np.flatnonzero(program.op == 1)[0])
    assert [row for row in held(program) if row[0] == "resident"] == [
        ("resident", 0, 0, MIB),
        ("resident", softmax, softmax, 0),
    ]


def test_what_loads_nothing_waits_for_room_for_its_result():
    # zeros of 64 MiB in tiles of 2 MiB: three of them share 6 MiB, so that the fill of a tile waits for the store three tiles before.
    g = toys.GraphBuilder()
    g.op("aten.zeros.default", [], [g.tensor(4096, 4096, birth=0)])
    program = compile_graph(g.graph(), toys.chip(memory=OnChipMemory(12 * MIB, 2 * MIB, 8, 128)), 1)
    fills = np.flatnonzero(program.opcode == Opcode.TENSOR_SCALAR).tolist()
    stores = np.flatnonzero(program.opcode == Opcode.DMA_STORE).tolist()
    assert len(fills) == len(stores) == 32
    assert [room_for(program, row) for row in fills] == [[], [], [], *([row] for row in stores[:-3])]


def test_a_product_waits_for_the_sums_of_the_one_before():
    # Three products that need nothing of each other, each with sums of 1.5 MiB: PSUM has 2 MiB, of which one takes half at most. So the
    # third waits until the first has been copied out.
    g = toys.GraphBuilder()
    for op in range(3):
        x, w = g.tensor(256, 256, dtype="bfloat16"), g.tensor(256, 1536, dtype="bfloat16")
        g.op("aten.mm.default", [x, w], [g.tensor(256, 1536, dtype="bfloat16", birth=op)])
    program = compile_graph(g.graph(), toys.chip(), 1)
    assert [row[3] for row in held(program) if row[0] == "partial_sums"] == [MIB, MIB, MIB]
    products, copies = (np.flatnonzero(program.opcode == o).tolist() for o in (Opcode.MATMUL, Opcode.TENSOR_SCALAR))
    assert [room_for(program, row) for row in products] == [[], [], copies[:1]]


def test_a_product_that_reads_its_operands_again_says_so():
    # (2048, 4096) x (4096, 4096) in 16 bits are 16 and 32 MiB; half of the working 12 MiB holds a third of the smaller one, past which the
    # larger one streams three times.
    program = compile_graph(toys.mlp(2048, 4096), toys.chip(), 1)
    loads = program.opcode == Opcode.DMA_LOAD
    assert int(program.nbytes[loads].sum()) == (16 + 3 * 32) * MIB
    assert int(program.operands[loads, 2].sum()) == 2 * 32 * MIB
    assert not program.operands[loads, 3].any()
