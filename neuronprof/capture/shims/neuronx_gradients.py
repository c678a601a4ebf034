"""What neuronx_distributed does to gradients before a step: reduces them over the ranks, clips them."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from neuronprof.capture.shims import parallel_state
from neuronprof.capture.shims.xla_collectives import reduce_together

_BUCKET = 512 << 20
"""Bytes of gradients that are reduced together: BUCKET_CAP_MB of neuronx_distributed."""


def clip_grad_norm(
    parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0, **_options: Any
) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_ by the norm over all ranks of a model."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, norm_type)
    for axis in ("tp", "pp"):
        if parallel_state.size(axis) > 1:
            powers = norm.pow(norm_type)
            dist.all_reduce(powers, group=parallel_state.group(axis))
            norm = powers.pow(1 / norm_type)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def bucket_allreduce_gradients(gradients: Iterable[torch.Tensor], **_options: Any) -> None:
    """Averages gradients over the data-parallel ranks, bucket by bucket."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        if bucket and (sum(g.nbytes for g in bucket) + gradient.nbytes > _BUCKET or gradient.dtype != bucket[0].dtype):
            reduce_over("dp", bucket)
            bucket = []
        bucket.append(gradient)
    reduce_over("dp", bucket)


def reduce_over(axis: str, bucket: list[torch.Tensor], average: bool = True) -> None:
    """Sums gradients of one type over the ranks along an axis, in one collective, or averages them."""
    ranks = parallel_state.group(axis)
    if not bucket or parallel_state.size(axis) * (parallel_state.size("ep") if axis == "dp" else 1) == 1:
        return
    if average:
        torch._foreach_div_(bucket, ranks.size())
    reduce_together(bucket, dist.ReduceOp.SUM, ranks)


NAMES = {"clip_grad_norm": clip_grad_norm, "bucket_allreduce_gradients": bucket_allreduce_gradients}
