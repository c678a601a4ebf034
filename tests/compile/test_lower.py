"""Lowering: what a graph asks for is what the instructions add up to."""

from collections import Counter

import numpy as np
import pytest
import toys

from neuronprof.compile.lower import compile_graph
from neuronprof.compile.memory import check_fit, peak_levels
from neuronprof.errors import NeuronprofError
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Phase, Role

MIB = 2**20


def total(program, opcode, column):
    return int(getattr(program, column)[program.opcode == opcode].sum())


def test_a_small_layer_is_one_tile():
    # x (128, 512) and w (512, 512) in bf16 are 640 KiB: less than a MiB, so one tile of load, matmul, epilogue and store.
    program = compile_graph(toys.mlp(batch=128), toys.chip(), 1)
    shown = [
        (Opcode(o).name, Queue(q).name, n, program.deps[program.deps_ptr[i] : program.deps_ptr[i + 1]].tolist())
        for i, (o, q, n) in enumerate(zip(program.opcode, program.queue, program.nbytes.tolist(), strict=True))
    ]
    assert shown == [
        ("DMA_LOAD", "DMA_ACTIVATIONS", 128 * 512 * 2, []),
        ("DMA_LOAD", "DMA_WEIGHTS", 512 * 512 * 2, []),
        ("MATMUL", "TENSOR", 0, [0, 1]),
        ("TENSOR_SCALAR", "VECTOR", 0, [2]),  # the relu reads PSUM: no copy is needed
        ("DMA_STORE", "DMA_STORES", 128 * 512 * 2, [3]),
    ]
    assert program.operands[2].tolist() == [1, 128, 512, 512]


@pytest.mark.parametrize(("batch", "width"), [(128, 512), (1000, 700), (2048, 4096), (4096, 64)])
def test_tiles_add_up_to_the_layer(batch, width):
    program = compile_graph(toys.mlp(batch, width), toys.chip(), 1)
    assert total(program, Opcode.MATMUL, "flops") == 2 * batch * width * width
    assert total(program, Opcode.TENSOR_SCALAR, "flops") == batch * width
    assert total(program, Opcode.DMA_STORE, "nbytes") == 2 * batch * width
    loaded = total(program, Opcode.DMA_LOAD, "nbytes")
    once = 2 * width * (batch + width)
    assert (
        loaded == once if once < 6 * MIB else loaded > once
    )  # beyond half of the working SBUF an operand streams twice


def test_tiles_in_flight_fit_into_sbuf():
    """A load may start only when the tiles that are not done leave room for it."""
    program = compile_graph(toys.mlp(2048, 4096), toys.chip(), 1)
    waits = [i for i in range(len(program)) if program.deps_space[program.deps_ptr[i] : program.deps_ptr[i + 1]].any()]
    loads = np.isin(program.opcode, [Opcode.DMA_LOAD])
    assert loads[waits].any()
    tile = program.nbytes[program.op == 0][:2].sum()
    assert 3 * tile <= 12 * MIB  # three tiles at once in the working half


def test_dependencies_point_backwards():
    program = compile_graph(toys.mlp(2048, 4096), toys.chip(), 1)
    targets = np.repeat(np.arange(len(program)), np.diff(program.deps_ptr))
    assert (program.deps < targets).all()


def test_a_matmul_runs_ahead_by_what_psum_holds():
    # (2048, 4096) x (4096, 4096) in pieces whose sums fill more than half of PSUM's 2 MiB: a matmul waits for the piece before the last one
    # to be copied out. With 64 MiB it never has to.
    def waits(psum):
        memory = toys.spec.OnChipMemory(24 * MIB, psum, 8, 128)
        program = compile_graph(toys.mlp(2048, 4096), toys.chip(memory=memory), 1)
        matmuls = np.flatnonzero(program.opcode == Opcode.MATMUL)
        return [int(program.deps_space[program.deps_ptr[i] : program.deps_ptr[i + 1]].sum()) for i in matmuls]

    small, large = waits(2 * MIB), waits(64 * MIB)
    assert small[:2] == [0, 0]
    assert set(small[2:]) == {1}
    assert set(large) == {0}


