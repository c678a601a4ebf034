"""What recording costs: the step time of a 10 M-parameter transformer with `--values real` against the script's own eager step time.

    python benchmarks/capture_overhead.py

Eager and recorded steps take turns in one process on one thread, so that both see the same machine; medians are compared. The cost
an operator is all-in without values (dispatch, planning, attribution, recording, and the script's own Python).
Exits with 1 when a limit is passed.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from neuronprof.capture.engine import Engine

MOST_RATIO = 3.0
MOST_MICROSECONDS = 60.0
ROUNDS = 9
WIDTH, LAYERS, VOCABULARY, BATCH, SEQUENCE = 320, 6, 8000, 4, 128


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, width) to the same."""
        b, s, w = x.shape
        q, k, v = (t.view(b, s, 5, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(w, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, w))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    """A small language model with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(SEQUENCE, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, sequence) token ids to logits."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.t()


def script() -> Callable[[], None]:
    """A training script: returns its step."""
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        ids = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE + 1))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """CPU time of one step in this thread."""
    start = time.thread_time()
    step()
    return time.thread_time() - start


def measure() -> tuple[float, float, int]:
    """(recorded / eager step time, microseconds an operator without values, operators a step), medians of interleaved rounds."""
    eager, real, free = script(), script(), script()
    ratios, costs, operators = [], [], 1
    real_engine, free_engine = Engine("real"), Engine("none")
    for number in range(ROUNDS + 2):  # the first two of each fill caches
        plain = seconds(eager)
        with real_engine:
            real_engine.mark_step()
            recorded = seconds(real)
        with free_engine:
            before = len(free_engine.tape.recorder)
            free_engine.mark_step()
            simulated = seconds(free)
            operators = len(free_engine.tape.recorder) - before
        if number >= 2:
            ratios.append(recorded / plain)
            costs.append(1e6 * simulated / operators)
    return statistics.median(ratios), statistics.median(costs), operators


def main() -> int:
    torch.set_num_threads(1)
    model = Language()
    parameters = sum(p.numel() for p in model.parameters())
    ratio, cost, operators = measure()
    print(
        f"transformer with {parameters / 1e6:.1f} M parameters, {operators} operators a step, one thread, medians of {ROUNDS} rounds"
    )
    print(f"recorded step / eager step (--values real): {ratio:.2f} (limit {MOST_RATIO})")
    print(f"CPU time an operator (--values none), all-in: {cost:.1f} us (limit {MOST_MICROSECONDS})")
    return int(ratio > MOST_RATIO or cost > MOST_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
