"""What the stages of a pipeline keep and say to each other, of a GPT with four blocks of 12 x 128 x 128 weights."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import recorded
from recorded import BATCH, SEQUENCE, VOCABULARY, WIDTH

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.plan import plan
from neuronprof.terms import Role

TABLE = VOCABULARY * WIDTH
BLOCK = 12 * WIDTH * WIDTH + 4 * WIDTH
ROLES = ((Role.WEIGHTS, 1), (Role.GRADIENTS, 1), (Role.OPTIMIZER_STATE, 2))


def messages(stage):
    """(kind, bytes, peer) of what a stage sends and receives, as (number of micro-batch, -1 for once a step)."""
    found = {}
    for chunk, microbatch in stage.order:
        for call in stage.chunks[chunk].collectives.values():
            if call.axis == "pp" and call.kind in ("Send", "Recv"):
                found.setdefault((str(call.kind), call.nbytes, call.peer), []).append(microbatch)
    return {key: sorted(value) for key, value in found.items()}


def held(graph, role):
    """Bytes of a role, without the optimizer's counters of four bytes."""
    return sum(b.nbytes for b in graph.buffers if b.role is role and b.nbytes > 4)


def test_stages_send_activations_forward_and_their_gradients_back():
    # A micro-batch is two sequences of 32 positions.
    size = BATCH // 4 * SEQUENCE * WIDTH * 4
    first, middle = plan(recorded.gpt(), Layout(pp=4, microbatches=4)).stages[:2]
    every = [0, 1, 2, 3]
    assert messages(first) == {("Send", size, 1): every, ("Recv", size, 1): every}
    assert messages(middle) == {(kind, size, peer): every for kind in ("Send", "Recv") for peer in (0, 2)}


def test_a_tied_embedding_is_exchanged_once_a_step():
    # The last stage sends its gradient to the first and gets the new weight; in between each sums its own over the micro-batches.
    size = BATCH // 4 * SEQUENCE * WIDTH * 4
    *_, last = plan(recorded.gpt(tied=True), Layout(pp=4, microbatches=4)).stages
    every = [0, 1, 2, 3]
    assert messages(last) == {
        ("Send", size, 2): every,
        ("Recv", size, 2): every,
        ("Send", TABLE * 4, 0): [-1],
        ("Recv", TABLE * 4, 0): [-1],
    }
    assert held(last.chunks[0], Role.GRADIENTS) == 4 * (BLOCK + 2 * WIDTH + TABLE)
    assert held(last.chunks[0], Role.OPTIMIZER_STATE) == 2 * 4 * (BLOCK + 2 * WIDTH)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_each_stage_keeps_its_blocks_and_a_rank_of_four_its_quarter(zero):
    # Stage 0: embedding and a block; stages 1 and 2: a block; stage 3: a block, a norm and the output layer. ZeRO 1 shares out the
    # optimizer state, 2 the gradients too, 3 the weights too.
    stages = plan(recorded.gpt(), Layout(dp=4, pp=4, microbatches=4, zero=zero)).stages
    elements = [BLOCK + TABLE, BLOCK, BLOCK, BLOCK + TABLE + 2 * WIDTH]
    shared = {0: (), 1: ROLES[2:], 2: ROLES[1:], 3: ROLES}[zero]
    for stage, count in zip(stages, elements, strict=True):
        for role, copies in ROLES:
            ranks = 4 if (role, copies) in shared else 1
            assert held(stage.chunks[0], role) == copies * 4 * count // ranks


def test_what_forward_leaves_for_backward_is_what_a_block_saves():
    # By hand, in floats a token of a block: its input 1, norms 2 x (1 + mean and deviation 2/128), queries, keys and values 3, attention's
    # result 1 with its logarithms of sums 8/128, the sum after attention 1, up and gelu 2 x 4. The block's output goes to the next stage.
    middle = plan(recorded.gpt(), Layout(pp=4, microbatches=4)).stages[1]
    forward = middle.chunks[0]
    tokens = BATCH // 4 * SEQUENCE
    kept = sum(b.nbytes for b in forward.buffers if b.role is Role.ACTIVATIONS and b.death < 0)
    assert kept == 4 * tokens * (WIDTH * (1 + 2 + 3 + 1 + 1 + 8) + 2 * 2 + recorded.HEADS)


def test_the_norm_of_all_gradients_takes_a_number_of_each_part():
    graph = recorded.gpt(clip=True)
    for layout, axes in ((Layout(pp=2, microbatches=2), "pp"), (Layout(dp=4, zero=1), "dp"), (Layout(tp=2), "tp")):
        numbers = [key for key in recorded.collectives(plan(graph, layout)) if key[2] < 4 * SEQUENCE * BATCH]
        assert {key[:2] for key in numbers} == {(axes, "AllReduce")}