def test_a_matmul_alone_is_copied_out_of_psum():
    g = toys.GraphBuilder()
    x, w, y = g.tensor(128, 128), g.tensor(128, 128), g.tensor(128, 128, birth=0)
    g.op("aten.mm.default", [x, w], [y])
    program = compile_graph(g.graph(), toys.chip(), 1)
    assert Counter(Opcode(o).name for o in program.opcode) == {
        "DMA_LOAD": 1,
        "MATMUL": 1,
        "TENSOR_SCALAR": 1,
        "DMA_STORE": 1,
    }


def test_a_host_sync_waits_for_its_value_and_launches_again():
    # relu -> item() -> relu: the first launch is in the open, and so is the one after the host has looked.
    g = toys.GraphBuilder()
    x, y = g.tensor(64, 64), g.tensor(64, 64, birth=0)
    z = g.tensor(64, 64, birth=2)
    g.op("aten.relu.default", [x], [y])
    g.op("aten._local_scalar_dense.default", [y], [])
    g.op("aten.relu.default", [y], [z])
    program = compile_graph(g.graph(), toys.chip(), 1)
    deps = [program.deps[a:b].tolist() for a, b in zip(program.deps_ptr, program.deps_ptr[1:], strict=False)]
    assert list(zip((Opcode(o).name for o in program.opcode), deps, strict=True)) == [
        ("LAUNCH", []),
        ("DMA_LOAD", [0]),
        ("TENSOR_SCALAR", [0, 1]),
        ("DMA_STORE", [0, 2]),
        ("COPY_TO_HOST", [0, 2, 3]),
        ("HOST_SYNC", [4]),
        ("LAUNCH", []),  # the host's own queue keeps it behind the sync
        ("TENSOR_SCALAR", [2, 6]),  # y is still in SBUF
        ("DMA_STORE", [6, 7]),
    ]


def test_syncs_in_a_row_launch_once_and_none_follows_the_last():
    g = toys.GraphBuilder()
    x, y = g.tensor(64, 64), g.tensor(64, 64, birth=1)
    g.op("aten._local_scalar_dense.default", [x], [])
    g.op("aten.relu.default", [x], [y])
    g.op("aten._local_scalar_dense.default", [y], [])
    g.op("aten._local_scalar_dense.default", [y], [])
    program = compile_graph(g.graph(), toys.chip(), 1)
    host = [Opcode(o).name for o, q in zip(program.opcode, program.queue, strict=True) if q == Queue.HOST]
    assert host == ["HOST_SYNC", "LAUNCH", "HOST_SYNC", "HOST_SYNC"]


def test_tiles_of_an_update_in_place_do_not_wait_for_each_other():
    # w += g over 4 MiB: the load of a tile needs room, never the store of the tile before it in the same tensor.
    g = toys.GraphBuilder()
    w = g.tensor(1024, 1024, role=Role.WEIGHTS)
    grad = g.tensor(1024, 1024, role=Role.GRADIENTS)
    g.op("aten.add_.Tensor", [w, grad], [w], phase=Phase.OPTIMIZER, mutates=[0])
    program = compile_graph(g.graph(), toys.chip(), 1)
    loads = np.flatnonzero(program.opcode == Opcode.DMA_LOAD)
    stores = set(np.flatnonzero(program.opcode == Opcode.DMA_STORE).tolist())
    assert len(loads) == len(stores) == 8
    assert not any(stores & set(program.deps[program.deps_ptr[i] : program.deps_ptr[i + 1]].tolist()) for i in loads)


