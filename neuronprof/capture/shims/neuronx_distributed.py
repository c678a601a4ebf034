"""neuronx_distributed with one rank: parallel layers are the whole layers that they are shards of."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from neuronprof.errors import NeuronprofError

_AXES = (
    "tensor_model_parallel",
    "pipeline_model_parallel",
    "context_parallel",
    "expert_model_parallel",
    "data_parallel",
)
_initialized: list[bool] = []


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1, **sizes: Any
) -> None:
    """Sets up one rank.

    Raises:
        NeuronprofError: a parallel size is not 1.
    """
    sizes = {"tensor": tensor_model_parallel_size, "pipeline": pipeline_model_parallel_size} | {
        name: size for name, size in sizes.items() if name.endswith("_parallel_size")
    }
    for name, size in sizes.items():
        if size != 1:
            raise NeuronprofError(
                f"neuronx_distributed is asked for {name} parallelism over {size} ranks, and this version records one."
            )
    if not dist.is_initialized():
        dist.init_process_group("xla")
    _initialized[:] = [True]


def destroy_model_parallel() -> None:
    """Forgets the parallel state."""
    _initialized.clear()


def _getters() -> dict[str, Any]:
    getters: dict[str, Any] = {}
    for axis in _AXES:
        getters[f"get_{axis}_size"] = lambda: 1
        getters[f"get_{axis}_rank"] = lambda: 0
        getters[f"get_{axis}_group"] = lambda **_options: dist.group.WORLD
        getters[f"get_{axis}_replica_groups"] = lambda: [[0]]
    return getters


def _weight(
    rows: int, columns: int, dtype: torch.dtype, device: Any, init: Callable[[torch.Tensor], Any] | None
) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device))
    if init is None:
        nn.init.kaiming_uniform_(weight, a=5**0.5)
    else:
        init(weight)
    return weight


class ParallelLinear(nn.Module):
    """A linear layer; with one rank its column-parallel and row-parallel forms are the same."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        init_method: Callable[[torch.Tensor], Any] | None = None,
        skip_bias_add: bool = False,
        **_parallel: Any,
    ) -> None:
        super().__init__()
        self.weight = _weight(output_size, input_size, dtype, device, init_method)
        self.bias = nn.Parameter(torch.zeros(output_size, dtype=dtype, device=device)) if bias else None
        self.skip_bias_add = skip_bias_add

    def forward(self, x: torch.Tensor) -> Any:
        """x: (..., input_size) to (..., output_size); with skip_bias_add the bias is returned beside it."""
        if self.skip_bias_add:
            return functional.linear(x, self.weight), self.bias
        return functional.linear(x, self.weight, self.bias)


class ColumnParallelLinear(ParallelLinear):
    """A linear layer whose output features are sharded."""


class RowParallelLinear(ParallelLinear):
    """A linear layer whose input features are sharded."""


class ParallelEmbedding(nn.Embedding):
    """An embedding whose rows are sharded."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        init_method: Callable[[torch.Tensor], Any] = nn.init.normal_,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
        **_parallel: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        init_method(self.weight)


def parallel_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The loss of each element: logits (..., classes), labels (...)."""
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return losses.view(labels.shape)


def clip_grad_norm(parameters: Any, max_norm: float, norm_type: float = 2.0, **_parallel: Any) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)


_LAYERS: dict[str, Any] = {
    "ColumnParallelLinear": ColumnParallelLinear,
    "RowParallelLinear": RowParallelLinear,
    "ParallelEmbedding": ParallelEmbedding,
}

MODULES: dict[str, dict[str, Any]] = {
    "neuronx_distributed": {"__version__": "0.17"},
    "neuronx_distributed.parallel_layers": {**_LAYERS, "clip_grad_norm": clip_grad_norm},
    "neuronx_distributed.parallel_layers.layers": _LAYERS,
    "neuronx_distributed.parallel_layers.loss_functions": {"parallel_cross_entropy": parallel_cross_entropy},
    "neuronx_distributed.parallel_layers.grads": {
        "clip_grad_norm": clip_grad_norm,
        "bucket_allreduce_gradients": lambda gradients: None,
    },
    "neuronx_distributed.parallel_layers.parallel_state": {
        "initialize_model_parallel": initialize_model_parallel,
        "destroy_model_parallel": destroy_model_parallel,
        "model_parallel_is_initialized": lambda: bool(_initialized),
        **_getters(),
    },
    "neuronx_distributed.utils": {},
}
