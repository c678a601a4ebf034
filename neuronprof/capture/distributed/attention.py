"""Attention on distributed tensors: DTensor and context parallelism know the operator of accelerators, not the CPU's that stands for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from neuronprof.capture.patching import Patches
from neuronprof.capture.signatures import Operator

_Call = Callable[..., Any]
_aten = torch.ops.aten


def install(patches: Patches) -> None:
    """Lets attention on DTensors be the operator that they have rules for, until patches is undone."""
    from torch.distributed.tensor import DTensor

    def attention(
        original: _Call,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if attn_mask is not None or not isinstance(query, DTensor):
            return original(query, key, value, attn_mask, *args, **kwargs)
        dropout, causal, scale, grouped = _options(*args, **kwargs)
        if grouped:
            key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]

    patches.wrap_builtin(functional, "scaled_dot_product_attention", attention)


def _options(
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False
) -> tuple[float, bool, float | None, bool]:
    return dropout_p, is_causal, scale, enable_gqa


def parts(operator: Operator) -> _Call | None:
    """The CPU's form of an accelerator's attention operator; None for others."""
    return _PARTS.get(operator.name)


def _forward(query: Any, key: Any, value: Any, *rest: Any, scale: float | None = None) -> Any:
    causal = bool(rest[1:] and rest[1])  # the dropout before it costs a CPU kernel nothing, nor an accelerator much
    out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    nothing = torch.empty((), dtype=torch.int64)
    return out, logsumexp, None, None, query.size(-2), key.size(-2), nothing, nothing, nothing


def _backward(gradient: Any, *args: Any, scale: float | None = None) -> Any:
    query, key, value, out, logsumexp, _, _, _, _, _, causal = args[:11]
    return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, out, logsumexp, 0.0, causal, scale=scale
    )


_PARTS: dict[str, _Call] = {
    "aten._scaled_dot_product_flash_attention.default": _forward,
    "aten._scaled_dot_product_flash_attention_backward.default": _backward,
}
