"""Steps of small models, recorded once for all tests of this folder, and sums over what a plan runs."""

from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from neuronprof.capture.engine import Engine
from neuronprof.distribute.plan import Plan
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import work

VOCABULARY, WIDTH, HEADS, SEQUENCE, BATCH, LAYERS = 512, 128, 8, 32, 8, 4


def record(step: Callable[[], None]) -> Graph:
    """The graph of the second step: in the first one gradients and optimizer state do not exist yet."""
    engine = Engine("real", notice=lambda text: None)
    with engine:
        step()
        step()
    recording = engine.finish(steps=1, warmup=1)
    segment = recording.segments[-1]
    return recording.graph.slice(segment.start, segment.stop)


def training(model: nn.Module, batch: int = BATCH, accumulate: int = 1, clip: bool = False) -> Callable[[], None]:
    """A step of a language model with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        for _ in range(accumulate):
            tokens = torch.randint(VOCABULARY, (batch // accumulate, SEQUENCE + 1))
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()) / accumulate
            loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Attention(nn.Module):
    """Self-attention with separate projections, as many key and value heads as asked."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * self.size, bias=False) for n in (HEADS, kv_heads, kv_heads))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A layer of a GPT: four products of width 128, feed-forward part four times as wide."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(kv_heads)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Embedding, layers, norm and output layer; tied: the output layer's weight is the embedding's."""

    def __init__(self, layers: int = LAYERS, tied: bool = False, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@cache
def gpt(layers: int = LAYERS, tied: bool = False, accumulate: int = 1, clip: bool = False) -> Graph:
    """A step of the GPT."""
    torch.manual_seed(0)
    return record(training(GPT(layers, tied), accumulate=accumulate, clip=clip))


def flops(graph: Graph) -> int:
    """Of all products."""
    each = [work(s).flops for s in graph.signatures]
    return sum(each[s] for s in graph.signature.tolist())


def planned_flops(plan: Plan) -> int:
    """Of all products of all ranks."""
    a_rank = plan.mesh.world // len(plan.stages)
    return sum(a_rank * flops(stage.chunks[chunk]) for stage in plan.stages for chunk, _ in stage.order)


def collectives(plan: Plan) -> Counter[tuple[str, str, int]]:
    """(mesh axis, kind, bytes) of all collectives of one rank of each stage, with their number."""
    return Counter(
        (call.axis, str(call.kind), call.nbytes)
        for stage in plan.stages
        for chunk, _ in stage.order
        for call in stage.chunks[chunk].collectives.values()
    )
