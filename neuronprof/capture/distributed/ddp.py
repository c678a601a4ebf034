"""DistributedDataParallel: PyTorch's own, with its buckets, where there are other ranks; the module itself where there are none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as _Replicated
from torch.utils import _pytree as pytree

from neuronprof.capture.distributed import streams
from neuronprof.capture.patching import Patches
from neuronprof.capture.placement import simulated


def install(patches: Patches) -> None:
    """Puts this class in the place of PyTorch's, until patches is undone."""
    for module in (torch.nn.parallel, torch.nn.parallel.distributed):
        patches.set(module, "DistributedDataParallel", DistributedDataParallel)


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


class DistributedDataParallel(_Replicated):
    """torch.nn.parallel.DistributedDataParallel on simulated devices. Of one rank it is the module: its replicas are made by --dp."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("output_device", None)  # with device_ids the first of args: there is one device
        self._single = _alone()
        if self._single:
            torch.nn.Module.__init__(self)
            self.module = module
            self.require_backward_grad_sync = True
            return
        super().__init__(module, None, None, *args[1:], **kwargs)
        if device_ids:
            target = device_ids[0]
            self._place = torch.device("cuda", target) if isinstance(target, int) else target
            self.register_forward_pre_hook(_to_device, with_kwargs=True)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Calls the module; with other ranks, their gradients are to be reduced in the backward pass."""
        return self.module(*inputs, **kwargs) if self._single else super().forward(*inputs, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside leave gradients unreduced."""
        with nullcontext() if self._single else super().no_sync():
            yield

    @contextmanager
    def join(self, *_args: Any, **_options: Any) -> Iterator[None]:
        """Ranks with fewer batches wait for the others: all ranks have as many as this one."""
        yield

    def register_comm_hook(self, state: Any, hook: Callable[..., Any]) -> None:
        """What the hook issues goes behind the backward pass, as the all-reduce in whose place it stands."""

        def behind(hook_state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            with streams.on(streams.BEHIND):
                future: torch.futures.Future[torch.Tensor] = hook(hook_state, bucket)
                return future

        behind.__qualname__ = hook.__qualname__
        behind.__annotations__ = {}
        if not self._single:
            super().register_comm_hook(state, behind)


DistributedDataParallel.__module__ = "torch.nn.parallel.distributed"


def _to_device(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs on the host are copied to the device that the script named."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(module._place)

    if simulated(module._place) is None:
        return args, kwargs
    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(torch.Tensor, moved, (args, kwargs))
    return found
