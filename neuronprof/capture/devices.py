"""Devices that the machine lacks: tensors asked for on cuda, neuron or xla live on the CPU and carry the name the script used."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device as default_device
from torch.utils import _pytree as pytree

from neuronprof.capture import devicename, placement
from neuronprof.capture import engine as engines
from neuronprof.capture.patching import Patches, called_by_torch, called_by_user
from neuronprof.capture.placement import HOST, SIMULATED, simulated
from neuronprof.capture.simtensor import is_simulated

_Call = Callable[..., Any]
_native_device = torch._C.TensorBase.device.__get__

_FACTORIES = """
    empty empty_permuted empty_strided ones zeros full arange range linspace logspace eye tril_indices triu_indices
    rand randn randint randperm normal scalar_tensor tensor as_tensor asarray
    bartlett_window blackman_window hamming_window hann_window kaiser_window
    sparse_coo_tensor sparse_compressed_tensor sparse_csr_tensor sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor
"""
_LIKE = "empty_like zeros_like ones_like full_like rand_like randn_like randint_like"
_NEW = "new_empty new_empty_strided new_zeros new_ones new_full new_tensor"
_FROM_DATA = frozenset({"tensor", "as_tensor", "asarray"})


def install(patches: Patches) -> None:
    """Lets the rest of the process use the simulated devices, until patches is undone."""
    placement.reset()
    patches.on_exit(placement.reset)  # a script that runs later in this process has a device of its own
    patches.on_exit(_defaults())
    devicename.register()
    default_device._device_constructors()  # is cached: must hold PyTorch's own functions, not the ones set below
    _patch_factories(patches)
    _patch_moves(patches)
    _patch_questions(patches)
    _patch_defaults(patches)
    _patch_loading(patches)


def _defaults() -> Callable[[], None]:
    """What puts PyTorch's settings back as they are now: default device and dtype, gradients on or off."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()

    def restore() -> None:
        torch.set_default_device(None if context is None else context.device)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)

    return restore


# ---- tensors made on a device


def _default() -> torch.device:
    """Where a factory without a device argument puts its result, as the script sees it."""
    for level in reversed(range(torch._C._len_torch_function_stack())):
        mode = torch._C._get_function_stack_at(level)
        if isinstance(mode, default_device.DeviceContext):
            return simulated(mode.device) or HOST
    return HOST


def _patch_factories(patches: Patches) -> None:
    for name in _FACTORIES.split():
        patches.wrap_builtin(torch, name, _from_data if name in _FROM_DATA else _factory)
    for name in ("fftfreq", "rfftfreq"):
        patches.wrap_builtin(torch.fft, name, _factory)
    for name in _LIKE.split():
        patches.wrap_builtin(torch, name, _like)
    for name in _NEW.split():
        patches.wrap(torch.Tensor, name, _like)


def _on_cpu(original: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, torch.device | None]:
    """The result of a factory, made on the CPU if it was asked for on a simulated device; and that device."""
    device = simulated(kwargs.get("device"))
    if device is not None:
        kwargs["device"] = HOST
    return original(*args, **kwargs), device


def _factory(original: _Call, *args: Any, **kwargs: Any) -> Any:
    explicit = kwargs.get("device") is not None
    result, device = _on_cpu(original, args, kwargs)
    device = device or (HOST if explicit else _default())
    if device is not HOST:
        placement.place(result, device)
    return result


