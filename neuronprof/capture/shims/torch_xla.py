"""torch_xla: a process with one device. There mark_step cuts a lazy graph; here operators are recorded as they are issued."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from neuronprof.capture.distributed.launch import as_first
from neuronprof.capture.shims import xla_collectives, zero1
from neuronprof.capture.shims.xla_collectives import ordinal, world_size

_Call = Callable[..., Any]


def device(index: int | None = None) -> torch.device:
    """The simulated device, under its torch_xla name."""
    return torch.device("xla", index or 0)


def local_ordinal() -> int:
    """The rank of this process among those of its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def mark_step(wait: bool = False, reset_scope: bool = True) -> None:
    """Ends the lazy graph; the optimizer, not this, ends a training step."""


@contextmanager
def step() -> Iterator[None]:
    """The body of a training step."""
    yield


def add_step_closure(closure: _Call, args: tuple[Any, ...] = (), run_async: bool = False) -> None:
    """Calls closure, which would run when the graph has."""
    closure(*args)


def master_print(*args: Any, **kwargs: Any) -> None:
    """Prints on rank 0."""
    if ordinal() == 0:
        kwargs.pop("local", None)
        print(*args, **kwargs)  # noqa: T201


def save(data: Any, file_or_path: Any, master_only: bool = True, global_master: bool = False) -> None:
    """torch.save."""
    torch.save(data, file_or_path)


def launch(
    fn: _Call, args: tuple[Any, ...] = (), start_method: str = "spawn", debug_single_process: bool = False
) -> None:
    """Calls fn in this process, with its place among the ranks of its host."""
    as_first(fn, args, 1 if debug_single_process else int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def spawn(
    fn: _Call,
    args: tuple[Any, ...] = (),
    nprocs: int | None = None,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> None:
    """Calls fn in this process as the first of nprocs."""
    as_first(fn, args, nprocs or int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class MpDeviceLoader:
    """Batches of a loader, copied to the device."""

    def __init__(self, loader: Iterable[Any], device: Any, **_options: Any) -> None:
        self._loader = loader
        self._device = device

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(self._device), batch)


class ParallelLoader:
    """Loaders of several devices, of which there is one."""

    def __init__(self, loader: Iterable[Any], devices: list[Any], **_options: Any) -> None:
        self._loader = loader

    def per_device_loader(self, device: Any) -> MpDeviceLoader:
        """The batches for device."""
        return MpDeviceLoader(self._loader, device)


def autocast(
    device: Any = None, enabled: bool = True, dtype: torch.dtype = torch.bfloat16, cache_enabled: bool = True
) -> torch.autocast:
    """torch.autocast on the simulated device."""
    return torch.autocast("xla", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


def _set_seed(seed: int, device: Any = None) -> None:
    torch.manual_seed(seed)


_RANKS: dict[str, Any] = {
    "world_size": world_size,
    "global_ordinal": ordinal,
    "local_ordinal": local_ordinal,
    "global_device_count": world_size,
    "local_device_count": lambda: 1,
    "addressable_device_count": lambda: 1,
    "global_runtime_device_count": world_size,
    "addressable_runtime_device_count": lambda: 1,
    "process_index": ordinal,
    "process_count": world_size,
    "local_process_count": lambda: 1,
}

_XLA_MODEL: dict[str, Any] = {
    **xla_collectives.NAMES,
    "xla_device": lambda n=None, devkind=None: device(n),
    "xla_real_devices": lambda devices=None: ["NEURON:0"],
    "xla_device_hw": lambda device: "NEURON",
    "xla_device_kind": lambda device=None: "NC_v5",
    "get_xla_supported_devices": lambda devkind=None, max_devices=None: ["xla:0"],
    "get_ordinal": ordinal,
    "get_local_ordinal": local_ordinal,
    "xrt_world_size": world_size,
    "is_master_ordinal": lambda local=True: ordinal() == 0,
    "is_xla_tensor": lambda tensor: tensor.is_xla,
    "mark_step": mark_step,
    "wait_device_ops": _nothing,
    "add_step_closure": add_step_closure,
    "master_print": master_print,
    "save": save,
    "send_cpu_data_to_device": lambda data, device, input_sharding=None: torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(device), data
    ),
    "set_rng_state": _set_seed,
    "get_rng_state": lambda device=None: torch.initial_seed(),
    "get_memory_info": lambda device=None: {"bytes_used": 0, "bytes_limit": torch.neuron.mem_get_info()[1]},
    "REDUCE_SUM": "sum",
    "REDUCE_MUL": "mul",
    "REDUCE_AND": "and",
    "REDUCE_OR": "or",
    "REDUCE_MIN": "min",
    "REDUCE_MAX": "max",
}

_OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}

MODULES: dict[str, dict[str, Any]] = {
    "torch_xla": {
        "__version__": "2.9.0",
        "device": device,
        "devices": lambda: [device()],
        "real_devices": lambda: ["NEURON:0"],
        "device_count": lambda: 1,
        "sync": mark_step,
        "step": step,
        "launch": launch,
        "manual_seed": _set_seed,
        "compile": lambda function=None, **_options: function if function is not None else step(),
    },
    "torch_xla.core": {},
    "torch_xla.core.xla_model": _XLA_MODEL,
    "torch_xla.runtime": {
        **_RANKS,
        "device_type": lambda: "NEURON",
        "is_spmd": lambda: False,
        "using_pjrt": lambda: True,
        "initialize_cache": _nothing,
    },
    "torch_xla.distributed": {},
    "torch_xla.distributed.zero_redundancy_optimizer": {"ZeroRedundancyOptimizer": zero1.ZeroRedundancyOptimizer},
    "torch_xla.distributed.parallel_loader": {"MpDeviceLoader": MpDeviceLoader, "ParallelLoader": ParallelLoader},
    "torch_xla.distributed.xla_multiprocessing": {"spawn": spawn, "MpModelWrapper": lambda model: model},
    "torch_xla.distributed.xla_backend": {},
    "torch_xla.amp": {"autocast": autocast, "GradScaler": torch.amp.GradScaler},
    "torch_xla.amp.syncfree": _OPTIMIZERS,
    "torch_xla.debug": {},
    "torch_xla.debug.metrics": {
        "metrics_report": str,
        "short_metrics_report": str,
        "counter_names": list,
        "metric_names": list,
        "counter_value": _nothing,
        "metric_data": _nothing,
        "clear_all": _nothing,
    },
    "torch_xla.debug.profiler": {"start_server": _nothing, "StepTrace": lambda name, **_options: step(), "Trace": lambda name: step()},
    "torch_xla.utils": {},
    "torch_xla.utils.serialization": {"save": save, "load": lambda path: torch.load(path)},
    "torch_xla.utils.checkpoint": {"checkpoint": torch.utils.checkpoint.checkpoint},
    "torch_xla.experimental": {},
}  # fmt: skip
