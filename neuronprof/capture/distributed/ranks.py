"""Ranks: process groups of any backend and size, of which this process is one rank and the others do not exist."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from neuronprof.capture.distributed import results
from neuronprof.capture.distributed.groups import Book
from neuronprof.capture.patching import Patches, called_by_user
from neuronprof.capture.placement import SIMULATED
from neuronprof.errors import NeuronprofError

_Call = Callable[..., Any]
_REDUCTIONS = {  # the position of the argument `op`
    "all_reduce": 1, "reduce": 2, "reduce_scatter": 2, "reduce_scatter_tensor": 2, "reduce_scatter_single": 2, "all_reduce_coalesced": 1,
}  # fmt: skip
_LIKE_OTHERS = "object lists from other ranks, left as this rank made them"


class Ranks:
    """Answers the process group API for one rank.

    job: (ranks, rank) whatever the script asks for, or None. book: is told of the groups; joined: is called when the script joins a world.
    """

    def __init__(
        self, job: tuple[int, int] | None, book: Book, joined: Callable[[int], None], note: Callable[[str], None]
    ) -> None:
        self._job = job
        self._book = book
        self._joined = joined
        self._note = note
        self._backend = "nccl"

    def install(self, patches: Patches) -> None:
        """Replaces the functions that make groups, until patches is undone."""
        patches.on_exit(_leave)
        _quiet_about_cpu(patches)
        self._wrap(patches, "init_process_group", self._init)
        self._wrap(patches, "new_group", self._new_group)
        self._wrap(patches, "get_backend", self._get_backend)
        self._wrap(patches, "get_default_backend_for_device", lambda *_args: "nccl")
        for name in ("broadcast_object_list", "scatter_object_list"):
            self._wrap(patches, name, self._objects)
        for name, position in _REDUCTIONS.items():
            if hasattr(distributed_c10d, name):
                self._wrap(patches, name, _telling(position))
        patches.wrap(device_mesh, "init_device_mesh", _on_cpu)
        patches.set(dist, "init_device_mesh", device_mesh.init_device_mesh)
        patches.wrap(device_mesh.DeviceMesh, "__init__", self._mesh)

    def _wrap(self, patches: Patches, name: str, wrapper: _Call) -> None:
        original = getattr(distributed_c10d, name)
        patches.wrap(distributed_c10d, name, wrapper)
        for module in [m for n, m in sys.modules.items() if n.startswith("torch.distributed")]:
            if vars(module).get(name) is original:  # imported from there
                patches.set(module, name, getattr(distributed_c10d, name))

    def _init(
        self, original: _Call, backend: str | None = None, init_method: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        named = dict(zip(("timeout", "world_size", "rank"), args, strict=False)) | kwargs
        world, rank = self._job or _asked(named, init_method)
        self._backend = backend or "nccl"
        self._book.began(world, rank)
        original("fake", store=FakeStore(), rank=rank, world_size=world, group_name=named.get("group_name", ""))
        self._joined(world)

    def _new_group(self, original: _Call, ranks: Any = None, *_args: Any, **kwargs: Any) -> Any:
        kept = {k: kwargs[k] for k in ("use_local_synchronization", "group_desc", "sort_ranks") if k in kwargs}
        return original(ranks, backend="fake", **kept)

    def _get_backend(self, original: _Call, *args: Any, **kwargs: Any) -> str:
        return self._backend if called_by_user(3) else str(original(*args, **kwargs))

    def _objects(self, original: _Call, *args: Any, **kwargs: Any) -> None:
        if dist.get_rank() == (kwargs.get("src", args[1] if len(args) > 1 else 0) or 0):
            original(*args, **kwargs)
        else:
            self._note(_LIKE_OTHERS)

    def _mesh(self, original: _Call, mesh: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(mesh, "cpu" if device_type in SIMULATED else device_type, *args, **kwargs)
        self._book.mesh(mesh)


def _quiet_about_cpu(patches: Patches) -> None:
    """What DTensor has to say of CPUs does not concern the device for which one stands."""
    before = warnings.filters[:]
    warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu")

    def restore() -> None:
        warnings.filters[:] = before  # type: ignore[index]

    patches.on_exit(restore)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _asked(named: dict[str, Any], init_method: Any) -> tuple[int, int]:
    """World size and rank that a script asks for, by argument, URL or environment."""
    found = {}
    for key in ("world_size", "rank"):
        value = named.get(key, -1)
        if value in (None, -1):
            value = _in_url(str(init_method or ""), key)
        found[key] = int(os.environ.get(key.upper(), 1 if key == "world_size" else 0)) if value in (None, -1) else value
    world, rank = int(found["world_size"]), int(found["rank"])
    if not 0 <= rank < world:
        raise NeuronprofError(f"The script joins a process group as rank {rank} of {world}, which has no such rank.")
    return world, rank


def _in_url(url: str, key: str) -> int | None:
    from urllib.parse import parse_qs, urlparse

    values = parse_qs(urlparse(url).query).get(key)
    return int(values[0]) if values else None


def _telling(position: int) -> _Call:
    def call(original: _Call, *args: Any, **kwargs: Any) -> Any:
        operation = kwargs.get("op", args[position] if len(args) > position else "sum")
        with results.reduces_by(operation):
            return original(*args, **kwargs)

    return call


def _on_cpu(original: _Call, device_type: str, *args: Any, **kwargs: Any) -> Any:
    return original("cpu" if device_type in SIMULATED else device_type, *args, **kwargs)
