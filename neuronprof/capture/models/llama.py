"""Trains a Llama: RMSNorm, SwiGLU or a mixture of them (Mixtral), rotary positions, grouped queries, fused attention."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from neuronprof.capture.models.training import Shape, train


class _Normalized(torch.autograd.Function):
    """RMSNorm that keeps its input for backward and nothing of its size besides, as fused ones do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, scale = ctx.saved_tensors
        normal, wide = x.float() * scale, gradient.float()
        inner = wide * weight
        of_x = (inner - normal * (inner * normal).mean(-1, keepdim=True)) * scale
        return of_x.to(x.dtype), (wide * normal).flatten(0, -2).sum(0).to(weight.dtype)


class _Gated(torch.autograd.Function):
    """SwiGLU that keeps its two operands for backward, as fused ones do."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)


class RmsNorm(nn.Module):
    """RMSNorm as one operator with a backward of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        return _Normalized.apply(x, self.weight)


class Attention(nn.Module):
    """Fused attention with grouped keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.size, self.groups = shape.hidden // shape.heads, shape.kv_heads
        self.widths = (shape.heads // shape.kv_heads * self.size, self.size, self.size)
        self.qkv = nn.Linear(shape.hidden, self.groups * sum(self.widths), bias=False)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        parts = self.qkv(x).unflatten(-1, (self.groups, -1)).split(self.widths, -1)
        q, k, v = (part.unflatten(-1, (-1, self.size)).flatten(2, 3).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(
            turned(q, *turn), turned(k, *turn), v, is_causal=True, enable_gqa=True
        )
        return self.out(attended.transpose(1, 2).flatten(2))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(shape.hidden, shape.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        return self.down(_Gated.apply(self.gate(x), self.up(x)))


class Mixture(nn.Module):
    """SwiGLU of the experts that a router picks for each token, on rows sorted by expert."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.chosen, self.router = shape.chosen, nn.Linear(shape.hidden, shape.experts, bias=False)
        self.gate, self.up = (nn.Parameter(torch.empty(shape.experts, shape.hidden, shape.inner)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.inner, shape.hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        rows = x.flatten(0, -2)
        share, expert = self.router(rows).topk(self.chosen, -1)
        order, share = expert.flatten().argsort(), share.softmax(-1).flatten()
        ends = expert.flatten().bincount(minlength=len(self.gate)).cumsum(0).to(torch.int32)
        picked = rows[order // self.chosen]
        gate, up = (torch._grouped_mm(picked, weight, offs=ends) for weight in (self.gate, self.up))
        made = torch._grouped_mm(_Gated.apply(gate, up), self.down, offs=ends) * share[order, None]
        return torch.zeros_like(rows).index_add(0, order // self.chosen, made).view_as(x)


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RmsNorm(shape.hidden), RmsNorm(shape.hidden)
        self.attention = Attention(shape)
        self.mlp = Mixture(shape) if shape.experts else FeedForward(shape)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(batch, positions, width) to the same."""
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self.size = shape.hidden // shape.heads

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens to logits."""
        places = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        speeds = 5e5 ** (-torch.arange(0, self.size, device=tokens.device) % (self.size // 2) / (self.size // 2))
        angles = places[:, None] * speeds
        turn = angles.cos().to(self.head.weight.dtype), angles.sin().to(self.head.weight.dtype)
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, turn)
        return self.head(self.norm(x))


if __name__ == "__main__":
    train(Llama)
