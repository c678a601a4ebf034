"""Scripts that start or join a group of processes, as long as the group is one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError


def install(patches: Patches) -> None:
    """Runs a group of one process in this process, until patches is undone."""
    patches.set(torch.multiprocessing, "spawn", _spawn)
    if torch.distributed.is_available():
        patches.wrap(torch.distributed, "init_process_group", _init_process_group)
        for module in (torch.nn.parallel, torch.nn.parallel.distributed):
            patches.set(module, "DistributedDataParallel", DistributedDataParallel)
        _patch_mesh(patches)


def _spawn(
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> None:
    """torch.multiprocessing.spawn of one process: a call.

    Raises:
        NeuronprofError: more than one process is asked for.
    """
    _one_process(nprocs, "torch.multiprocessing.spawn starts")
    fn(0, *args)


def _one_process(processes: int, what: str) -> None:
    if processes != 1:
        raise NeuronprofError(
            f"{what} {processes} processes, and this version records one: run the script with one process and let --dp replicate it."
        )


def _init_process_group(original: Callable[..., Any], backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    """A process group of one rank, whatever the backend is called: gloo, which needs no device."""
    world = kwargs.get("world_size", -1)
    if world == -1:
        world = int(os.environ.get("WORLD_SIZE", "1"))
    _one_process(world, "The process group has")
    kept = {key: kwargs[key] for key in ("timeout", "group_name") if key in kwargs}
    original("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1, **kept)


class DistributedDataParallel(torch.nn.Module):
    """torch.nn.parallel.DistributedDataParallel of one rank: the module itself. Replicas and their all-reduce are made by --dp."""

    def __init__(self, module: torch.nn.Module, *_args: Any, **_options: Any) -> None:
        super().__init__()
        self.module = module
        self.require_backward_grad_sync = True

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.module(*inputs, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside leave gradients unreduced, as those outside do."""
        yield

    @contextmanager
    def join(self, *_args: Any, **_options: Any) -> Iterator[None]:
        """Ranks with fewer batches wait for the others, of which there are none."""
        yield

    def register_comm_hook(self, state: Any, hook: Callable[..., Any]) -> None:
        """Takes a hook that no gradient bucket will call."""


DistributedDataParallel.__module__ = "torch.nn.parallel.distributed"


def _patch_mesh(patches: Patches) -> None:
    from torch.distributed import device_mesh

    from neuronprof.capture.placement import SIMULATED

    def mesh(original: Callable[..., Any], device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type in SIMULATED else device_type, *args, **kwargs)

    def mesh_init(original: Callable[..., Any], self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type in SIMULATED else device_type, *args, **kwargs)

    patches.wrap(device_mesh, "init_device_mesh", mesh)
    patches.set(torch.distributed, "init_device_mesh", device_mesh.init_device_mesh)
    patches.wrap(device_mesh.DeviceMesh, "__init__", mesh_init)
