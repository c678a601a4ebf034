"""Buckets of gradients on graphs of three layers."""

import pytest
import toys

from neuronprof.compile.lower import compile_graph
from neuronprof.distribute.data_parallel import Replicas, data_parallel
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.program import Opcode, Queue
from neuronprof.simulate.cluster import Cluster
from neuronprof.simulate.job import Job
from neuronprof.terms import Collective, Phase, Role


def replicas(count):
    return Replicas(ReplicaGroup("dp", ((count, 1),)))


MIB = 2**20


def backward(layers=3, micro_batches=1):
    """Backward of `layers` matmuls of 1 MiB of gradient each, last layer first, then one optimizer operator a layer."""
    g = toys.GraphBuilder()
    x = g.tensor(512, 512, role=Role.INPUTS)
    grads = [g.tensor(512, 512, role=Role.GRADIENTS, name=f"layer{i}.weight") for i in range(layers)]
    weights = [g.tensor(512, 512, role=Role.WEIGHTS) for _ in range(layers)]
    for number in range(micro_batches):
        for grad in reversed(grads):
            if number == 0:
                g.op("aten.mm.default", [x, x], [grad], phase=Phase.BACKWARD)
            else:
                g.op("aten.add_.Tensor", [grad, x], [grad], phase=Phase.BACKWARD, mutates=[0])
    for weight, grad in zip(weights, grads, strict=True):
        g.op("aten.add_.Tensor", [weight, grad], [weight], phase=Phase.OPTIMIZER, mutates=[0])
    return g.graph(), grads


def names(graph):
    return [graph.signatures[s].name.split(".")[1] for s in graph.signature]


def test_one_rank_leaves_the_graph_as_it_is():
    graph, _ = backward()
    assert data_parallel(graph, replicas(1), MIB) is graph


def test_each_bucket_is_sent_as_soon_as_it_is_full():
    # The first bucket holds 1 MiB, the others 2 MiB: layer 2 alone, then layers 1 and 0.
    graph, grads = backward()
    out = data_parallel(graph, replicas(8), 2 * MIB)
    assert names(out) == ["mm", "allreduce_", "mm", "mm", "allreduce_", "add_", "add_", "add_"]
    assert out.collectives == {
        1: CollectiveCall(Collective.ALL_REDUCE, MIB, ReplicaGroup("dp", ((8, 1),)), stream=2),
        4: CollectiveCall(Collective.ALL_REDUCE, 2 * MIB, ReplicaGroup("dp", ((8, 1),)), stream=2),
    }
    assert out.inputs(1) == [grads[2]]
    assert out.inputs(4) == [grads[1], grads[0]]
    assert sum(c.nbytes for c in out.collectives.values()) == sum(graph.buffers[g].nbytes for g in grads)


def test_with_gradient_accumulation_only_the_last_micro_batch_sends():
    graph, _ = backward(layers=2, micro_batches=3)
    out = data_parallel(graph, replicas(4), MIB)
    assert names(out) == ["mm", "mm", "add_", "add_", "add_", "allreduce_", "add_", "allreduce_", "add_", "add_"]


def test_two_optimizers_each_get_their_gradients_reduced():
    # backward of d; d's optimizer; backward of g, which adds to d's gradient as well; g's optimizer. Nobody takes d's second gradient.
    g = toys.GraphBuilder()
    x = g.tensor(512, 512, role=Role.INPUTS)
    grads = [g.tensor(512, 512, role=Role.GRADIENTS) for _ in range(2)]
    weights = [g.tensor(512, 512, role=Role.WEIGHTS) for _ in range(2)]
    g.op("aten.mm.default", [x, x], [grads[0]], phase=Phase.BACKWARD)
    g.op("aten.add_.Tensor", [weights[0], grads[0]], [weights[0]], phase=Phase.OPTIMIZER, mutates=[0])
    g.op("aten.add_.Tensor", [grads[0], x], [grads[0]], phase=Phase.BACKWARD, mutates=[0])
    g.op("aten.mm.default", [x, x], [grads[1]], phase=Phase.BACKWARD)
    g.op("aten.add_.Tensor", [weights[1], grads[1]], [weights[1]], phase=Phase.OPTIMIZER, mutates=[0])
    out = data_parallel(g.graph(), replicas(4), 8 * MIB)
    assert names(out) == ["mm", "allreduce_", "add_", "add_", "mm", "allreduce_", "add_"]
    assert [out.inputs(op) for op in out.collectives] == [[grads[0]], [grads[1]]]


def test_gradients_are_reduced_before_they_are_clipped():
    # backward, then a norm of the gradient outside of any optimizer, then the optimizer
    g = toys.GraphBuilder()
    x, norm = g.tensor(512, 512, role=Role.INPUTS), g.tensor(1, birth=1)
    grad, weight = g.tensor(512, 512, role=Role.GRADIENTS), g.tensor(512, 512, role=Role.WEIGHTS)
    g.op("aten.mm.default", [x, x], [grad], phase=Phase.BACKWARD)
    g.op("aten.linalg_vector_norm.default", [grad], [norm], phase=Phase.OTHER)
    g.op("aten.add_.Tensor", [weight, grad], [weight], phase=Phase.OPTIMIZER, mutates=[0])
    assert names(data_parallel(g.graph(), replicas(4), MIB)) == ["mm", "allreduce_", "linalg_vector_norm", "add_"]


def test_without_an_optimizer_in_the_step_all_gradients_are_sent():
    g = toys.GraphBuilder()
    x, grad = g.tensor(512, 512, role=Role.INPUTS), g.tensor(512, 512, role=Role.GRADIENTS)
    g.op("aten.mm.default", [x, x], [grad], phase=Phase.BACKWARD)
    assert names(data_parallel(g.graph(), replicas(4), MIB)) == ["mm", "allreduce_"]


def test_the_other_columns_keep_their_operators():
    graph, grads = backward()
    out = data_parallel(graph, replicas(8), 2 * MIB)
    assert [out.inputs(op)[-1] for op in (5, 6, 7)] == grads  # the optimizer's gradients
    assert (out.operand_ptr[-1], len(out.phase)) == (len(out.operands), 8)


def test_the_optimizer_waits_for_its_all_reduce_and_backward_does_not():
    graph, _ = backward()
    job = Job(toys.chip(), 1, 8)
    program = compile_graph(data_parallel(graph, replicas(8), 2 * MIB), job.chip, 1)
    run = Cluster(job).run([program])
    timing = run.timing(0)
    reduce_end = timing.end[program.opcode == Opcode.COLLECTIVE]
    backward_end = timing.end[program.queue == Queue.TENSOR].max()
    optimizer_start = timing.start[(program.op >= 5) & (program.queue == Queue.VECTOR)]
    first_start = timing.start[program.opcode == Opcode.COLLECTIVE].min()
    assert first_start < backward_end  # overlapped
    assert optimizer_start.min() >= reduce_end.min()
    # All-reduce of 1 MiB over 8 ranks: 2 x 7/8 MiB each on the link.
    assert run.transfers(0)[int((program.opcode == Opcode.COLLECTIVE).argmax())].neuronlink == 2 * MIB * 7 // 8


def test_nonsense_is_one_sentence():
    graph, _ = backward()
    with pytest.raises(NeuronprofError, match="at least 1 byte"):
        data_parallel(graph, replicas(2), 0)
