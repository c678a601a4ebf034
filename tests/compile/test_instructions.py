"""Operators in detail: which instructions a tile is made of, and that they add up to the operator."""

from dataclasses import replace

import numpy as np
import pytest
import toys

from neuronprof.compile import instructions
from neuronprof.compile.lower import lower
from neuronprof.errors import NeuronprofError
from neuronprof.program import Opcode, Queue

EVERYTHING = frozenset(range(100))


def product(m, k, n, dtype="bfloat16"):
    g = toys.GraphBuilder()
    x, w = g.tensor(m, k, dtype=dtype), g.tensor(k, n, dtype=dtype)
    g.op("aten.mm.default", [x, w], [g.tensor(m, n, dtype=dtype, birth=0)])
    return g.graph()


def in_detail(graph, chip=None, lnc=1):
    return lower(graph, chip or toys.chip(), lnc, EVERYTHING).program


def shown(program):
    """(opcode, queue, operands, what it needs, whose room it needs) of each instruction."""

    def row(i):
        deps = slice(program.deps_ptr[i], program.deps_ptr[i + 1])
        needs, room = (program.deps[deps][program.deps_space[deps] == space].tolist() for space in (False, True))
        return Opcode(program.opcode[i]).name, Queue(program.queue[i]).name, program.operands[i].tolist(), needs, room

    return [row(i) for i in range(len(program))]


def test_a_product_is_weights_and_moves():
    # (128, 256) x (256, 1024): the result is two banks of 128 x 512; each sums up two tiles of K. The third load of weights has to wait for
    # the first MATMUL: the array holds the weights at work and the next ones.
    assert shown(in_detail(product(128, 256, 1024))) == [
        ("DMA_LOAD", "DMA_ACTIVATIONS", [589_824, 4608, 0, 0], [], []),
        ("LDWEIGHTS", "WEIGHTS", [1, 128, 128, 0], [0], []),
        ("MATMUL_TILE", "TENSOR", [1, 128, 128, 512], [1], []),
        ("LDWEIGHTS", "WEIGHTS", [1, 128, 128, 0], [], []),
        ("MATMUL_TILE", "TENSOR", [1, 128, 128, 512], [3], []),
        ("TENSOR_SCALAR", "VECTOR", [65_536, 1, 0, 0], [4], []),  # out of PSUM
        ("LDWEIGHTS", "WEIGHTS", [1, 128, 128, 0], [], [2]),
        ("MATMUL_TILE", "TENSOR", [1, 128, 128, 512], [6], []),
        ("LDWEIGHTS", "WEIGHTS", [1, 128, 128, 0], [], [4]),
        ("MATMUL_TILE", "TENSOR", [1, 128, 128, 512], [8], []),
        ("TENSOR_SCALAR", "VECTOR", [65_536, 1, 1, 0], [9], []),
        ("DMA_STORE", "DMA_STORES", [262_144, 2048, 0, 0], [10], []),
    ]


def test_results_wait_for_a_bank_of_psum():
    # Nine results in eight banks: the ninth waits until the first has been taken out.
    program = in_detail(product(128, 128, 9 * 512))
    rows = shown(program)
    moves = [row for row in rows if row[0] == "MATMUL_TILE"]
    first_copy = next(i for i, row in enumerate(rows) if row[0] == "TENSOR_SCALAR")
    assert [row[4] for row in moves] == [[]] * 8 + [[first_copy]]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        # Four arrays: 6 results of 128 x 512, four of them at once, then two, for which two arrays each share the two tiles of K.
        ((128, 256, 6 * 512), "bfloat16", [(4, 128, 128, 512)] * 2 + [(4, 128, 128, 512)]),
        # FP8 contracts 256 rows at once.
        ((128, 256, 4 * 512), "float8_e4m3fn", [(4, 128, 256, 512)]),
        # The longer side is held, as 5 tiles of 128 past which 100 columns move: 4 side by side, and the last alone, for K is one tile.
        ((100, 64, 612), "bfloat16", [(4, 128, 64, 100), (1, 128, 64, 100)]),
        # What is left of N moves on its own.
        ((128, 128, 700), "bfloat16", [(1, 128, 128, 512), (1, 128, 128, 188)]),
    ],
)  # fmt: skip
def test_arrays_side_by_side(shape, dtype, expected):
    chip = toys.chip(tensor=replace(toys.chip().tensor, arrays=4))
    program = in_detail(product(*shape, dtype), chip)
    moves = program.opcode == Opcode.MATMUL_TILE
    assert [tuple(row) for row in program.operands[moves].tolist()] == expected
    assert program.flops[moves].sum() == 2 * np.prod(shape)


