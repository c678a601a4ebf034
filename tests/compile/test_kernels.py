"""Lowering to kernels: what runs side by side, and what follows what."""

from dataclasses import replace

import toys

from neuronprof.compile.lower import compile_graph
from neuronprof.graph.groups import Mesh
from neuronprof.graph.ir import CollectiveCall
from neuronprof.program import Access, Opcode
from neuronprof.terms import Collective, Role


def shown(program):
    deps = [program.deps[program.deps_ptr[i] : program.deps_ptr[i + 1]].tolist() for i in range(len(program))]
    return [
        (Opcode(o).name, operands, d)
        for o, operands, d in zip(program.opcode, program.operands.tolist(), deps, strict=True)
    ]


def test_a_product_and_what_follows_are_two_kernels():
    # x and w have 128 KiB and 512 KiB; the result of 128 KiB stays in the cache for the second kernel.
    assert shown(compile_graph(toys.mlp(batch=128), toys.gpu(), 1)) == [
        ("MATMUL", [1, 128, 512, 512], []),
        ("DMA_LOAD", [640 * 2**10, 640 * 2**10, Access.STREAMING, 0], []),
        ("TENSOR_SCALAR", [128 * 512, 1, 0, 0], [0, 1]),
        ("DMA_STORE", [128 * 2**10, 128 * 2**10, Access.STREAMING, 0], [0, 1]),
    ]


def test_fused_attention_is_one_kernel_of_which_a_causal_mask_spares_half():
    g = toys.GraphBuilder()
    q, k, v = (g.tensor(2, 4, 256, 64, dtype="bfloat16", role=Role.INPUTS) for _ in range(3))
    out = g.tensor(2, 4, 256, 64, dtype="bfloat16", birth=0)
    g.op("aten._scaled_dot_product_flash_attention.default", [q, k, v], [out], attributes=(0.0, True))
    # Two products of 8 heads, 256 x 64 x 256, of which 128 rows are left; four tensors of 256 KiB.
    assert shown(compile_graph(g.graph(), toys.gpu(), 1)) == [
        ("ATTENTION", [16, 128, 64, 256], []),
        ("DMA_LOAD", [768 * 2**10, 768 * 2**10, Access.STREAMING, 0], []),
        ("DMA_STORE", [256 * 2**10, 256 * 2**10, Access.STREAMING, 0], []),
    ]


def test_a_grouped_product_runs_in_the_type_of_its_matrices():
    # Eight rows for each of two experts; where the groups end is said in 32 bits.
    g = toys.GraphBuilder()
    rows = g.tensor(16, 64, dtype="bfloat16", role=Role.INPUTS)
    weights = g.tensor(2, 64, 32, dtype="bfloat16", role=Role.WEIGHTS)
    ends = g.tensor(2, dtype="int32", role=Role.INPUTS)
    g.op("aten._grouped_mm.default", [rows, weights, ends], [g.tensor(16, 32, dtype="bfloat16", birth=0)])
    program = compile_graph(g.graph(), toys.gpu(), 1)
    product = program.opcode.tolist().index(Opcode.MATMUL)
    assert program.dtypes[program.dtype[product]] == "bfloat16"


def test_eager_operators_are_kernels_that_the_host_launches():
    found = shown(compile_graph(toys.mlp(batch=128), replace(toys.gpu(), eager=True), 1))
    assert [name for name, _, _ in found] == ["LAUNCH", "MATMUL", "DMA_LOAD", "LAUNCH", "TENSOR_SCALAR", "DMA_STORE"]
    assert found[4][2] == [1, 2, 3]


def test_collectives_beside_products_are_mostly_hidden():
    # x is gathered before the product that takes it: a quarter of it first, the rest while the product runs, before what follows it.
    g = toys.GraphBuilder()
    part = g.tensor(32, 512, dtype="bfloat16", role=Role.INPUTS)
    w = g.tensor(512, 512, dtype="bfloat16", role=Role.WEIGHTS)
    x, h, y = (g.tensor(128, 512, dtype="bfloat16", birth=i) for i in range(3))
    gather = g.op("_c10d_functional.all_gather_into_tensor.default", [part], [x])
    g.op("aten.mm.default", [x, w], [h])
    g.op("aten.relu.default", [h], [y])
    call = CollectiveCall(Collective.ALL_GATHER, 128 * 512 * 2, Mesh((("tp", 4),)).group("tp"))
    found = shown(compile_graph(replace(g.graph(), collectives={gather: call}), toys.gpu(exposed=0.25), 1))
    assert [(name, operands[0], deps) for name, operands, deps in found if not name.startswith("DMA")] == [
        ("COLLECTIVE", 32768, []),
        ("COLLECTIVE", 98304, []),
        ("MATMUL", 1, [0]),
        ("TENSOR_SCALAR", 65536, [1, 2, 3, 4]),
    ]
