"""Plans: how the result of an operator is built when its operands have no values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from neuronprof.capture.signatures import Operator
from neuronprof.capture.simtensor import Sim

SMALL = 4096
"""Float tensors of up to so many elements keep their values."""
MOST_INTEGERS = 1 << 22
"""Integer and boolean tensors of up to so many elements keep theirs."""
_TRUE = ("all", "isfinite", "_is_all_true")


class Plan(NamedTuple):
    """How to build an operator's result: its container (None: one tensor; a type; else a tree) and one entry a leaf.

    Entries: ('new', shape, stride, dtype), ('input', operand), ('view', operand, shape, stride, offset), ('scalar', value, dtype),
    ('index', shape, extent, dtype), ('constant', value). notes: softenings to count each time. reusable: holds for every call with the
    same key, not only for these values.
    """

    container: Any
    leaves: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    reusable: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """A call to plan for; shaped: makes the plan of a similar call from PyTorch's own shape rules."""

    func: Any
    operator: Operator
    args: Sequence[Any]
    kwargs: dict[str, Any]
    operands: Sequence[torch.Tensor]
    shaped: Callable[["Asked"], Plan]


def absent(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are not used: it has none, or it is a large dense float tensor."""
    if isinstance(tensor, Sim):
        return True
    return tensor.numel() > SMALL and tensor.is_floating_point() and tensor.layout is torch.strided


def invented(name: str, dtype: torch.dtype) -> Any:
    """The value of a scalar that was not computed: 1, and False unless the operator asks whether all is well."""
    if dtype == torch.bool:
        return name in _TRUE
    return 1.0 if dtype.is_floating_point or dtype.is_complex else 1


def half_mask(shape: Sequence[int]) -> torch.Tensor:
    """A mask of which every other element is set."""
    return (torch.arange(prod(shape)) % 2 == 0).view(tuple(shape))


def zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros in the shape of tensor; a boolean mask is half dense."""
    if tensor.dtype == torch.bool:
        return half_mask(tensor.shape)
    return torch.zeros(tuple(tensor.shape), dtype=tensor.dtype)
