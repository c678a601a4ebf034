"""Which part of a tensor a rank has, and what the part looks like through each view of the tensor."""

from dataclasses import dataclass, replace
from enum import Enum

from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Tensor


class Partial(Enum):
    """Every rank has a term of a sum."""

    SUM = "sum"


PARTIAL = Partial.SUM


@dataclass(frozen=True, slots=True)
class Shard:
    """A buffer of which each rank has an even part: `count` elements, `stride` apart in the whole buffer, are divided.

    That is the same for every view of the buffer. Heads inside the thirds of a fused projection are such elements too.
    rough: how many there are depends on data (rows that a router picked), so that a part of them is so many on average.
    """

    stride: int
    count: int
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Dim:
    """The same, as one tensor sees it: in dimension `index`, `count` groups of `inner` elements are divided."""

    index: int
    count: int
    inner: int = 1
    rough: bool = False

    def at(self, index: int) -> "Dim":
        """The same elements in another dimension."""
        return Dim(index, self.count, self.inner, self.rough)


Seen = Dim | Partial | None
Placements = tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """Placements of an operator's inputs as it demands them, and of its outputs. small: all-reduces of one number a row inside it.

    known: whether a rule was found; without one, inputs are demanded whole.
    """

    inputs: Placements
    outputs: Placements
    small: int = 0
    known: bool = True


class NotDivisibleError(NeuronprofError):
    """A dimension cannot be divided by the number of ranks. size: of the dimension."""

    def __init__(self, size: int, ranks: int) -> None:
        super().__init__(f"{size} cannot be divided among {ranks} ranks")
        self.size = size
        self.ranks = ranks


def alike(one: "Dim | Partial | None", other: "Dim | Partial | None") -> bool:
    """Whether two placements give a rank the same elements: eight heads of 32, divided, are 256 columns, divided."""
    if isinstance(one, Dim) and isinstance(other, Dim):
        return one.index == other.index and one.count * one.inner == other.count * other.inner
    return one == other


def seen(tensor: Tensor, shard: Shard) -> Dim | None:
    """Where a tensor sees the divided elements of its buffer; of several dimensions that they span, the outermost. None: nowhere."""
    found: Dim | None = None
    widest = 0
    for index, (size, stride) in enumerate(zip(tensor.shape, tensor.stride or (), strict=False)):
        if size <= 1 or not stride or stride * size <= shard.stride or stride >= shard.stride * shard.count:
            continue
        if stride <= widest:
            continue
        widest = stride
        if (
            stride > shard.stride
        ):  # the elements span several dimensions: contiguous parts of them are parts of the outermost
            found = Dim(index, min(size, shard.stride * shard.count // stride), 1, shard.rough)
        else:
            inner = shard.stride // stride
            found = Dim(index, min(shard.count, max(1, size // inner)), inner, shard.rough)
    return found


def whole(tensor: Tensor, dim: Dim) -> Shard:
    """What dividing a dimension of a tensor means for its buffer."""
    stride = tensor.stride[dim.index] if tensor.stride else 1
    return Shard(max(1, stride) * dim.inner, dim.count, dim.rough)


def local(tensor: Tensor, shard: Shard, ranks: int) -> Tensor:
    """The part that a rank sees.

    Raises:
        NotDivisibleError: the dimension cannot be divided.
    """
    dim = seen(tensor, shard)
    if dim is None:
        return tensor
    return part(tensor, dim, ranks)


def part(tensor: Tensor, dim: Dim, ranks: int) -> Tensor:
    """A tensor with one dimension divided; strides beyond it shrink as in memory of its own.

    Raises:
        NotDivisibleError: the dimension cannot be divided.
    """
    size = tensor.shape[dim.index]
    if dim.count % ranks and dim.count > 1 and not dim.rough:
        raise NotDivisibleError(dim.count, ranks)
    shape = (*tensor.shape[: dim.index], max(1, round(size / ranks)), *tensor.shape[dim.index + 1 :])
    if tensor.stride is None:
        return replace(tensor, shape=shape)
    divided = tensor.stride[dim.index] * dim.inner
    strides = tuple(s // ranks if s > divided and s >= divided * dim.count else s for s in tensor.stride)
    offset = tensor.offset // ranks if tensor.offset % max(1, divided * dim.count) == 0 else tensor.offset
    return Tensor(tensor.dtype, shape, strides, offset)
