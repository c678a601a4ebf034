"""The sharded layers of neuronx_distributed: column- and row-parallel products, and the collectives around them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as exchange
from torch.nn import functional

from neuronprof.capture.shims import parallel_state
from neuronprof.errors import NeuronprofError

_Function = Callable[[torch.Tensor], torch.Tensor]


class _Between(torch.autograd.Function):
    """Applies one function in the forward pass, and another one to the gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, forward: _Function, backward: _Function) -> torch.Tensor:
        ctx.backward_function = backward
        return forward(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.backward_function(gradient), None, None


def _tensor_group() -> Any:
    return parallel_state.group("tp")


def _same(value: torch.Tensor) -> torch.Tensor:
    return value.view_as(value)


def _summed(value: torch.Tensor) -> torch.Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value, group=_tensor_group())
    return value


def _gathered(dim: int) -> _Function:
    return lambda value: exchange.wait_tensor(
        exchange.all_gather_single(value.contiguous(), dim % value.dim(), _tensor_group())
    )


def _own_part(dim: int) -> _Function:
    def narrow(value: torch.Tensor) -> torch.Tensor:
        return value.chunk(parallel_state.size("tp"), dim)[parallel_state.rank("tp")].contiguous()

    return narrow


def _own_part_of_sum(dim: int) -> _Function:
    return lambda value: exchange.wait_tensor(
        exchange.reduce_scatter_single(value.contiguous(), "sum", dim % value.dim(), _tensor_group())
    )


def _region(value: torch.Tensor, forward: _Function, backward: _Function) -> torch.Tensor:
    if parallel_state.size("tp") == 1:
        return value
    result: torch.Tensor = _Between.apply(value, forward, backward)
    return result


def copy_to(value: torch.Tensor) -> torch.Tensor:
    """All ranks use the same value: their gradients are summed."""
    return _region(value, _same, _summed)


def reduce_from(value: torch.Tensor) -> torch.Tensor:
    """The sum of the ranks' values."""
    return _region(value, _summed, _same)


def gather_from(value: torch.Tensor) -> torch.Tensor:
    """The ranks' values side by side in the last dimension."""
    return _region(value, _gathered(-1), _own_part(-1))


def scatter_to(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of the last dimension."""
    return _region(value, _own_part(-1), _gathered(-1))


def gather_from_sequence(
    value: torch.Tensor, sequence_dimension: int = 0, to_model_parallel: bool = True, **_options: Any
) -> torch.Tensor:
    """The whole sequence, of which each rank had a part; to_model_parallel: each rank uses it for other results."""
    back = _own_part_of_sum if to_model_parallel else _own_part
    return _region(value, _gathered(sequence_dimension), back(sequence_dimension))


def reduce_scatter_to_sequence(value: torch.Tensor, sequence_dimension: int = 0, **_options: Any) -> torch.Tensor:
    """This rank's part of the sequence of the ranks' sum."""
    return _region(value, _own_part_of_sum(sequence_dimension), _gathered(sequence_dimension))


def scatter_to_sequence(value: torch.Tensor, sequence_dimension: int = 0, **_options: Any) -> torch.Tensor:
    """This rank's part of the sequence."""
    return _region(value, _own_part(sequence_dimension), _gathered(sequence_dimension))


def divided(whole: int, what: str) -> int:
    """A tensor-parallel rank's part of a size.

    Raises:
        NeuronprofError: the ranks do not divide it.
    """
    ranks = parallel_state.size("tp")
    if whole % ranks:
        raise NeuronprofError(f"{what} {whole} cannot be divided among {ranks} tensor-parallel ranks.")
    return whole // ranks


class _ParallelLinear(nn.Module):
    """A linear layer of which each rank has a part; weight: (rows, columns) of that part."""

    def __init__(self, shape: tuple[int, int], bias: int | None, dtype: torch.dtype, device: Any, init: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))
        (init or nn.init.kaiming_uniform_)(self.weight, **({} if init else {"a": 5**0.5}))
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias, dtype=dtype, device=device))

    def _choose(
        self,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int | None = None,
        skip_bias_add: bool = False,
        **_others: Any,
    ) -> None:
        self.sequence = (sequence_dimension or 0) if sequence_parallel_enabled else None
        self.skip_bias_add = skip_bias_add


