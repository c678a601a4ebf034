"""Fusion and the memory plan on graphs that one can draw."""

from dataclasses import replace

import toys

from neuronprof.compile.fuse import contiguous_bytes, fuse
from neuronprof.compile.plan import Move, plan
from neuronprof.graph.ir import Tensor
from neuronprof.graph.ops import work
from neuronprof.terms import Phase, Role

MIB = 2**20


def groups_of(graph):
    return fuse(graph, [work(s) for s in graph.signatures])


def ops_of(graph):
    return [g.ops for g in groups_of(graph)]


def test_an_epilogue_joins_its_matmul():
    # x, w -> mm -> relu -> y
    assert ops_of(toys.mlp()) == [[0, 1]]


def test_a_chain_of_elementwise_operators_is_one_group():
    # a -> mul -> b -> exp -> c -> add(a) -> d
    g = toys.GraphBuilder()
    a, b, c, d = (g.tensor(64, 64) for _ in range(4))
    g.op("aten.mul.Tensor", [a, a], [b])
    g.op("aten.exp.default", [b], [c])
    g.op("aten.add.Tensor", [c, a], [d])
    (group,) = groups_of(g.graph())
    assert group.ops == [0, 1, 2]
    assert group.reads == {a: 64 * 64 * 4}
    assert set(group.writes) == {b, c, d}


def test_other_shapes_and_other_phases_stay_apart():
    # relu on (64, 64), then on (32, 64); a third in backward.
    g = toys.GraphBuilder()
    a, b, d, e = (g.tensor(64, 64) for _ in range(4))
    c = g.tensor(32, 64)
    g.op("aten.relu.default", [a], [b])
    g.op("aten.relu.default", [c], [c])
    g.op("aten.relu.default", [b], [d], phase=Phase.BACKWARD)
    g.op("aten.relu.default", [d], [e], phase=Phase.BACKWARD)
    assert ops_of(g.graph()) == [[0], [1], [2, 3]]


def test_an_operator_does_not_jump_over_one_that_needs_what_it_overwrites():
    # b = relu(a); c = mm(b, b) reads b; b.mul_() must come after the matmul, so it cannot join the first group.
    g = toys.GraphBuilder()
    a, b, c = (g.tensor(64, 64) for _ in range(3))
    g.op("aten.relu.default", [a], [b])
    g.op("aten.mm.default", [b, b], [c])
    g.op("aten.mul_.Tensor", [b, a], [b], mutates=[0])
    assert ops_of(g.graph()) == [[0], [1], [2]]


def test_a_reduction_does_not_join_a_matmul():
    # A softmax needs whole rows; the PE array finishes tiles.
    g = toys.GraphBuilder()
    a, b, c = (g.tensor(64, 64) for _ in range(3))
    g.op("aten.mm.default", [a, a], [b])
    g.op("aten._softmax.default", [b], [c], attributes=[1, False])
    assert ops_of(g.graph()) == [[0], [1]]


def test_contiguous_bytes():
    assert contiguous_bytes(Tensor("float32", (8, 16), (16, 1))) == 512  # all of it
    assert contiguous_bytes(Tensor("float32", (16, 8), (1, 16))) == 512  # its transpose stands the same way in memory
    assert contiguous_bytes(Tensor("float32", (8, 16), (64, 1))) == 64  # a slice of columns: a row at a time
    assert contiguous_bytes(Tensor("bfloat16", (8, 16), (16, 2))) == 2  # every other element


