"""Products of HLO as PyTorch's: which dimensions are the batch, the rows, the contraction and the columns."""

import re
from math import prod

from neuronprof.capture.jax.hlo import Instruction, contiguous
from neuronprof.graph.ir import Tensor


def dot(i: Instruction, left: Tensor, right: Tensor) -> tuple[str, tuple[Tensor, Tensor]]:
    """A dot as mm, or bmm where it has batch dimensions."""
    batch = _grouped(left, i.numbers("lhs_batch_dims")), _grouped(right, i.numbers("rhs_batch_dims"))
    over = i.numbers("lhs_contracting_dims"), i.numbers("rhs_contracting_dims")
    rows = _grouped(left, _rest(left, i.numbers("lhs_batch_dims"), over[0]))
    columns = _grouped(right, _rest(right, i.numbers("rhs_batch_dims"), over[1]))
    inner = _grouped(left, over[0]), _grouped(right, over[1])
    if not i.numbers("lhs_batch_dims"):
        return "aten.mm.default", (_matrix(left, rows, inner[0]), _matrix(right, inner[1], columns))
    return "aten.bmm.default", (_matrix(left, batch[0], rows, inner[0]), _matrix(right, batch[1], inner[1], columns))


def _rest(tensor: Tensor, *used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in range(len(tensor.shape)) if not any(d in u for u in used))


def _grouped(tensor: Tensor, dims: tuple[int, ...]) -> tuple[int, int]:
    """Size and stride of several dimensions as one; those that cannot be one in place are counted as if they were."""
    stride = tensor.stride or contiguous(tensor.shape)
    return prod(tensor.shape[d] for d in dims), min((stride[d] for d in dims), default=0)


def _matrix(tensor: Tensor, *dims: tuple[int, int]) -> Tensor:
    return Tensor(tensor.dtype, tuple(size for size, _ in dims), tuple(stride for _, stride in dims))


def convolution(i: Instruction, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Image and filters in PyTorch's order: images, channels, positions; filters, channels, taps."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if labels is None:
        return x, weight
    image, kernel, _ = labels.groups()
    positions = sorted(c for c in image if c.isdigit())
    return _ordered(x, image, ["b", "f", *positions]), _ordered(weight, kernel, ["o", "i", *positions])


def _ordered(tensor: Tensor, labels: str, order: list[str]) -> Tensor:
    shape = tuple(tensor.shape[labels.index(c)] for c in order)
    return Tensor(tensor.dtype, shape, contiguous(shape))
