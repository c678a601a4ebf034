"""Fully sharded parameters: which of their collectives run ahead of the forward and behind the backward pass."""

import os
from collections.abc import Callable
from typing import Any

import torch

from neuronprof.capture.distributed import streams
from neuronprof.capture.patching import Patches
from neuronprof.capture.placement import HOST, simulated
from neuronprof.capture.signatures import Operator

_Call = Callable[..., Any]


def install(patches: Patches, wait: Callable[[torch.Tensor], None]) -> None:
    """Tells the streams of the collectives that PyTorch's FSDP issues, until patches is undone.

    wait: is called with a tensor where the device waits for what is gathered into it.
    """
    from torch.distributed.fsdp import _init_utils, _runtime_utils, fully_sharded_data_parallel
    from torch.distributed.fsdp._flat_param import FlatParamHandle
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    def copy_out(original: _Call, result: Any, *args: Any, **kwargs: Any) -> Any:
        wait(result.all_gather_output)
        return original(result, *args, **kwargs)

    patches.wrap(_fsdp_param_group, "foreach_all_gather_copy_out", copy_out)
    patches.wrap(_fsdp_param_group, "foreach_all_gather", _on(streams.AHEAD))
    patches.wrap(_fsdp_param_group, "foreach_reduce", _on(streams.BEHIND))
    patches.wrap(FlatParamHandle, "_all_gather_flat_param", _on(streams.AHEAD))
    for name in ("_reduce_grad", "_reduce_grad_no_shard"):
        patches.wrap(_runtime_utils, name, _on(streams.BEHIND))
    patches.wrap(_init_utils, "_init_device_handle", _device_handle)
    patches.wrap(fully_sharded_data_parallel, "_init_device_handle", _device_handle)
    patches.set(_init_utils, "_get_device_from_device_id", lambda *_args: None)
    patches.set(_init_utils, "_warn_cpu_init", lambda: None)


class _Handle:
    """torch.cuda as FullyShardedDataParallel needs it, which refuses to run on a CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def is_available(self) -> bool:
        """There is a device."""
        return True

    def current_device(self) -> torch.device:
        """What stands for it."""
        return HOST

    def device_count(self) -> int:
        """Ranks of a host."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _device_handle(_original: _Call, state: Any, module: torch.nn.Module, _ignored: Any, device_id: Any) -> Any:
    """Moves a module to the device that a script named, and lets FSDP believe that all the rest is there."""
    device = simulated(device_id)
    if device is not None and not any(p.is_meta for p in module.parameters()):
        module.to(device)
    state._device_handle = _Handle()
    return state


def parts(operator: Operator) -> _Call | None:
    """The function that FSDP's own operators, which copy parameters into and out of a gathered buffer, are written as; None for others."""
    if operator.namespace != "fsdp":
        return None
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    name = operator.name.split(".")[1]
    name = "all_gather_copy_in_cuda" if name == "all_gather_copy_in" else name
    found: _Call | None = getattr(_fsdp_collectives, name, None)
    return found


def _on(stream: int) -> _Call:
    def call(original: _Call, *args: Any, **kwargs: Any) -> Any:
        with streams.on(stream):
            return original(*args, **kwargs)

    return call
