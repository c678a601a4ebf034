"""Operators, the layouts of their operands, and the keys under which equal calls are found again."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from neuronprof.graph.ir import Signature, Tensor

_Tensor = torch.Tensor
_ATOMS = frozenset({int, float, bool, str, type(None), complex})
_TAG = torch.Tag
# Native batch norms update their running statistics although their schemas do not say so: positions of the two among the arguments.
_RUNNING_STATISTICS = {
    "aten.native_batch_norm.default": (3, 4),
    "aten.cudnn_batch_norm.default": (3, 4),
    "aten.miopen_batch_norm.default": (3, 4),
}


class Layout:
    """What an operator sees of one tensor operand, interned: equal layouts are the same object."""

    __slots__ = ("dtype", "floating", "nbytes", "numel", "offset", "shape", "stride", "tensor")

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> None:
        self.dtype, self.shape, self.stride, self.offset = dtype, shape, stride, offset
        self.numel = prod(shape)
        self.nbytes = self.numel * dtype.itemsize
        self.floating = dtype.is_floating_point or dtype.is_complex
        self.tensor = Tensor(dtype_name(dtype), shape, stride, offset)


class Operator:
    """What a function of the dispatcher does to its arguments, from its schema."""

    __slots__ = (
        "collective",
        "dynamic",
        "hidden",
        "in_place",
        "name",
        "namespace",
        "parts",
        "view",
        "view_in_place",
        "written",
    )

    def __init__(self, func: Any) -> None:
        self.namespace = getattr(func, "namespace", "higher_order")
        self.name = str(func) if "." in str(func) else f"{self.namespace}.{func}"
        self.hidden = self.namespace == "profiler"
        self.parts: Callable[..., Any] | None = None  # what it is made of, where that are operators of their own
        self.collective = self.view = self.view_in_place = self.dynamic = False
        self.written: tuple[str | int, ...] = _RUNNING_STATISTICS.get(self.name, ())
        self.in_place = False
        if isinstance(func, torch._ops.OpOverload):
            self._read_schema(func)

    def _read_schema(self, func: Any) -> None:
        arguments = func._schema.arguments
        written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        if any(written):
            self.written = tuple(
                a.name if a.kwarg_only else i for i, (a, w) in enumerate(zip(arguments, written, strict=True)) if w
            )
        self.view = bool(func.is_view) and not any(written)
        self.view_in_place = _TAG.inplace_view in func.tags
        self.dynamic = _TAG.dynamic_output_shape in func.tags
        returns = func._schema.returns
        self.in_place = any(written) and all(r.alias_info is not None and r.alias_info.is_write for r in returns)
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        if has_kernel(func.name(), "CompositeImplicitAutograd") and not has_kernel(func.name(), "CPU"):
            self.parts = func.decompose


class Call:
    """Builds keys: (function, layouts and other arguments), which decide everything about an operator but its values."""

    __slots__ = ("layouts",)

    def __init__(self) -> None:
        self.layouts: dict[Any, Layout] = {}

    def layout(self, tensor: torch.Tensor) -> Layout:
        """The interned layout of a tensor."""
        try:
            key = (tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
        except RuntimeError:  # sparse and opaque layouts have no strides
            key = (tensor.dtype, tensor.shape, None, 0)
        found = self.layouts.get(key)
        if found is None:
            stride = None if key[2] is None else tuple(key[2])
            found = self.layouts[key] = Layout(key[0], tuple(key[1]), stride, key[3])
        return found

    def key(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[list[Any], list[torch.Tensor]]:
        """The key of a call (a list: the caller may add to it) and its tensor operands, lists flattened, in order."""
        key: list[Any] = [func]
        operands: list[torch.Tensor] = []
        layout = self.layout
        for value in args:
            if isinstance(value, _Tensor):
                operands.append(value)
                key.append(layout(value))
            else:
                self._add(value, key, operands)
        for name, value in kwargs.items():
            key.append(name)
            self._add(value, key, operands)
        return key, operands

    def _add(self, value: Any, key: list[Any], operands: list[torch.Tensor]) -> None:
        kind = type(value)
        if kind in _ATOMS:
            key.append(kind)  # 1, 1.0 and True are equal
            key.append(value)
        elif kind is list or kind is tuple:
            key.append("[")
            for item in value:
                if isinstance(item, _Tensor):
                    operands.append(item)
                    key.append(self.layout(item))
                else:
                    self._add(item, key, operands)
            key.append("]")
        elif isinstance(value, _Tensor):
            operands.append(value)
            key.append(self.layout(value))
        else:
            key.append(_plain(value))

    def signature(self, operator: Operator, args: Any, kwargs: dict[str, Any], outputs: Any, view: bool) -> Signature:
        """The operator with its layouts and plain attributes."""
        inputs: list[torch.Tensor] = []
        attributes: list[Any] = []
        mutates: list[int] = []
        for place, value in [*enumerate(args), *kwargs.items()]:
            start = len(inputs)
            _split(value, inputs, attributes)
            if place in operator.written:
                mutates.extend(range(start, len(inputs)))
        return Signature(
            operator.name,
            tuple(self.layout(t).tensor for t in inputs),
            tuple(self.layout(t).tensor for t in outputs),
            tuple(attributes),
            tuple(mutates),
            view,
        )


def dtype_name(dtype: torch.dtype) -> str:
    """'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an operator's result, lists flattened, in order."""
    if isinstance(value, _Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors_in(item)]
    return []


def _split(value: Any, inputs: list[torch.Tensor], attributes: list[Any]) -> None:
    if isinstance(value, _Tensor):
        inputs.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _split(item, inputs, attributes)
    elif not isinstance(value, (torch.layout, torch.device, torch.Generator, torch.UntypedStorage)):
        attributes.append(value if type(value) in _ATOMS else _plain(value))


def _plain(value: Any) -> Any:
    """A hashable stand-in that keeps no torch object alive: a process group is its name, any other object its type."""
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (torch.memory_format, torch.layout, torch.device)):
        return str(value)
    if isinstance(value, torch.ScriptObject):
        return _group_name(value)
    return value.__name__ if callable(value) and hasattr(value, "__name__") else type(value).__name__


def _group_name(value: Any) -> str:
    try:
        return str(torch.distributed.ProcessGroup.unbox(value).group_name)
    except (RuntimeError, AttributeError, TypeError):
        return type(value).__name__
