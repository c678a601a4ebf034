"""The collectives of a layout from flags beside those of the same model written with PyTorch's own parallelism."""

from collections import Counter

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import recorded
import scripts

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.plan import plan
from neuronprof.terms import Collective

# Rows and bytes of the model: 8 x 32 tokens of 128 floats; a norm's weight or bias is 128 floats.
ACTIVATIONS, ROWS, NORM = 8 * 32 * 128 * 4, 8 * 32 * 4, 128 * 4
LAYERS = recorded.LAYERS


def calls(graph):
    """(kind, bytes, ranks) of each collective, with their number."""
    return Counter((str(c.kind), c.nbytes, tuple(c.group.members(0).tolist())) for c in graph.collectives.values())


def planned(layout):
    (stage,) = plan(recorded.gpt(), layout).stages
    (chunk,) = stage.chunks
    return calls(chunk)


def test_tensor_parallel_like_parallelize_module(tmp_path):
    # Two all-reduces a layer in forward and two in backward, one of the embedding and one of the output layer's input; three numbers a
    # row for the loss over a divided vocabulary: the maximum, the sum, the target's.
    ranks = tuple(range(scripts.RANKS))
    theirs = calls(scripts.capture(tmp_path, scripts.TENSOR_PARALLEL, sequence=False))
    assert theirs == planned(Layout(tp=scripts.RANKS))
    assert theirs == {
        (Collective.ALL_REDUCE, ACTIVATIONS, ranks): 4 * LAYERS + 2,
        (Collective.ALL_REDUCE, ROWS, ranks): 3,
    }


def test_sequence_parallel_like_parallelize_module(tmp_path):
    # The same volume as all-gathers and reduce-scatters, and the gradients of norms, to which each rank's part of the sequence adds.
    ranks = tuple(range(scripts.RANKS))
    theirs = calls(scripts.capture(tmp_path, scripts.TENSOR_PARALLEL, sequence=True))
    assert theirs == planned(Layout(tp=scripts.RANKS, sequence_parallel=True))
    assert theirs == {
        (Collective.REDUCE_SCATTER, ACTIVATIONS, ranks): 4 * LAYERS + 2,
        (Collective.ALL_GATHER, ACTIVATIONS, ranks): 4 * LAYERS + 2,
        (Collective.ALL_REDUCE, NORM, ranks): 2 * (2 * LAYERS + 1),
        (Collective.ALL_REDUCE, ROWS, ranks): 3,
    }


def test_zero_3_like_fully_shard(tmp_path):
    # A block has 12 x 128 x 128 weights and two norms of 2 x 128; outside are embedding, output layer and a norm. Blocks are gathered in
    # forward and in backward, what is outside once.
    ranks = tuple(range(scripts.RANKS))
    block, outside = 4 * (12 * 128 * 128 + 4 * 128), 4 * (2 * 512 * 128 + 2 * 128)
    theirs = calls(scripts.capture(tmp_path, scripts.FULLY_SHARD))
    assert theirs == planned(Layout(dp=scripts.RANKS, zero=3))
    assert theirs == {
        (Collective.ALL_GATHER, block, ranks): 2 * LAYERS,
        (Collective.REDUCE_SCATTER, block, ranks): LAYERS,
        (Collective.ALL_GATHER, outside, ranks): 1,
        (Collective.REDUCE_SCATTER, outside, ranks): 1,
    }
