"""Layouts of a small GPT: what is conserved, and what is refused."""

from collections import Counter

import pytest

from neuronprof.distribute.layout import Layout
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
    ],
    ids=lambda case: case.text() if isinstance(case, Layout) else "",
)
def test_what_cannot_be_laid_out_is_one_sentence(layout, sentence):
    with pytest.raises(NeuronprofError, match=sentence):
        plan(recorded.gpt(), layout)
