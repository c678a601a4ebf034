"""Mixed precision on a device that the machine lacks: the CPU's autocast under the device's name, with the device's default dtype."""

from collections.abc import Callable
from typing import Any

import torch

from neuronprof.capture.patching import Patches
from neuronprof.capture.placement import SIMULATED

_Call = Callable[..., Any]


def install(patches: Patches) -> None:
    """Lets autocast and GradScaler of a simulated device work on the CPU, until patches is undone."""

    def autocast(original: _Call, self: Any, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if device_type in SIMULATED:
            dtype = dtype or torch.get_autocast_dtype(device_type)
            device_type = "cpu"
        original(self, device_type, dtype, *args, **kwargs)

    def scaler(original: _Call, self: Any, device: Any = "cuda", *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if torch.device(device).type in SIMULATED else device, *args, **kwargs)

    patches.wrap(torch.amp.autocast_mode.autocast, "__init__", autocast)
    patches.wrap(torch.amp.grad_scaler.GradScaler, "__init__", scaler)
    _patch_state(patches)


def _patch_state(patches: Patches) -> None:
    """The switches behind autocast: whether it is on is one question here, and which dtype it takes one answer a device."""
    dtypes = dict.fromkeys(SIMULATED, torch.bfloat16) | {"cuda": torch.float16}

    def is_enabled(original: _Call, device_type: str = "cuda") -> Any:
        return original("cpu" if device_type in SIMULATED else device_type)

    def get_dtype(original: _Call, device_type: str) -> torch.dtype:
        return dtypes.get(device_type) or original(device_type)

    def set_dtype(original: _Call, device_type: str, dtype: torch.dtype) -> None:
        if device_type in SIMULATED:
            dtypes[device_type] = dtype
        original("cpu" if device_type in SIMULATED else device_type, dtype)

    def is_available(original: _Call, device_type: str) -> bool:
        return device_type in SIMULATED or original(device_type)

    patches.wrap(torch, "is_autocast_enabled", is_enabled)
    patches.wrap(torch, "get_autocast_dtype", get_dtype)
    patches.wrap(torch, "set_autocast_dtype", set_dtype)
    for module in (torch.amp, torch.amp.autocast_mode):
        patches.wrap(module, "is_autocast_available", is_available)
