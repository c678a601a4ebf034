"""Small models of many kinds, each a function that builds one and returns it with its training loss."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Model = tuple[nn.Module, Callable[[], torch.Tensor]]


def mlp() -> Model:
    model = nn.Sequential(nn.Linear(100, 200), nn.GELU(), nn.Dropout(0.1), nn.Linear(200, 10))
    return model, lambda: F.cross_entropy(model(torch.randn(64, 100)), torch.randint(0, 10, (64,)))


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm(self.first(x)), inplace=True)
        return F.relu(self.second(inner) + self.short(x))


def resnet() -> Model:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3), nn.MaxPool2d(3, 2, 1), Residual(16, 32, 2), Residual(32, 32, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return model, lambda: F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.randint(0, 10, (4,)))


def encoder() -> Model:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return model, lambda: model(torch.randn(2, 32, 64)).pow(2).mean()


def diffusion() -> Model:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(32, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
    )  # fmt: skip
    return model, lambda: model(torch.randn(4, 3, 24, 24)).pow(2).mean()


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, w = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(w, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, w))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int = 300, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def gpt() -> Model:
    model = GPT()

    def loss() -> torch.Tensor:
        ids = torch.randint(0, 300, (2, 33))
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].reshape(-1))

    return model, loss


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(48, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def lstm() -> Model:
    model = Tagger(nn.LSTM)
    return model, lambda: F.cross_entropy(model(torch.randn(8, 12, 48)), torch.randint(0, 10, (8,)))


def gru() -> Model:
    model = Tagger(nn.GRU)
    return model, lambda: F.cross_entropy(model(torch.randn(8, 12, 48)), torch.randint(0, 10, (8,)))


def autoencoder() -> Model:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip

    def loss() -> torch.Tensor:
        images = torch.rand(4, 3, 32, 32)
        return F.mse_loss(model(images), images)

    return model, loss


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, dropout=0.1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, weights = self.attention(x, x, x, need_weights=True)
        return out.mean() + weights.var()


def multihead() -> Model:
    model = Attended()
    return model, lambda: model(torch.randn(4, 20, 64))


class DLRM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(500, 16, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16))
        self.top = nn.Sequential(nn.Linear(22, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([self.bottom(dense), *(bag(ids[i]) for i, bag in enumerate(self.bags))], 1)
        pairs = torch.bmm(rows, rows.transpose(1, 2))
        i, j = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([rows[:, 0], pairs[:, i, j]], 1))


def dlrm() -> Model:
    model = DLRM()
    return model, lambda: F.binary_cross_entropy_with_logits(
        model(torch.randn(32, 13), torch.randint(0, 500, (3, 32, 5))), torch.randint(0, 2, (32, 1)).float()
    )


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaLayer(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 128, bias=False) for _ in range(2))
        self.down = nn.Linear(128, width, bias=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = self.size // 2
        angle = torch.arange(x.shape[2])[:, None] * 10000 ** (-torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, w = x.shape
        y = self.norm1(x)
        q = self.rotate(self.q(y).view(b, s, self.heads, self.size).transpose(1, 2))
        k = self.rotate(self.k(y).view(b, s, self.shared, self.size).transpose(1, 2)).repeat_interleave(2, 1)
        v = self.v(y).view(b, s, self.shared, self.size).transpose(1, 2).repeat_interleave(2, 1)
        scores = (q @ k.transpose(2, 3)) / math.sqrt(self.size)
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), -1e9)
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, w))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def llama() -> Model:
    model = nn.Sequential(
        nn.Embedding(200, 64), LlamaLayer(), LlamaLayer(), RMSNorm(64), nn.Linear(64, 200, bias=False)
    )
    return model, lambda: F.cross_entropy(
        model(torch.randint(0, 200, (2, 24))).flatten(0, 1), torch.randint(0, 200, (48,))
    )


def gan() -> Model:
    generator = nn.Sequential(nn.Linear(16, 64), nn.LeakyReLU(0.2), nn.Linear(64, 100), nn.Tanh())
    critic = nn.Sequential(nn.Linear(100, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def loss() -> torch.Tensor:
        fake = generator(torch.randn(32, 16))
        return F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(fake)).mean()

    return nn.ModuleList([generator, critic]), loss


def bidirectional() -> Model:
    model = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(12)
    return model, lambda: model(torch.randn(2, 16, 64), torch.randn(2, 12, 64), tgt_mask=mask).pow(2).mean()


MODELS = (mlp, resnet, diffusion, encoder, gpt, lstm, gru, autoencoder, multihead, dlrm, llama, gan, bidirectional)
