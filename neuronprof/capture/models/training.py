"""What the training scripts share: sizes from the command line, AdamW with weights kept in FP32 beside those of 16 bits, one step."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of what it is trained on. inner: width of the feed-forward part; batch: sequences of a step.

    attention: fused, or eager, one operator after another (which takes as many heads of keys as of queries). experts: feed-forward parts
    of a Llama's layer, of which a router picks `chosen` for each token (0: there is one, for all).
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence: int
    batch: int
    dtype: str
    attention: str
    experts: int = 0
    chosen: int = 0

    def arguments(self) -> tuple[str, ...]:
        """The command line that gives these sizes."""
        return tuple(f"--{f.name}={getattr(self, f.name)}" for f in fields(self))


class MixedPrecisionAdam(torch.optim.Optimizer):
    """AdamW whose moments and weights are FP32, as one fused operator over all parameters."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self) -> None:
        """One update; the weights of 16 bits are copies of those of 32."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in weights:
            if p not in self.state:
                self.state[p] = {
                    name: torch.empty_like(p, dtype=torch.float32) for name in ("master", "exp_avg", "exp_avg_sq")
                } | {"step": torch.zeros((), device=p.device)}
        kept = {name: [self.state[p][name] for p in weights] for name in ("master", "exp_avg", "exp_avg_sq", "step")}
        torch._fused_adamw_(
            kept["master"], [p.grad for p in weights], kept["exp_avg"], kept["exp_avg_sq"], [], kept["step"],
            lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        torch._foreach_copy_(weights, kept["master"])


def train(build: Callable[[Shape], torch.nn.Module]) -> None:
    """Builds a model of the sizes on the command line and trains it for one step."""
    parser = argparse.ArgumentParser()
    for f in fields(Shape):
        parser.add_argument(f"--{f.name}", type=f.type, required=f.default is MISSING, default=f.default)
    shape = Shape(**vars(parser.parse_args()))
    torch.set_default_dtype(getattr(torch, shape.dtype))
    with torch.device("cuda"):
        model = build(shape)
        tokens = torch.zeros(shape.batch, shape.sequence, dtype=torch.int64)
    optimizer = MixedPrecisionAdam(model.parameters())
    loss = F.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
    loss.backward()
    optimizer.step()