def test_the_optimizers_step_counters_stay_on_the_host():
    # step += 1; step.item(): AdamW keeps its counter on the host, no sync comes of it.
    g = toys.GraphBuilder()
    step = g.tensor(role=Role.OPTIMIZER_STATE)
    x, y = g.tensor(64, 64), g.tensor(64, 64, birth=2)
    g.op("aten.add_.Tensor", [step], [step], phase=Phase.OPTIMIZER, mutates=[0])
    g.op("aten._local_scalar_dense.default", [step], [], phase=Phase.OPTIMIZER)
    g.op("aten.relu.default", [x], [y])
    program = compile_graph(g.graph(), toys.chip(), 1)
    assert [Opcode(o).name for o in program.opcode] == ["DMA_LOAD", "TENSOR_SCALAR", "DMA_STORE"]


def test_a_step_without_a_host_sync_hides_its_launch():
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    assert Opcode.LAUNCH not in program.opcode


def test_hbm_levels_follow_births_and_deaths():
    # w and x stand in HBM from the start; h is spilled (made by the first group, dead after the second), y outlives.
    g = toys.GraphBuilder()
    x = g.tensor(4096, 512, role=Role.INPUTS)
    h = g.tensor(4096, 512, birth=0, death=1)
    w = g.tensor(512, 512, role=Role.WEIGHTS)
    y = g.tensor(4096, 512, birth=1)
    g.op("aten.relu.default", [x], [h])
    g.op("aten.mm.default", [h, w], [y])
    program = compile_graph(g.graph(), toys.chip(memory=toys.spec.OnChipMemory(8 * MIB, 2 * MIB, 8, 128)), 1)
    levels = [(i >= 0, list(Role)[role], level // MIB) for i, role, level in program.memory.tolist()]
    assert levels == [
        (False, Role.WEIGHTS, 1),
        (False, Role.INPUTS, 8),
        (True, Role.ACTIVATIONS, 8),  # h
        (True, Role.ACTIVATIONS, 16),  # and y
        (True, Role.ACTIVATIONS, 8),  # h is free
    ]
    assert peak_levels(program)["activations"] == 16 * MIB


def test_a_tensor_that_never_leaves_sbuf_takes_no_hbm():
    program = compile_graph(toys.mlp(), toys.chip(), 1)
    held = {list(Role)[role] for _, role, _ in program.memory.tolist()}
    assert held == {Role.WEIGHTS, Role.INPUTS, Role.ACTIVATIONS}  # activations: y alone
    assert peak_levels(program)["activations"] == 256 * 512 * 2


def test_what_does_not_fit_says_by_how_much_and_what_would():
    program = compile_graph(toys.mlp(4096, 4096), toys.chip(), 1)  # 32 MiB each of weights, inputs and outputs
    check_fit(peak_levels(program), 96 * MIB, "toy")
    with pytest.raises(
        NeuronprofError,
        match=r"needs 96 MiB of HBM and a rank of toy has 64 MiB, 32 MiB too little.*batch 50% as large",
    ):
        check_fit(peak_levels(program), 64 * MIB, "toy")
    with pytest.raises(NeuronprofError, match="shard them over at least 2 ranks"):
        check_fit(peak_levels(program), 32 * MIB, "toy")


def test_an_unknown_operator_is_costed_by_its_bytes_and_named():
    g = toys.GraphBuilder()
    x, y = g.tensor(64, 64), g.tensor(64, 64, birth=0)
    g.op("mylib.mystery.default", [x], [y])
    program = compile_graph(g.graph(), toys.chip(), 1)
    assert program.unknown == {"mylib.mystery.default": 1}
    assert total(program, Opcode.DMA_LOAD, "nbytes") == total(program, Opcode.DMA_STORE, "nbytes") == 64 * 64 * 4
    assert (program.opcode == Opcode.TENSOR_SCALAR).sum() == 1


def test_phases_keep_their_operators_apart():
    g = toys.GraphBuilder()
    a, b, c = g.tensor(64, 64), g.tensor(64, 64, birth=0, death=1), g.tensor(64, 64, birth=1)
    g.op("aten.relu.default", [a], [b])
    g.op("aten.relu.default", [b], [c], phase=Phase.BACKWARD)
    program = compile_graph(g.graph(), toys.chip(), 1)
    assert sorted(set(program.op.tolist())) == [0, 1]
