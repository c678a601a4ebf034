"""What the vector engine works in decides how fast it is: modes for 16 bits are for single instructions out of SBUF."""

import toys

from neuronprof.compile.lower import compile_graph
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Role

HALF = {"dtype": "bfloat16"}


def lanes(graph):
    """(opcode, element type, elements) of each instruction on the engines with lanes."""
    program = compile_graph(graph, toys.chip(), 1)
    columns = zip(
        program.opcode.tolist(),
        program.queue.tolist(),
        program.dtype.tolist(),
        program.operands[:, 0].tolist(),
        strict=True,
    )
    wanted = (Queue.VECTOR, Queue.SCALAR, Queue.GPSIMD)
    return [(Opcode(o).name, program.dtypes[d], n) for o, q, d, n in columns if q in wanted]


def test_an_operator_of_one_instruction_works_in_what_it_reads_and_writes():
    g = toys.GraphBuilder()
    x, y = (g.tensor(64, 64, role=Role.INPUTS, **HALF) for _ in range(2))
    g.op("aten.add.Tensor", [x, y], [g.tensor(64, 64, birth=0, **HALF)])
    assert lanes(g.graph()) == [("TENSOR_TENSOR", "bfloat16", 2 * 4096)]


def test_what_passes_between_the_instructions_of_an_operator_is_fp32():
    g = toys.GraphBuilder()
    x = g.tensor(64, 64, role=Role.INPUTS, **HALF)
    g.op("aten._softmax.default", [x], [g.tensor(64, 64, birth=0, **HALF)])
    # Maximum and scaling; the exponential with its sum.
    assert lanes(g.graph()) == [("ACTIVATE", "bfloat16", 4096), ("TENSOR_REDUCE", "float32", 2 * 4096)]


def test_what_takes_a_product_out_of_psum_reads_fp32():
    # A product and a relu of its result; and a product whose result is only copied.
    assert lanes(toys.mlp(64, 64)) == [("TENSOR_SCALAR", "float32", 4096)]
    g = toys.GraphBuilder()
    x, w = (g.tensor(64, 64, role=Role.INPUTS, **HALF) for _ in range(2))
    g.op("aten.mm.default", [x, w], [g.tensor(64, 64, birth=0, **HALF)])
    assert lanes(g.graph()) == [("TENSOR_SCALAR", "float32", 4096)]


def test_casts_beside_other_operators_take_no_instruction():
    g = toys.GraphBuilder()
    x = g.tensor(64, 64, role=Role.INPUTS, **HALF)
    wide, squared = g.tensor(64, 64, birth=0, death=1), g.tensor(64, 64, birth=1, death=2)
    g.op("aten._to_copy.default", [x], [wide])
    g.op("aten.exp.default", [wide], [squared])
    g.op("aten._to_copy.default", [squared], [g.tensor(64, 64, birth=2, **HALF)])
    assert lanes(g.graph()) == [("ACTIVATE", "float32", 4096)]
    # One alone does.
    g = toys.GraphBuilder()
    g.op("aten._to_copy.default", [g.tensor(64, 64, role=Role.INPUTS, **HALF)], [g.tensor(64, 64, birth=0)])
    assert lanes(g.graph()) == [("TENSOR_SCALAR", "float32", 4096)]
