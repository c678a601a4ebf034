"""Trains a GPT: LayerNorm, GELU, learned positions, attention step by step with dropout, or fused without."""

import torch
from torch import nn
from torch.nn import functional as F

from neuronprof.capture.models.training import Shape, train

DROPOUT = 0.1


class Attention(nn.Module):
    """Fused or eager attention with grouped keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.size, self.groups, self.fused = shape.hidden // shape.heads, shape.kv_heads, shape.attention == "fused"
        self.widths = (shape.heads // shape.kv_heads * self.size, self.size, self.size)
        self.qkv = nn.Linear(shape.hidden, self.groups * sum(self.widths))
        self.out = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        parts = self.qkv(x).unflatten(-1, (self.groups, -1)).split(self.widths, -1)
        q, k, v = (part.unflatten(-1, (-1, self.size)).flatten(2, 3).transpose(1, 2) for part in parts)
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            scores = (q @ k.transpose(-1, -2) * self.size**-0.5).masked_fill(hidden, -10000.0)
            attended = F.dropout(scores.softmax(-1), DROPOUT) @ v
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(shape.hidden), nn.LayerNorm(shape.hidden)
        self.attention = Attention(shape)
        self.dropout = nn.Identity() if shape.attention == "fused" else nn.Dropout(DROPOUT)
        self.up, self.down = nn.Linear(shape.hidden, shape.inner), nn.Linear(shape.inner, shape.hidden)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        x = x + self.dropout(self.attention(self.attention_norm(x), hidden))
        return x + self.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))))


class Gpt(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.sequence, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens to logits."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = places > places[:, None]
        x = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x, hidden)
        return self.head(self.norm(x))


if __name__ == "__main__":
    train(Gpt)
