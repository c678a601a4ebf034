"""neuronx_distributed: its parallel state and its sharded layers, over torch.distributed."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from neuronprof.capture.shims import parallel_layers, parallel_state
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
            _reduce(bucket)
            bucket = []
        bucket.append(gradient)
    _reduce(bucket)


def _reduce(bucket: list[torch.Tensor]) -> None:
    group = parallel_state.group("dp")
    if bucket and parallel_state.size("dp") * parallel_state.size("ep") > 1:
        torch._foreach_div_(bucket, group.size())
        reduce_together(bucket, dist.ReduceOp.SUM, group)


_LAYERS: dict[str, Any] = {
    name: getattr(parallel_layers, name) for name in ("ColumnParallelLinear", "RowParallelLinear", "ParallelEmbedding")
}
_MAPPINGS: dict[str, Any] = {
    "copy_to_tensor_model_parallel_region": parallel_layers.copy_to,
    "reduce_from_tensor_model_parallel_region": parallel_layers.reduce_from,
    "gather_from_tensor_model_parallel_region": parallel_layers.gather_from,
    "scatter_to_tensor_model_parallel_region": parallel_layers.scatter_to,
    "gather_from_sequence_parallel_region": parallel_layers.gather_from_sequence,
    "reduce_scatter_to_sequence_parallel_region": parallel_layers.reduce_scatter_to_sequence,
    "scatter_to_sequence_parallel_region": parallel_layers.scatter_to_sequence,
}
_GRADIENTS = {"clip_grad_norm": clip_grad_norm, "bucket_allreduce_gradients": bucket_allreduce_gradients}

MODULES: dict[str, dict[str, Any]] = {
    "neuronx_distributed": {"__version__": "0.17"},
    "neuronx_distributed.parallel_layers": {**_LAYERS, "clip_grad_norm": clip_grad_norm},
    "neuronx_distributed.parallel_layers.layers": _LAYERS,
    "neuronx_distributed.parallel_layers.mappings": _MAPPINGS,
    "neuronx_distributed.parallel_layers.loss_functions": {
        "parallel_cross_entropy": parallel_layers.parallel_cross_entropy
    },
    "neuronx_distributed.parallel_layers.grads": _GRADIENTS,
    "neuronx_distributed.parallel_layers.parallel_state": parallel_state.NAMES,
    "neuronx_distributed.utils": {},
}
