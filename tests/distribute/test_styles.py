"""Execution styles rewrite a step: what runs again, what is kept, what is cast."""

import toys

from neuronprof.distribute.pieces import even
from neuronprof.distribute.styles.fp8 import in_fp8
from neuronprof.distribute.styles.gradients import in_fp32
from neuronprof.distribute.styles.recompute import recomputed
from neuronprof.terms import PHASES, Phase, Role


def two_blocks():
    """x0 -w0-> h0 -relu-> x1 -w1-> h1 -relu-> x2, and back; relu's backward needs its result, mm's the input and the weight."""
    g = toys.GraphBuilder()
    make = {"dtype": "bfloat16"}
    w = [g.tensor(64, 64, role=Role.WEIGHTS, name=f"blocks.{i}.w", **make) for i in range(2)]
    x0 = g.tensor(64, 64, role=Role.INPUTS, **make)
    h0, x1, h1, x2 = (g.tensor(64, 64, birth=b, death=d, **make) for b, d in ((0, 1), (1, 8), (2, 3), (3, 4)))
    d2, e1, g1, d1, e0, g0, d0 = (g.tensor(64, 64, birth=4 + i, death=-1, **make) for i in range(7))
    ops = [
        ("aten.mm.default", [x0, w[0]], [h0], 0), ("aten.relu.default", [h0], [x1], 0),
        ("aten.mm.default", [x1, w[1]], [h1], 1), ("aten.relu.default", [h1], [x2], 1),
    ]  # fmt: skip
    back = [
        ("aten.ones_like.default", [x2], [d2], 1), ("aten.threshold_backward.default", [d2, x2], [e1], 1),
        ("aten.mm.default", [x1, e1], [g1], 1), ("aten.mm.default", [e1, w[1]], [d1], 1),
        ("aten.threshold_backward.default", [d1, x1], [e0], 0),
        ("aten.mm.default", [x0, e0], [g0], 0), ("aten.mm.default", [e0, w[0]], [d0], 0),
    ]  # fmt: skip
    for name, inputs, outputs, _ in ops:
        g.op(name, inputs, outputs)
    for name, inputs, outputs, _ in back:
        g.op(name, inputs, outputs, phase=Phase.BACKWARD)
    graph = g.graph()
    module = [1 + layer for *_, layer in [*ops, *back]]
    object.__setattr__(graph, "module", toys.np.array(module, "int32"))
    object.__setattr__(graph, "modules", ("", "blocks.0", "blocks.1"))
    return graph


def shown(graph):
    return [
        (PHASES[p], graph.signatures[s].name.split(".")[1])
        for p, s in zip(graph.phase.tolist(), graph.signature.tolist(), strict=True)
    ]


def test_full_recomputation_runs_each_block_again_before_its_backward():
    found = recomputed(two_blocks(), "full")
    forward = [(Phase.FORWARD, "mm"), (Phase.FORWARD, "relu")]
    again = [(Phase.RECOMPUTE, "mm"), (Phase.RECOMPUTE, "relu")]
    backward = [(Phase.BACKWARD, n) for n in ("threshold_backward", "mm", "mm")]
    assert shown(found) == [*forward * 2, *again, (Phase.BACKWARD, "ones_like"), *backward, *again, *backward]
    # The relu of block 1 is read again in backward from what the second run made; x1, the input of block 1, is kept for it.
    second = found.outputs(5)[0]
    assert found.inputs(7)[1] == second != found.outputs(3)[0]
    assert found.inputs(4)[0] == found.outputs(1)[0]
    assert found.buffers[found.outputs(3)[0]].death == 3  # nobody needs the first x2 after forward


def test_selective_recomputation_leaves_a_model_without_attention_alone():
    graph = two_blocks()
    assert recomputed(graph, "selective") is graph
    assert recomputed(graph, "none") is graph


def test_fp8_casts_activations_and_gradients_once():
    found = in_fp8(two_blocks())
    names = [name for _, name in shown(found)]
    # x0, x1, two weights in forward and again in backward, and the two gradients: eight casts.
    assert names.count("_to_copy") == 8
    products = [found.signatures[s] for s in found.signature.tolist() if found.signatures[s].name == "aten.mm.default"]
    assert {t.dtype for p in products for t in p.inputs} == {"float8_e4m3fn"}
    assert {t.dtype for p in products for t in p.outputs} == {"bfloat16"}


def test_even_stages_are_short_at_the_end_and_then_at_the_beginning():
    assert even(8, 4) == (2, 2, 2, 2)
    assert even(7, 4) == (2, 2, 2, 1)
    assert even(6, 4) == (1, 2, 2, 1)  # as 126 layers in 64 pieces leave one layer in the first and in the last


def test_fp32_gradients_come_out_of_products_as_they_are_and_of_all_else_by_a_cast():
    # w is used twice: its gradient is g = a + b of two products. Its neighbour's, s, is a sum over rows. SGD takes both.
    g = toys.GraphBuilder()
    make = {"dtype": "bfloat16"}
    w, v = (g.tensor(64, 64, role=Role.WEIGHTS, name=n, **make) for n in ("w", "v"))
    x, e = g.tensor(64, 64, role=Role.INPUTS, **make), g.tensor(64, 64, birth=0, death=3, **make)
    a, b = (g.tensor(64, 64, birth=i, death=3, **make) for i in (1, 2))
    gradient = g.tensor(64, 64, birth=3, role=Role.GRADIENTS, name="w", **make)
    summed = g.tensor(64, birth=4, role=Role.GRADIENTS, name="v", **make)
    g.op("aten.mm.default", [x, w], [e])
    g.op("aten.mm.default", [x, e], [a], phase=Phase.BACKWARD)
    g.op("aten.mm.default", [e, x], [b], phase=Phase.BACKWARD)
    g.op("aten.add.Tensor", [a, b], [gradient], phase=Phase.BACKWARD)
    g.op("aten.sum.dim_IntList", [e], [summed], phase=Phase.BACKWARD)
    g.op("aten._foreach_add_.List", [w, v, gradient, summed], [], mutates=(0, 1), phase=Phase.OPTIMIZER)
    found = in_fp32(g.graph())
    short = {"bfloat16": "bf16", "float32": "fp32"}
    signatures = [found.signatures[s] for s in found.signature.tolist()]
    assert [(s.name.split(".")[1], *(short[t.dtype] for t in (*s.inputs, *s.outputs))) for s in signatures] == [
        ("mm", "bf16", "bf16", "bf16"),
        ("mm", "bf16", "bf16", "fp32"),
        ("mm", "bf16", "bf16", "fp32"),
        ("add", "fp32", "fp32", "fp32"),
        ("sum", "bf16", "bf16"),
        ("_to_copy", "bf16", "fp32"),
        ("_foreach_add_", "bf16", "bf16", "fp32", "fp32"),
    ]
    sizes = {b.name: b.nbytes for b in found.buffers if b.role is Role.GRADIENTS}
    assert sizes == {"w": 64 * 64 * 4, "v": 64 * 4}
    assert in_fp32(found) is found  # nothing of 16 bits is left
