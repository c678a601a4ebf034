"""Tensor parallelism on models as people write them: what is divided is found from the graph, whatever its modules are called."""

import math

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import recorded
import torch
from recorded import BATCH, HEADS, SEQUENCE, VOCABULARY, WIDTH
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.plan import plan
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Role

SIZE = WIDTH // HEADS


class Fused(nn.Module):
    """GPT-2's layer: one product for queries, keys and values, attention written out, dropout, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x):
        b, s, w = x.shape
        q, k, v = (t.view(b, s, HEADS, SIZE).transpose(1, 2) for t in self.qkv(self.before(x)).split(w, 2))
        scores = (q @ k.transpose(2, 3) / math.sqrt(SIZE)).masked_fill(torch.ones(s, s).triu(1).bool(), -math.inf)
        y = F.dropout(scores.softmax(-1), 0.1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, s, w))
        return x + self.mlp(self.between(x))


class Rotary(nn.Module):
    """Llama's layer: norms of heads, rotary positions, half as many heads of keys and values, a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.of_heads = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH), nn.RMSNorm(SIZE)
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def rotate(self, x):
        angle = torch.arange(x.shape[2])[:, None] * 10000 ** (-torch.arange(SIZE // 2) / (SIZE // 2))
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (-1, SIZE)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = self.rotate(self.of_heads(q)), self.rotate(self.of_heads(k))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Packaged(nn.TransformerEncoderLayer):
    """PyTorch's own layer."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, 4 * WIDTH, batch_first=True, norm_first=True)


class Recomputed(recorded.Block):
    """A layer whose activations are computed again in backward."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def step(block):
    torch.manual_seed(0)
    return recorded.record(recorded.training(recorded.GPT(2, block=block), clip=True))


@pytest.mark.parametrize("block", [Fused, Rotary, Packaged, Recomputed])
def test_layers_are_divided_by_columns_and_rows(block):
    # Each rank computes a quarter, and each layer has two all-reduces of activations in forward and as many in backward; what is computed
    # again has its own two, of which the last is not needed.
    graph = step(block)
    found = plan(graph, Layout(tp=4))
    assert recorded.planned_flops(found) == recorded.flops(graph)
    activations = BATCH * SEQUENCE * WIDTH * 4
    again = 1 if block is Recomputed else 0
    assert recorded.collectives(found)["tp", "AllReduce", activations] == 2 * (4 + again) + 2


@pytest.mark.parametrize("block", [Fused, Rotary, Packaged, Recomputed])
@pytest.mark.parametrize(
    "layout",
    [Layout(tp=4, sequence_parallel=True), Layout(dp=2, tp=2, pp=2, microbatches=4, zero=1)],
    ids=Layout.text,
)
def test_layers_in_other_layouts(block, layout):
    graph = step(block)
    assert recorded.planned_flops(plan(graph, layout)) == layout.dp * recorded.flops(graph)


def test_weights_gradients_and_states_are_a_quarter_but_for_norms_and_the_biases_behind_rows():
    # GPT-2's layer has weights of 12 x 128 x 128 and 7 x 128 of biases before the rows, 2 x 128 behind them, 4 x 128 in norms.
    graph = step(Fused)
    (stage,) = plan(graph, Layout(tp=4)).stages
    whole = 2 * (2 + 4) * WIDTH + 2 * WIDTH
    parts = 2 * (12 * WIDTH * WIDTH + 7 * WIDTH) + 2 * VOCABULARY * WIDTH
    for role, copies in ((Role.WEIGHTS, 1), (Role.GRADIENTS, 1), (Role.OPTIMIZER_STATE, 2)):
        held = sum(b.nbytes for b in stage.chunks[0].buffers if b.role is role and b.nbytes > 4)
        assert held == copies * 4 * (whole + parts // 4)


def classifier():
    model = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        F.cross_entropy(model(torch.randn(64, WIDTH)), torch.randint(10, (64,))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return recorded.record(step)


def test_ten_classes_stay_whole_and_an_input_without_positions_has_no_context_to_divide():
    graph = classifier()
    found = plan(graph, Layout(tp=4))
    assert found.notes == {"vocabulary or classes that --tp does not divide, kept whole": 1}
    assert [c.nbytes for c in found.stages[0].chunks[0].collectives.values()] == [64 * WIDTH * 4]
    for layout in (Layout(cp=2), Layout(tp=2, sequence_parallel=True)):
        with pytest.raises(NeuronprofError, match="finds no sequence of positions in the model's input"):
            plan(graph, layout)
