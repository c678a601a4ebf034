"""Where a tensor lives as the script sees it: on the host, or on the simulated device under the name that the script used.

To PyTorch every tensor of a recorded run is a CPU tensor. What the script believes is a label on the storage, so views share it; the engine
hands it from the operands of an operator to its results (inherit).
"""

from collections.abc import Iterable
from typing import Any

import torch

HOST = torch.device("cpu")
SIMULATED = frozenset({"cuda", "neuron", "xla", "mps", "hpu", "xpu", "privateuseone"})
_LABEL = "_neuronprof_device"

_current_index: dict[str, int] = {}
_in_use: list[torch.device] = []


def simulated(device: Any) -> torch.device | None:
    """The simulated device that a device argument means, with its index; None for the host, 'meta' and no device."""
    if isinstance(device, bool) or device is None:
        return None
    if isinstance(device, int):
        return torch.device("cuda", device)
    if isinstance(device, str):
        device = torch.device(device)
    if not isinstance(device, torch.device) or device.type not in SIMULATED:
        return None
    return device if device.index is not None else torch.device(device.type, _current_index.get(device.type, 0))


def current_index(kind: str) -> int:
    """The index that torch.device(kind) without one means now."""
    return _current_index.get(kind, 0)


def select(kind: str, index: int) -> None:
    """Makes index what torch.device(kind) without one means."""
    _current_index[kind] = index


def reset() -> None:
    """Forgets the current devices of an earlier run."""
    _current_index.clear()
    _in_use.clear()


def in_use() -> torch.device | None:
    """The device that the script placed a tensor on last; None when it never used one."""
    return _in_use[0] if _in_use else None


def _storage_labels(tensor: torch.Tensor) -> dict[str, Any] | None:
    try:
        return tensor.untyped_storage().__dict__
    except (NotImplementedError, RuntimeError):  # sparse tensors and wrapper subclasses have none
        return None


def place(tensor: torch.Tensor, device: torch.device) -> None:
    """Labels the storage of tensor, and with it every view of it."""
    labels = _storage_labels(tensor)
    if labels is not None:
        labels[_LABEL] = device
    if device is not HOST:
        _in_use[:] = [device]


def placed(tensor: torch.Tensor) -> torch.device:
    """The device of a tensor in the eyes of the script: its label, else the device for what has a gradient there, else the host."""
    if not _in_use:
        return HOST
    labels = _storage_labels(tensor)
    label = labels.get(_LABEL) if labels is not None else _in_use[0]
    if label is None:
        return _in_use[0] if tensor.grad_fn is not None else HOST
    return label


def on_host(tensor: torch.Tensor) -> bool:
    """Whether a script that uses a device has the tensor on the host."""
    return bool(_in_use) and placed(tensor) == HOST


def inherit(operands: Iterable[Any], result: Any) -> None:
    """Results of an operator with an operand on the device are on that device too, unless their storage has a label already.

    operands: arguments of the operator, tensors and lists of tensors among them. result: a tensor, or a sequence of them.
    """
    if not _in_use:
        return
    label = _first_device(operands)
    if label is None:
        return
    for tensor in result if isinstance(result, (list, tuple)) else (result,):
        labels = _storage_labels(tensor) if isinstance(tensor, torch.Tensor) else None
        if labels is not None:
            labels.setdefault(_LABEL, label)


def on_device(operands: Iterable[Any]) -> bool:
    """Whether an operand, or a tensor in a list among them, is on the device in the eyes of the script."""
    return bool(_in_use) and _first_device(operands) is not None


def _first_device(operands: Iterable[Any]) -> torch.device | None:
    for value in operands:
        if isinstance(value, torch.Tensor):
            labels = _storage_labels(value)
            label = labels.get(_LABEL) if labels is not None else None
        elif isinstance(value, (list, tuple)):
            label = _first_device(value)
        else:
            continue
        if label is not None and label is not HOST:
            return label
    return None