def chain(middle_elements):
    """x -> relu -> h -> mm with w -> y; h is what may stay in SBUF; y outlives the graph, h does not."""
    g = toys.GraphBuilder()
    x = g.tensor(middle_elements // 512, 512, role=Role.INPUTS)
    h = g.tensor(middle_elements // 512, 512, birth=0, death=1)
    w = g.tensor(512, 512, role=Role.WEIGHTS)
    y = g.tensor(middle_elements // 512, 512, birth=1)
    g.op("aten.relu.default", [x], [h])
    g.op("aten.mm.default", [h, w], [y])
    return g.graph(), x, h, w, y


def test_a_tensor_that_fits_never_leaves_sbuf():
    graph, x, h, w, y = chain(MIB // 4)  # 1 MiB
    first, second = plan(graph, groups_of(graph), sbuf=8 * MIB)
    assert (first.loads, first.resident, first.stores) == ([Move(x, MIB, False)], [], [])
    assert (second.loads, second.resident, second.stores) == ([Move(w, MIB, False)], [h], [Move(y, MIB, False)])


def test_a_tensor_that_does_not_fit_is_spilled_and_reloaded():
    graph, _, h, w, _ = chain(2 * MIB)  # 8 MiB in 4 MiB of resident SBUF
    first, second = plan(graph, groups_of(graph), sbuf=8 * MIB)
    assert first.stores == [Move(h, 8 * MIB, spill=True)]
    assert second.loads == [Move(h, 8 * MIB, spill=True), Move(w, MIB, False)]
    assert second.resident == []


def test_a_tensor_that_another_phase_wants_too_is_no_spill():
    # h does not fit, and both the product after it and backward read it: HBM needs it anyway, only the load of the same phase is extra.
    g = toys.GraphBuilder()
    x, h = g.tensor(4096, 512, role=Role.INPUTS), g.tensor(4096, 512, birth=0, death=2)
    w, y, z = g.tensor(512, 512, role=Role.WEIGHTS), g.tensor(4096, 512, birth=1), g.tensor(4096, 512, birth=2)
    g.op("aten.relu.default", [x], [h])
    g.op("aten.mm.default", [h, w], [y])
    g.op("aten.mm.default", [h, w], [z], phase=Phase.BACKWARD)
    graph = g.graph()
    plans = plan(graph, groups_of(graph), sbuf=8 * MIB)
    assert plans[0].stores == [Move(h, 8 * MIB, spill=False)]
    assert [p.loads[0] for p in plans[1:]] == [Move(h, 8 * MIB, spill=True), Move(h, 8 * MIB, spill=False)]


def test_what_is_loaded_again_soon_is_reuse_missed():
    # Projections of x, of 8 MiB where 4 MiB can stay: the second of a phase loads it again. In another phase, or after nine other groups,
    # that is no wonder.
    g = toys.GraphBuilder()
    x, other = g.tensor(4096, 512, role=Role.INPUTS), g.tensor(64, 1024, role=Role.INPUTS)
    for phase in (Phase.FORWARD, Phase.FORWARD, Phase.BACKWARD, Phase.BACKWARD):
        g.op("aten.mm.default", [x, g.tensor(512, 8)], [g.tensor(4096, 8)], phase=phase)
    for _ in range(9):
        g.op("aten.sum.dim_IntList", [other], [g.tensor(1024)], phase=Phase.BACKWARD)
    g.op("aten.mm.default", [x, g.tensor(512, 8)], [g.tensor(4096, 8)], phase=Phase.BACKWARD)
    graph = g.graph()
    plans = plan(graph, groups_of(graph), sbuf=8 * MIB)
    assert [m.reload // MIB for p in plans for m in p.loads if m.buffer == x] == [0, 8, 0, 8, 0]


def test_parts_of_a_tensor_are_loaded_once_each():
    # Halves of a buffer of 8 MiB are loaded by two groups, then the first one again.
    g = toys.GraphBuilder()
    x = g.tensor(4096, 512, role=Role.INPUTS)
    for _ in range(3):
        g.op("aten.mm.default", [x, g.tensor(512, 8)], [g.tensor(4096, 8)])
    graph = g.graph()
    groups = groups_of(graph)
    for group in groups:
        group.reads[x] = 4 * MIB
    assert [m.reload // MIB for p in plan(graph, groups, sbuf=8 * MIB) for m in p.loads if m.buffer == x] == [0, 0, 4]


def test_what_is_needed_later_goes_first():
    # SBUF keeps 2 MiB: a and b of 1 MiB each are wanted next, c last. c is the one that has to go.
    g = toys.GraphBuilder()
    x = g.tensor(512, 512, role=Role.INPUTS)
    a, b, c = (g.tensor(512, 512, birth=i, death=i + 3) for i in range(3))
    outs = [g.tensor(512, 512, birth=i + 3) for i in range(3)]
    for phase, made in ((Phase.FORWARD, (a, b, c)),):
        for out in made:
            g.op("aten.mm.default", [x, x], [out], phase=phase)
    for source, out in zip((a, b, c), outs, strict=True):
        g.op("aten.mm.default", [source, x], [out], phase=Phase.BACKWARD)
    graph = g.graph()
    plans = plan(graph, groups_of(graph), sbuf=6 * MIB)  # 3 MiB resident: x and two more
    stored = [m.buffer for p in plans[:3] for m in p.stores]
    assert stored == [c]
    # It is wanted by another phase: that is a store, not a spill.
    assert plans[2].stores == [Move(c, MIB, spill=False)]
    assert [m.buffer for m in plans[5].loads] == [c]


def test_parts_of_one_buffer_are_read_each_once():
    # q, k and v are thirds of one projection: all of it is read. q twice is still one third.
    g = toys.GraphBuilder()
    qkv, out = g.tensor(3, 64, 64), g.tensor(64, 64)
    third = 64 * 64 * 4
    parts = [Tensor("float32", (64, 64), (64, 1), offset=i * 64 * 64) for i in range(3)]
    g.op("aten.addcmul.default", [qkv, qkv, qkv], [out])
    graph = g.graph()

    def read(*tensors):
        signature = replace(graph.signatures[0], inputs=tensors)
        (group,) = groups_of(replace(graph, signatures=(signature,)))
        return group.reads

    assert read(*parts) == {qkv: 3 * third}
    assert read(parts[0], parts[0], parts[1]) == {qkv: 2 * third}
