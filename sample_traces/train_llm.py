"""Trains a large language model of a known size, as for one device; the layout over many chips comes from neuronprof's flags."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# layers, width, heads, key-value heads, width of the feed-forward part, vocabulary
MODELS = {
    "tiny": (4, 256, 8, 4, 768, 1024),
    "8b": (32, 4096, 32, 8, 14336, 128256),
    "70b": (80, 8192, 64, 8, 28672, 128256),
    "405b": (126, 16384, 128, 8, 53248, 128256),
    "1t": (128, 25600, 160, 160, 102400, 51200),
}


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.size = width // heads
        self.q, self.k, self.v = (nn.Linear(width, n * self.size, bias=False) for n in (heads, kv_heads, kv_heads))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, inner, gated):
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False) if gated else None
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gate else F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads, inner):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, kv_heads)
        self.mlp = FeedForward(width, inner, gated=inner != 4 * width)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    def __init__(self, model, checkpointing):
        super().__init__()
        layers, width, heads, kv_heads, inner, vocabulary = MODELS[model]
        self.checkpointing = checkpointing
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return self.head(self.norm(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="8b")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step on each data-parallel rank")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in backward")
    args = parser.parse_args()

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("neuron"):
        model = LanguageModel(args.model, args.checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    vocabulary = MODELS[args.model][-1]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.1f} billion parameters")

    for step in range(args.steps):
        tokens = torch.randint(vocabulary, (args.batch, args.sequence + 1)).to("neuron")
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
