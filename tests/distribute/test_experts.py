"""Experts of a mixture written for one device, shared out among ranks: three ways to write them, one traffic."""

from collections import Counter
from functools import cache

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import recorded
import torch
from recorded import BATCH, SEQUENCE, WIDTH
from torch import nn
from torch.nn import functional as F

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.plan import plan
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Collective, Role

EXPERTS, CHOSEN, INNER, LAYERS = 8, 2, 256, 2
TOKENS = BATCH * SEQUENCE


class Mixture(nn.Module):
    """A router and experts, added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)

    def forward(self, x):
        rows = x.reshape(-1, WIDTH)
        weight, chosen = torch.topk(F.softmax(self.router(rows), -1), CHOSEN, -1)
        return x + self.experts_on(rows, weight, chosen).view(x.shape)


class Apart(Mixture):
    """Experts as modules, each on the rows that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, INNER, bias=False), nn.GELU(), nn.Linear(INNER, WIDTH, bias=False))
            for _ in range(EXPERTS)
        )

    def experts_on(self, rows, weight, chosen):
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            out.index_add_(0, row, expert(rows[row]) * weight[row, place, None])
        return out


class Stacked(Mixture):
    """All experts' weights in one, on rows sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER, dtype=torch.bfloat16) * 0.02)
        self.second = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH, dtype=torch.bfloat16) * 0.02)

    def experts_on(self, rows, weight, chosen):
        order = chosen.flatten().argsort()
        ends = torch.bincount(chosen.flatten(), minlength=EXPERTS).cumsum(0).to(torch.int32)
        picked = rows[order // CHOSEN].bfloat16()
        inner = F.gelu(torch._grouped_mm(picked, self.first, offs=ends))
        out = torch._grouped_mm(inner, self.second, offs=ends) * weight.flatten()[order, None].bfloat16()
        return torch.zeros_like(rows).index_add(0, order // CHOSEN, out.to(rows.dtype))


class Batched(Mixture):
    """All experts' weights in one, on batches of as many rows for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * 0.02)
        self.second = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) * 0.02)

    def experts_on(self, rows, weight, chosen):
        order = chosen.flatten().argsort()
        picked = rows[order // CHOSEN].view(EXPERTS, -1, WIDTH)
        out = torch.bmm(F.gelu(torch.bmm(picked, self.first)), self.second).view(-1, WIDTH)
        return torch.zeros_like(rows).index_add(0, order // CHOSEN, out * weight.flatten()[order, None])


@cache
def step(kind):
    torch.manual_seed(0)
    return recorded.record(recorded.training(recorded.GPT(LAYERS, block=kind)))


def calls(found):
    (chunk,) = found.stages[0].chunks
    return Counter(
        (str(c.kind), c.nbytes, tuple(c.group.members(0).tolist())) for c in chunk.collectives.values()
    ), chunk


@pytest.mark.parametrize(("kind", "size"), [(Apart, 4), (Stacked, 2), (Batched, 4)])
def test_rows_are_dispatched_and_combined_in_forward_and_in_backward(kind, size):
    # Each token's row of 128 goes to its two experts and comes back: four times a layer. No two of the four ranks have the same experts, so
    # that the gradients that are reduced are those of the routers, the embedding, the output layer and the norm.
    found, _ = calls(plan(step(kind), Layout(dp=4, ep=4, bucket_bytes=1 << 30)))
    ranks = (0, 1, 2, 3)
    exchange = found.pop((Collective.ALL_TO_ALL, TOKENS * CHOSEN * WIDTH * size, ranks))
    dense = 4 * (2 * recorded.VOCABULARY * WIDTH + 2 * WIDTH + LAYERS * WIDTH * EXPERTS)
    assert exchange == 4 * LAYERS
    assert {kind for kind, _, _ in found} == {Collective.ALL_REDUCE}
    assert sum(nbytes * count for (_, nbytes, _), count in found.items()) == dense


@pytest.mark.parametrize("kind", [Apart, Stacked, Batched])
@pytest.mark.parametrize(
    "layout", [Layout(dp=4, ep=2), Layout(dp=4, ep=4, zero=3), Layout(dp=4, ep=2, pp=2, microbatches=2)]
)
def test_nothing_is_computed_twice(kind, layout):
    # Rows of an expert are whole numbers: a part of them is rounded.
    graph = step(kind)
    assert recorded.planned_flops(plan(graph, layout)) == pytest.approx(4 * recorded.flops(graph), rel=2e-3)


@pytest.mark.parametrize("kind", [Apart, Stacked, Batched])
def test_a_rank_keeps_its_experts_and_shares_them_with_those_that_have_the_same(kind):
    # Four ranks, experts on two: ranks 0 and 2 have the same ones, half of all.
    size = 2 if kind is Stacked else 4
    experts = size * LAYERS * EXPERTS * 2 * WIDTH * INNER
    found, chunk = calls(plan(step(kind), Layout(dp=4, ep=2, bucket_bytes=1 << 30)))
    _, whole = calls(plan(step(kind), Layout(dp=4)))
    for role in (Role.WEIGHTS, Role.GRADIENTS):
        assert held(whole, role) - held(chunk, role) == experts // 2
    assert sum(n * c for (k, n, ranks), c in found.items() if ranks == (0, 2)) == experts // 2


def held(graph, role):
    return sum(b.nbytes for b in graph.buffers if b.role is role)


def test_without_experts_or_with_too_few_it_is_refused():
    with pytest.raises(NeuronprofError, match="--ep 2 finds no experts"):
        plan(recorded.gpt(), Layout(dp=2, ep=2))
    with pytest.raises(NeuronprofError, match="--ep 16 cannot divide the 8 experts; choose a divisor of 8"):
        plan(step(Batched), Layout(dp=16, ep=16))
    with pytest.raises(
        NeuronprofError,
        match="--ep 2 shares experts out among the ranks of --dp and --cp, of which 3 x 1 is no multiple",
    ):
        plan(step(Batched), Layout(dp=3, ep=2))


def test_experts_are_shared_out_over_parts_of_the_sequence_and_replicas():
    # 16 ranks: two tensor-parallel, then four parts of the sequence, then two replicas; eight parts of the experts are all of the latter
    # two, four parts one replica's sequence, whose experts the other replica has again.
    wide, narrow = Layout(tp=2, cp=4, dp=2, ep=8), Layout(tp=2, cp=4, dp=2, ep=4)
    assert wide.mesh().group("ep").members(1).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert wide.expert_replicas().size == 1
    assert narrow.mesh().group("ep").members(1).tolist() == [1, 3, 5, 7]
    assert narrow.expert_replicas().members(1).tolist() == [1, 9]
    found, _ = calls(plan(step(Stacked), Layout(cp=2, dp=2, ep=4, bucket_bytes=1 << 30)))
    assert {ranks for kind, _, ranks in found if kind == Collective.ALL_TO_ALL} == {(0, 1, 2, 3)}
