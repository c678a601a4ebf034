"""Sim: a tensor with shape, dtype, strides and storage identity, but no memory and no values."""

from typing import Any, Protocol

import torch

from neuronprof.errors import NeuronprofError

_wrap = torch.Tensor._make_wrapper_subclass
_subclass = torch.Tensor._make_subclass
_throw_on_write = torch._C._set_throw_on_mutable_data_ptr
_CPU = torch.device("cpu")
_MOST_MATERIALISED = 1 << 24


class Executor(Protocol):
    """What a Sim needs of the engine that made it."""

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Executes one operator on tensors some of which have no values."""

    def note(self, key: str, count: int = 1) -> None:
        """Counts a softening."""


_executor: list[Executor] = []


def set_executor(executor: Executor) -> None:
    """Names the engine that serves every Sim of this process, also after its recording has ended."""
    _executor[:] = [executor]


class Sim(torch.Tensor):
    """A tensor whose values are not computed.

    Device, strides and the storage's identity and size are PyTorch's own (no Python call to ask for them), so autocast, the choice of
    an attention kernel, `.data =` and views behave as for an ordinary tensor. Its storage has no memory: an operator's kernel must
    never see it, which is why every operator on it goes to the engine.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands the operator to the engine, unless another tensor subclass must unwrap itself first."""
        for kind in types:
            if kind is not Sim and kind is not torch.Tensor and kind is not torch.nn.Parameter:
                return NotImplemented
        return _executor[0].execute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"tensor(<not computed>, size={tuple(self.shape)}, dtype={self.dtype})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        copy.__dict__.update({k: v for k, v in self.__dict__.items() if k != "_is_param"})
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (tuple(self.shape), self.dtype, self.requires_grad, isinstance(self, torch.nn.Parameter))

    def __array__(self, dtype: Any = None) -> Any:
        values = materialise(self).numpy()
        return values if dtype is None else values.astype(dtype)

    def numpy(self, *, force: bool = False) -> Any:
        """Ones (zeros for integers), since the values were not computed."""
        if self.requires_grad and not force:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return materialise(self).numpy()

    def tolist(self) -> Any:
        """Ones (zeros for integers), since the values were not computed."""
        return materialise(self).tolist()

    def data_ptr(self) -> int:
        """A number that is the same for the same place in the same storage; it is not an address."""
        return int(self.untyped_storage()._cdata + self.storage_offset() * self.element_size())

    def pin_memory(self) -> "Sim":
        """Itself: there is no memory to pin."""
        return self

    def share_memory_(self) -> "Sim":
        """Itself: there is no memory to share."""
        return self


def _rebuild(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool, parameter: bool) -> torch.Tensor:
    values = torch.empty(shape, dtype=dtype)
    return torch.nn.Parameter(values, requires_grad) if parameter else values.requires_grad_(requires_grad)


def is_simulated(value: Any) -> bool:
    """Whether value is a tensor without values."""
    return isinstance(value, Sim)


def new(shape: tuple[int, ...], stride: tuple[int, ...] | None, dtype: torch.dtype) -> Sim:
    """A Sim with a storage of its own; contiguous if stride is None."""
    made = _wrap(Sim, shape, strides=stride, dtype=dtype, device=_CPU)
    _throw_on_write(made)
    return made


def view_of(view: torch.Tensor) -> Sim:
    """The Sim that shares the storage of a native view of a Sim."""
    return _subclass(Sim, view)


def as_strided(base: torch.Tensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> torch.Tensor:
    """A view of base, made without the dispatcher's Python keys."""
    with torch._C._DisableTorchDispatch():
        view = torch.as_strided(base, shape, stride, offset)
    return view_of(view) if isinstance(base, Sim) else view


def materialise(tensor: torch.Tensor) -> torch.Tensor:
    """Ordinary memory in the shape of tensor: ones, or zeros for integers and booleans.

    Raises:
        NeuronprofError: the script reads a tensor too large to invent values for.
    """
    if tensor.numel() > _MOST_MATERIALISED:
        raise NeuronprofError(
            f"The script reads the values of a tensor of shape {tuple(tensor.shape)}, which were not computed; "
            "record it with --values real."
        )
    _executor[0].note("values of a tensor read by the script (ones, or zeros for integers)")
    with torch.utils._python_dispatch._disable_current_modes():
        make = torch.ones if tensor.dtype.is_floating_point else torch.zeros
        return make(tuple(tensor.shape), dtype=tensor.dtype)


def view(func: Any, args: Any, kwargs: dict[str, Any], simulated: bool) -> Any:
    """A view made by PyTorch itself; a view of a Sim is a Sim on the same storage."""
    if not simulated:
        return func(*args, **kwargs)
    with torch._C._DisableTorchDispatch():
        out = func(*args, **kwargs)
    if isinstance(out, torch.Tensor):
        return out if any(out is a for a in args) else view_of(out)
    return type(out)(view_of(v) for v in out)
