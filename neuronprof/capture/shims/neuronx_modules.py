"""What neuronx_distributed has beside its sharded layers: grouped queries, attention kernels, rotary positions, AdamW in FP32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from neuronprof.capture.shims import parallel_state
from neuronprof.capture.shims.parallel_layers import copy_to, divided, gather_from, gather_from_sequence


class GQAQKVColumnParallelLinear(nn.Module):
    """Queries, keys and values of grouped-query attention, sharded by heads; kv_size_multiplier: copies of the keys' and values' heads."""

    def __init__(
        self,
        input_size: int,
        output_sizes: list[int],
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        init_method: Callable[[torch.Tensor], Any] | None = None,
        sequence_parallel_enabled: bool = False,
        kv_size_multiplier: int = 1,
        fuse_qkv: bool = True,
        sequence_dimension: int | None = None,
        **_options: Any,
    ) -> None:
        super().__init__()
        queries, heads = output_sizes[0], output_sizes[1] * kv_size_multiplier
        self.sizes = [divided(size, "The output features") for size in (queries, heads, heads)]
        self.gather_output, self.fused = gather_output, fuse_qkv
        self.sequence = (sequence_dimension or 0) if sequence_parallel_enabled else None
        rows = [sum(self.sizes)] if fuse_qkv else self.sizes
        made = {"dtype": dtype, "device": device}
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, input_size, **made)) for n in rows)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n, **made)) for n in rows) if bias else None
        for weight in self.weights:
            (init_method or nn.init.kaiming_uniform_)(weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x: (..., input_size) to queries, keys and values (..., size / ranks)."""
        x = copy_to(x) if self.sequence is None else gather_from_sequence(x, self.sequence)
        biases = list(self.biases) if self.biases is not None else [None] * len(self.weights)
        made = tuple(functional.linear(x, weight, bias) for weight, bias in zip(self.weights, biases, strict=True))
        parts = made[0].split(self.sizes, -1) if self.fused else made
        return tuple(gather_from(part) if self.gather_output else part for part in parts)


def nki_flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lnc: int = 1,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = True,
    mixed_precision: bool = True,
    seed: Any = None,
    hardware_type: Any = None,
    transpose_nki_inputs: bool = True,
) -> torch.Tensor:
    """Attention that keeps its scores in SBUF.

    (batch, heads, sequence, head) in and out; with transpose_nki_inputs (batch, heads, head, sequence) in.
    """
    if transpose_nki_inputs:
        q, k, v = (t.transpose(-1, -2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale)


def apply_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: Any = None,
    use_flash_attention: bool = False,
    transpose_nki_inputs: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned by their positions; cos, sin: (batch, sequence, head)."""
    turned = use_flash_attention and transpose_nki_inputs
    cos, sin = (t.unsqueeze(1).transpose(-1, -2) if turned else t.unsqueeze(1) for t in (cos, sin))
    dim = -2 if turned else -1

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim)
        return x * cos + torch.cat((-second, first), dim) * sin

    return rotated(q), rotated(k)


def get_batch_on_this_context_parallel_rank(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's part of the sequence of every tensor of a batch."""
    ranks, mine = parallel_state.size("cp"), parallel_state.rank("cp")
    return {name: value.chunk(ranks, 1)[mine].contiguous() if ranks > 1 else value for name, value in batch.items()}


class AdamW_FP32OptimParams(torch.optim.Optimizer):  # noqa: N801 - the library's name
    """AdamW that computes in FP32, and keeps its moments so, whatever the parameters are in."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        **_options: Any,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of Adam with decoupled weight decay."""
        loss = closure() if closure is not None else None
        for entry in self.param_groups:
            for parameter in entry["params"]:
                if parameter.grad is not None:
                    self._update(parameter, entry)
        return loss

    def _update(self, parameter: torch.Tensor, entry: dict[str, Any]) -> None:
        state, gradient, (first, second) = self.state[parameter], parameter.grad, entry["betas"]
        assert gradient is not None
        if not state:
            state.update(
                step=0, **{name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
            )
        state["step"] += 1
        gradient, weight = gradient.float(), parameter.float()
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = entry["lr"]
        if entry["correct_bias"]:
            size *= (1 - second ** state["step"]) ** 0.5 / (1 - first ** state["step"])
        weight = weight.mul(1 - entry["lr"] * entry["weight_decay"]).addcdiv_(
            mean, square.sqrt().add_(entry["eps"]), value=-size
        )
        parameter.copy_(weight)