def _from_data(original: _Call, data: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.tensor and its kin: what is made of host data on a device is a copy to the device; what is there already stays there."""
    source = placement.placed(data) if isinstance(data, torch.Tensor) else HOST
    explicit = kwargs.get("device") is not None
    result, device = _on_cpu(original, (data, *args), kwargs)
    device = device or (HOST if explicit else source if source is not HOST else _default())
    if source is HOST and device is not HOST:
        return _moved(result, device)
    if device is not HOST:
        placement.place(result, device)
    return result


def _like(original: _Call, source: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    result, device = _on_cpu(original, (source, *args), kwargs)
    device = device or placement.placed(source)
    if device is not HOST:
        placement.place(result, device)
    return result


# ---- tensors that move


def _patch_moves(patches: Patches) -> None:
    patches.wrap(torch.Tensor, "to", _to)
    patches.wrap(torch.Tensor, "cpu", _to_host)
    patches.wrap(torch.Tensor, "copy_", _copy_into)
    patches.wrap(torch.Tensor, "type", _type)
    for kind in ("cuda", "xpu", "hpu", "neuron"):
        patches.set(torch.Tensor, kind, _tensor_method(kind))
        patches.set(torch.nn.Module, kind, _module_method(kind))
    patches.set(torch.Tensor, "pin_memory", _named("pin_memory", lambda tensor, *_device: tensor))
    patches.set(torch.Tensor, "is_pinned", _named("is_pinned", lambda _tensor, *_device: False))
    patches.set(torch.Tensor, "record_stream", _named("record_stream", lambda _tensor, _stream: None))
    for storage in (torch.UntypedStorage, torch.TypedStorage):
        patches.set(storage, "cuda", _named("cuda", lambda storage, *_args, **_kwargs: storage))


def _named(name: str, function: _Call) -> _Call:
    function.__name__ = function.__qualname__ = name
    return function


def _tensor_method(kind: str) -> _Call:
    def move(self: torch.Tensor, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:
        return self.to(kind if device is None else device, non_blocking=non_blocking, **kwargs)

    return _named(kind, move)


def _module_method(kind: str) -> _Call:
    def move(self: torch.nn.Module, device: Any = None) -> torch.nn.Module:
        return self.to(torch.device(kind) if device is None else simulated(device))

    return _named(kind, move)


def _to(original: _Call, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Tensor.to: the part that names a device becomes a move, the rest (dtype, copy, memory format) is PyTorch's."""
    device, native_args = _target(args, kwargs)
    label = simulated(device)
    if device is None or _native_device(tensor).type != "cpu" or (label is None and torch.device(device).type != "cpu"):
        result = original(tensor, *native_args, **kwargs)
        placement.inherit((tensor,), result)
        return result
    label = label or (HOST if _means_the_host() else placement.placed(tensor))
    if placement.placed(tensor) != label:
        tensor = _moved(tensor, label)
    result = original(tensor, *native_args, **kwargs)
    if result is not tensor and label is not HOST:
        placement.place(result, label)
    return result


def _means_the_host() -> bool:
    """Whether the caller of Tensor.to(cpu) wants the host.

    The script does, and so does Module.to on its behalf; other code of PyTorch passes on the cpu that it was told is a
    tensor's device.
    """
    return not called_by_torch(4) or sys._getframe(3).f_code.co_filename.endswith("torch/nn/modules/module.py")


def _to_host(original: _Call, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if _native_device(tensor).type == "cpu" and placement.placed(tensor) is not HOST:
        return _moved(tensor, HOST)
    return original(tensor, *args, **kwargs)


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The device that arguments of Tensor.to name (None: none), and the positional arguments with the CPU for a simulated device.

    A device among kwargs is replaced in place.
    """
    device = kwargs.get("device")
    if device is not None:
        if simulated(device) is not None:
            kwargs["device"] = HOST
        return device, args
    other = kwargs.get("other", args[0] if args else None)
    if isinstance(other, torch.Tensor):
        native = _native_device(other)
        return (placement.placed(other) if native.type == "cpu" else native), args
    if not args or isinstance(args[0], bool) or not isinstance(args[0], (str, int, torch.device)):
        return None, args
    return args[0], (args if simulated(args[0]) is None else (HOST, *args[1:]))


class _Move(torch.autograd.Function):
    """A move whose gradient moves back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        ctx.source = placement.placed(tensor)
        return _copied(tensor, device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _copied(gradients[0], ctx.source), None


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of tensor on device (or on the host), with the transfer recorded."""
    if tensor.layout != torch.strided or not (type(tensor) in _PLAIN or is_simulated(tensor)):
        placement.place(tensor, device)
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        return _Move.apply(tensor, device)
    return _copied(tensor, device)


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    source = placement.placed(tensor)
    with torch.no_grad():
        copy = torch._C._VariableFunctions.empty_like(tensor)
        if not is_simulated(copy):
            with torch.utils._python_dispatch._disable_current_modes():
                copy.detach().copy_(tensor.detach())
    placement.place(copy, device)
    engine = engines.current()
    if engine is not None and (source is HOST or device is HOST):
        engine.transfer("d2h" if device is HOST else "h2d", copy)
    return copy


def _copy_into(original: _Call, target: torch.Tensor, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    here, there = placement.placed(target), placement.placed(source)
    placement.place(target, here)
    engine = engines.current()
    if engine is not None and here != there and HOST in (here, there):
        engine.transfer("d2h" if here is HOST else "h2d", source)
    return original(target, source, *args, **kwargs)


def _type(original: _Call, tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Tensor.type, which can also say a device: x.type('torch.cuda.FloatTensor')."""
    if dtype is None:
        name = original(tensor)
        kind = placement.placed(tensor).type
        return name if kind == "cpu" else name.replace("torch.", f"torch.{kind}.", 1)
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__module__", "") + "." + getattr(dtype, "__name__", "")
    parts = name.split(".")
    if len(parts) == 3 and parts[1] in SIMULATED:
        return original(tensor.to(parts[1]), f"torch.{parts[2]}")
    return original(tensor, dtype, *args, **kwargs)


# ---- what the script asks a tensor


def _patch_questions(patches: Patches) -> None:
    patches.set(torch.Tensor, "device", property(_device, doc=torch._C.TensorBase.device.__doc__))
    for kind in ("cuda", "xpu", "mps", "xla", "neuron", "cpu"):
        patches.set(torch.Tensor, f"is_{kind}", property(_is_on(kind)))
    _patch_print(patches)
    patches.wrap(torch.Tensor, "get_device", _get_device)
    patches.wrap(torch, "get_device", _get_device)


def _patch_print(patches: Patches) -> None:
    """A tensor on the device shows it: tensor([1.], device='cuda:0')."""
    shown = [HOST]

    def text(original: _Call, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> str:
        shown.append(placement.placed(tensor))
        try:
            return original(tensor, *args, **kwargs)
        finally:
            shown.pop()

    def suffixes(original: _Call, tensor_text: str, added: list[str], *args: Any, **kwargs: Any) -> str:
        if shown[-1] is not HOST:
            added = [f"device='{shown[-1]}'", *added]
        return original(tensor_text, added, *args, **kwargs)

    patches.wrap(torch._tensor_str, "_str_intern", text)
    patches.wrap(torch._tensor_str, "_add_suffixes", suffixes)


def _device(self: torch.Tensor) -> torch.device:
    """The device under the name that the script used; inside PyTorch, the CPU."""
    native = _native_device(self)
    if placement.in_use() is None or native.type != "cpu" or called_by_torch():
        return native
    return placement.placed(self)


def _is_on(kind: str) -> Callable[[torch.Tensor], bool]:
    def is_on(self: torch.Tensor) -> bool:
        native = _native_device(self)
        return (placement.placed(self) if native.type == "cpu" and not called_by_torch() else native).type == kind

    return is_on


def _get_device(original: _Call, tensor: torch.Tensor) -> int:
    device = placement.placed(tensor)
    return original(tensor) if device.index is None or called_by_torch(3) else device.index


# ---- defaults


def _patch_defaults(patches: Patches) -> None:
    def torch_function(original: _Call, mode: Any, func: _Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if simulated(mode.device) is None:
            return original(mode, func, types, args, kwargs)
        kwargs = kwargs or {}
        if func in default_device._device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = HOST
        return func(*args, **kwargs)

    def get_default_device(original: _Call) -> torch.device:
        device = _default()
        return device if device is not HOST and called_by_user(3) else original()

    patches.wrap(default_device.DeviceContext, "__torch_function__", torch_function)
    patches.wrap(torch, "get_default_device", get_default_device)
    patches.set(torch, "Generator", _Generator)


class _AnyGenerator(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class _Generator(torch._C.Generator, metaclass=_AnyGenerator):
    """torch.Generator, which also takes a simulated device."""

    _label: torch.device | None

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        label = simulated(device)
        generator: _Generator = super().__new__(cls, "cpu" if label is not None else device)
        generator._label = label
        return generator

    @property
    def device(self) -> torch.device:
        """The device that the generator was asked for."""
        return self._label if self._label is not None and called_by_user() else HOST


_Generator.__name__ = _Generator.__qualname__ = "Generator"
_Generator.__module__ = "torch"


# ---- data that comes from elsewhere


def _patch_loading(patches: Patches) -> None:
    def loader(original: _Call, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.pin_memory = False  # pinned host memory needs an accelerator's driver

    patches.wrap(torch.utils.data.DataLoader, "__init__", loader)
    patches.wrap(torch, "load", _load)


def _load(original: _Call, file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
    label = simulated(map_location) if isinstance(map_location, (str, torch.device)) else None
    if label is not None:
        map_location = HOST
    elif isinstance(map_location, dict):
        map_location = {key: "cpu" if simulated(value) else value for key, value in map_location.items()}
    loaded = original(file, map_location, *args, **kwargs)
    if label is not None:
        for leaf in pytree.tree_leaves(loaded):
            if isinstance(leaf, torch.Tensor):
                placement.place(leaf, label)
    return loaded