def test_an_elementwise_chain_goes_through_the_engines_tile_by_tile():
    # 4 tiles of 128 lanes x 512; exp on the scalar engine feeds the sum on the vector engine, which works one tile behind it and reads two
    # operands, one a cycle.
    g = toys.GraphBuilder()
    x, y = g.tensor(512, 512, dtype="bfloat16"), g.tensor(512, 512, dtype="bfloat16", birth=0, death=1)
    z = g.tensor(512, 512, dtype="bfloat16", birth=1)
    g.op("aten.exp.default", [x], [y])
    g.op("aten.add.Tensor", [y, x], [z])
    rows = shown(in_detail(g.graph()))
    engines = [(name, operands, needs) for name, _, operands, needs, _ in rows if not name.startswith("DMA")]
    assert engines == [
        ("ACTIVATE", [65_536, 1, 0, 0], [0]), ("TENSOR_TENSOR", [131_072, 1, 0, 0], [1]),
        ("ACTIVATE", [65_536, 1, 1, 0], []), ("TENSOR_TENSOR", [131_072, 1, 1, 0], [3]),
        ("ACTIVATE", [65_536, 1, 1, 0], []), ("TENSOR_TENSOR", [131_072, 1, 1, 0], [5]),
        ("ACTIVATE", [65_536, 1, 1, 0], []), ("TENSOR_TENSOR", [131_072, 1, 1, 0], [7]),
    ]  # fmt: skip


def test_only_what_is_asked_for_is_in_detail():
    graph = toys.mlp(batch=128)
    coarse, fine = lower(graph, toys.chip(), 1).program, lower(graph, toys.chip(), 1, frozenset([0])).program
    assert (coarse.opcode == Opcode.MATMUL).sum() == 1
    assert not (fine.opcode == Opcode.MATMUL).any()
    assert lower(graph, toys.chip(), 1, frozenset([99])).program.opcode.tolist() == coarse.opcode.tolist()


def test_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(instructions, "MOST", 10)
    with pytest.raises(NeuronprofError, match=r"more than 10; name fewer with --detail instruction:PATTERN"):
        in_detail(product(128, 256, 1024))


def test_attention_goes_from_scores_through_the_softmax_to_values():
    # One head, 128 positions, 64 wide: scores 128 x 128, the softmax on the other engines, then P V; each waits for the one before it.
    g = toys.GraphBuilder()
    q, k, v = (g.tensor(1, 1, 128, 64, dtype="bfloat16") for _ in range(3))
    g.op("aten.scaled_dot_product_attention.default", [q, k, v], [g.tensor(1, 1, 128, 64, dtype="bfloat16", birth=0)])
    rows = [
        (name, operands[1:], needs) for name, _, operands, needs, _ in shown(in_detail(g.graph())) if "DMA" not in name
    ]
    assert [row for row in rows if row[0] in ("LDWEIGHTS", "MATMUL_TILE")] == [
        ("LDWEIGHTS", [128, 64, 0], [0]), ("MATMUL_TILE", [128, 64, 128], [1]),
        ("LDWEIGHTS", [128, 128, 0], [4]), ("MATMUL_TILE", [128, 128, 64], [5]),
    ]  # fmt: skip
    assert [(name, needs) for name, _, needs in rows[2:4]] == [("ACTIVATE", [2]), ("TENSOR_SCALAR", [3])]
