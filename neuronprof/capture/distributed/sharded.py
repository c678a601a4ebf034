"""Fully sharded parameters: which of their collectives run ahead of the forward and behind the backward pass."""

from collections.abc import Callable
from typing import Any

import torch

from neuronprof.capture.distributed import streams
from neuronprof.capture.patching import Patches
from neuronprof.capture.signatures import Operator

_Call = Callable[..., Any]


def install(patches: Patches, wait: Callable[[torch.Tensor], None]) -> None:
    """Tells the streams of the collectives that PyTorch's FSDP issues, until patches is undone.

    wait: is called with a tensor where the device waits for what is gathered into it.
    """
    from torch.distributed.fsdp import _runtime_utils
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