class ColumnParallelLinear(_ParallelLinear):
    """A linear layer whose output features are sharded."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        init_method: Callable[[torch.Tensor], Any] | None = None,
        **options: Any,
    ) -> None:
        rows = divided(output_size, "The output features")
        super().__init__((rows, input_size), rows if bias else None, dtype, device, init_method)
        self.gather_output = gather_output
        self._choose(**options)

    def forward(self, x: torch.Tensor) -> Any:
        """x: (..., input_size) to (..., output_size / ranks); with skip_bias_add the bias is returned beside it."""
        x = copy_to(x) if self.sequence is None else gather_from_sequence(x, self.sequence)
        result = functional.linear(x, self.weight, None if self.skip_bias_add else self.bias)
        result = gather_from(result) if self.gather_output else result
        return (result, self.bias) if self.skip_bias_add else result


class RowParallelLinear(_ParallelLinear):
    """A linear layer whose input features are sharded."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        init_method: Callable[[torch.Tensor], Any] | None = None,
        **options: Any,
    ) -> None:
        columns = divided(input_size, "The input features")
        super().__init__((output_size, columns), output_size if bias else None, dtype, device, init_method)
        self.input_is_parallel, self.reduce_output = input_is_parallel, options.pop("reduce_output", True)
        self._choose(**options)

    def forward(self, x: torch.Tensor) -> Any:
        """x: (..., input_size / ranks) to (..., output_size); with skip_bias_add the bias is returned beside it."""
        result = functional.linear(x if self.input_is_parallel else scatter_to(x), self.weight)
        if self.reduce_output:
            result = reduce_from(result) if self.sequence is None else reduce_scatter_to_sequence(result, self.sequence)
        if self.skip_bias_add:
            return result, self.bias
        return result if self.bias is None else result + self.bias


class ParallelEmbedding(nn.Module):
    """An embedding whose rows, or features, are sharded."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        init_method: Callable[[torch.Tensor], Any] = nn.init.normal_,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
        shard_across_embedding: bool = False,
        **_options: Any,
    ) -> None:
        super().__init__()
        self.by_features = shard_across_embedding
        self.rows = num_embeddings if self.by_features else divided(num_embeddings, "The rows of an embedding")
        columns = divided(embedding_dim, "The features of an embedding") if self.by_features else embedding_dim
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(self.rows, columns, device=device, dtype=dtype))
        init_method(self.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (...) to (..., embedding_dim)."""
        if self.by_features or parallel_state.size("tp") == 1:
            return gather_from(functional.embedding(tokens, self.weight, self.padding_idx))
        own = tokens - parallel_state.rank("tp") * self.rows
        absent = (own < 0) | (own >= self.rows)
        found = functional.embedding(own.masked_fill(absent, 0), self.weight)
        return reduce_from(found.masked_fill(absent.unsqueeze(-1), 0.0))


def parallel_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The loss of each element: logits (..., classes / ranks), labels (...)."""
    if parallel_state.size("tp") == 1:
        flat = logits.flatten(0, -2), labels.flatten()
        return functional.cross_entropy(*flat, reduction="none", label_smoothing=label_smoothing).view(labels.shape)
    largest = logits.detach().amax(-1)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_tensor_group())
    shifted = logits - largest.unsqueeze(-1)
    total = reduce_from(shifted.exp().sum(-1)).log()
    own = labels - parallel_state.rank("tp") * logits.shape[-1]
    absent = (own < 0) | (own >= logits.shape[-1])
    wanted = shifted.gather(-1, own.masked_fill(absent, 0).unsqueeze(-1)).squeeze(-1)
    losses: torch.Tensor = total - reduce_from(wanted.masked_fill(absent, 0.0))
    return losses
