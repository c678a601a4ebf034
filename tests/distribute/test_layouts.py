"""Layouts of a small GPT: what is conserved, and what is refused."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.pieces import STEP, layers, regions
from neuronprof.distribute.plan import plan
from neuronprof.errors import NeuronprofError

pytest.importorskip("torch", reason="needs the extra 'torch'")
recorded = pytest.importorskip("recorded")

LAYOUTS = [
    Layout(tp=2),
    Layout(tp=4, sequence_parallel=True),
    Layout(cp=2),
    Layout(microbatches=4),
    Layout(pp=2, microbatches=4),
    Layout(pp=4, microbatches=8, schedule="gpipe"),
    Layout(pp=2, vp=2, microbatches=4, schedule="interleaved"),
    Layout(pp=4, microbatches=8, schedule="zero-bubble"),
    Layout(dp=4, zero=1),
    Layout(dp=4, zero=3, microbatches=2),
    Layout(dp=2, tp=2, pp=2, microbatches=4, sequence_parallel=True, zero=1),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.text() if isinstance(case, Layout) else "")
def test_the_products_of_all_ranks_are_those_of_one_device(layout):
    # Nothing is computed twice: a GPT has no product that any of these axes replicates.
    graph = recorded.gpt()
    assert recorded.planned_flops(plan(graph, layout)) == layout.dp * recorded.flops(graph)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=4),
        Layout(dp=4, zero=1),
        Layout(dp=4, accumulate=2),
        Layout(dp=2, pp=2, vp=2, microbatches=4, schedule="interleaved", zero=1),
        Layout(dp=2, pp=4, microbatches=4, schedule="zero-bubble"),
    ],
    ids=Layout.text,
)
def test_gradients_that_are_reduced_after_backward_are_as_many_bytes_in_one_piece(layout):
    def reductions(found):
        kinds = ("AllReduce", "ReduceScatter")
        return [
            (chunk, call.nbytes)
            for stage in found.stages
            for chunk in (stage.chunks[i] for i, _ in stage.order)
            for call in chunk.collectives.values()
            if call.kind in kinds and "dp" in call.axis
        ]

    beside = reductions(plan(recorded.gpt(), layout))
    after = reductions(plan(recorded.gpt(), replace(layout, grad_sync="after")))
    assert sum(n for _, n in after) == sum(n for _, n in beside)
    assert len(after) == layout.pp * layout.vp <= len(beside)
    if layout.passes > 1:  # chunks of their own, without a product of backward
        assert not any(products(chunk) for chunk, _ in after)


@pytest.mark.parametrize(
    ("prefetch", "order"),
    [
        (0, "G G f0 G f1 G f2 G f3 b3 G b2 G b1 G b0 G"),
        (1, "G G G f0 G f1 G f2 G f3 b3 G b2 G b1 G b0"),
        (3, "G G G G G f0 f1 f2 G G G f3 b3 G b2 b1 b0"),
    ],
)
def test_weights_are_gathered_so_many_blocks_ahead(prefetch, order):
    # Weights in the order of their use: the root's (ends), those of blocks 0 to 3 in forward, of 3 to 0 in backward: nine gathers (G).
    # Block 3's for backward do not come before its forward has begun, however many are gathered ahead.
    (stage,) = plan(recorded.gpt(), Layout(dp=4, zero=3, prefetch=prefetch)).stages
    graph, found = stage.chunks[0], []
    for op, (layer, region) in enumerate(zip(layers(graph).tolist(), regions(graph).tolist(), strict=True)):
        if op in graph.collectives:
            found += ["G"] if graph.collectives[op].kind == "AllGather" else []
        elif layer >= 0 and region != STEP and f"{'fb'[region]}{layer}" not in found:
            found.append(f"{'fb'[region]}{layer}")
    assert " ".join(found) == order


def test_a_gather_waits_for_an_activation_also_where_a_block_begins_with_a_view_of_its_weight():
    # nn.Linear first transposes its weight, which reads nothing of the block before.
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 64)) for _ in range(4)))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(8, 64)

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (stage,) = plan(recorded.record(step), Layout(dp=4, zero=3, prefetch=0)).stages
    graph = stage.chunks[0]
    gathers = [op for op, call in graph.collectives.items() if call.kind == "AllGather"]
    waiting = [any(b >= 0 and graph.buffers[b].birth >= 0 for b in graph.inputs(op)) for op in gathers]
    # The first block's input is the batch, which is there before the step.
    assert waiting == [False] + [True] * (len(gathers) - 1)
    assert len(gathers) == 7


def products(graph):
    """(module, phase) of each product, with their number."""
    each = [recorded.work(s).flops > 0 for s in graph.signatures]
    columns = zip(graph.signature.tolist(), graph.module.tolist(), graph.phase.tolist(), strict=True)
    return Counter((graph.modules[module], phase) for signature, module, phase in columns if each[signature])


def test_stages_partition_the_operators():
    graph = recorded.gpt()
    found = plan(graph, Layout(pp=4, microbatches=1))
    together = Counter()
    for stage in found.stages:
        for chunk, _ in stage.order:
            together += products(stage.chunks[chunk])
    assert together == products(graph)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (Layout(tp=16), "--tp 16 cannot divide the 8 heads"),
        (Layout(pp=8), "8 stages needs as many repeated blocks, and the model has 4"),
        (Layout(microbatches=16), "16 micro-batches cannot be cut from the script's batch of 8"),
        (Layout(cp=64), "--cp 64 cannot divide the sequence of 32 positions"),
        (Layout(pp=2, vp=2, microbatches=3, schedule="interleaved"), "a multiple of --pp 2"),
        (Layout(dp=2, grad_sync="never"), "--grad-sync never does not exist; choose of overlapped, after"),
        (Layout(dp=2, zero=3, prefetch=-1), "--prefetch -1 is not a number of blocks; give 0 or more"),
        (Layout(dp=2, zero=1, prefetch=2), "--prefetch 2 is of weights that ranks share out; give --zero 3"),
        (Layout(dp=2, zero=2, grad_sync="after"), "which --zero 2 is there to avoid; give --zero 0 or 1"),
    ],
    ids=lambda case: case.text() if isinstance(case, Layout) else "",
)
def test_what_cannot_be_laid_out_is_one_sentence(layout, sentence):
    with pytest.raises(NeuronprofError, match=sentence):
        plan(recorded.gpt(), layout)


def test_the_micro_batches_of_a_script_that_accumulates_are_those_of_the_pipeline():
    # Four times two sequences in the script are the same as eight sequences cut into four.
    accumulated, whole = recorded.gpt(accumulate=4), recorded.gpt()
    for options in (Layout(pp=2), Layout(pp=2, microbatches=4), Layout(pp=2, microbatches=8)):
        found = plan(accumulated, options)
        same = plan(whole, Layout(pp=2, microbatches=max(4, options.microbatches)))
        assert [s.order for s in found.stages] == [s.order for s in same.stages]
        assert recorded.planned_flops(found) == recorded.planned_flops(same) == recorded.flops(whole)
        assert recorded.collectives(found) == recorded.collectives(same)


def test_micro_batches_that_are_no_parts_of_the_scripts_are_refused():
    with pytest.raises(NeuronprofError, match="gradients of 4 micro-batches, of which --microbatches 6 is no multiple"):
        plan(recorded.gpt(accumulate=4), Layout(microbatches=6))


def test_zero_bubble_makes_the_gradients_of_weights_in_a_pass_of_their_own():
    # A middle stage of one block. Forward: products with 12 x 128 x 128 weights and attention; the backward of the weights: the same
    # products once, no attention, and nothing to send.
    stage = plan(recorded.gpt(), Layout(pp=4, microbatches=4, schedule="zero-bubble")).stages[1]
    forward, inputs, weights = (stage.chunks[i] for i in range(3))
    assert recorded.flops(weights) == 2 * (2 * 32) * 12 * 128 * 128
    assert recorded.flops(inputs) + recorded.flops(weights) == 2 * recorded.flops(forward) + attention_again(forward)
    assert not weights.collectives
    assert [c.kind for c in inputs.collectives.values()] == ["Recv", "Send"]


def attention_again(forward):
    """FLOPs by which attention's backward exceeds twice its forward: flash attention makes the scores a second time."""
    return next(recorded.work(s).flops for s in forward.signatures if "attention" in s.name) // 2


def test_in_python_it_is_one_function():
    from neuronprof import distribute

    found = distribute.plan(recorded.gpt(), distribute.Layout(tp=2))
    assert (found.mesh.world, len(found.stages)) == (2, 1)
