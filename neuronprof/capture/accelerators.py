"""torch.cuda, torch.neuron, torch.xpu, torch.hpu and torch.accelerator as a script with one simulated Trainium4 core sees them."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from neuronprof.capture import engine as engines
from neuronprof.capture import placement
from neuronprof.capture.patching import Patches, called_by_trainer, called_by_user
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip

NAME = "AWS Trainium4 (simulated)"


def install(patches: Patches) -> None:
    """Replaces what the device modules answer, until patches is undone."""
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        for name, value in _surface(kind).items():
            patches.set(module, name, _keep_name(value, getattr(module, name, None)))
    for kind in ("neuron", "hpu"):
        _install_module(patches, kind)
    for name, value in _accelerator().items():
        patches.set(torch.accelerator, name, _keep_name(value, getattr(torch.accelerator, name, None)))
    patches.set(torch._C, "_get_accelerator", lambda check=None: placement.HOST)  # what PyTorch's own files ask
    _patch_cuda_only(patches)


def _keep_name(value: Any, original: Any) -> Any:
    if callable(value) and not isinstance(value, type) and original is not None:
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            if hasattr(original, attribute):
                setattr(value, attribute, getattr(original, attribute))
    return value


def _install_module(patches: Patches, kind: str) -> None:
    name = f"torch.{kind}"
    module = ModuleType(name, f"The {kind} device: {NAME}.")
    module.__dict__.update(_surface(kind))
    module.__dict__["amp"] = SimpleNamespace(autocast=lambda *args, **kwargs: torch.autocast(kind, *args, **kwargs))
    patches.set(torch, kind, module)
    patches.set_item(sys.modules, name, module)


def memory_capacity() -> int:
    """HBM bytes of one logical NeuronCore, which is one rank."""
    chip = load_chip("trainium4")
    return int(chip.package.hbm_capacity * chip.package.lnc / chip.package.cores)


class Stream:
    """A queue of device work. One program order is recorded, so all queues are the same one."""

    def __init__(self, device: Any = None, priority: int = 0, **_options: Any) -> None:
        self.device = placement.simulated(device) or placement.in_use() or torch.device("cuda", 0)
        self.device_index = self.device.index
        self.priority = priority
        self.stream_id = self.cuda_stream = 0

    def wait_stream(self, stream: "Stream") -> None:
        """Does nothing: the other queue's work came before in program order."""

    def wait_event(self, event: "Event") -> None:
        """Does nothing: the event came before in program order."""

    def synchronize(self) -> None:
        """Does nothing: all work issued is done."""

    def query(self) -> bool:
        """True: all work issued is done."""
        return True

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Records event, or a new one."""
        event = event or Event(enable_timing=True)
        event.record(self)
        return event

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class Event:
    """A point in the device work. Times between two are wall time of this machine, not of the simulated one."""

    def __init__(
        self, device: Any = None, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._at = 0.0

    def record(self, _stream: Stream | None = None) -> None:
        """Takes the time."""
        self._at = time.perf_counter()

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to end_event."""
        return (end_event._at - self._at) * 1e3

    def query(self) -> bool:
        """True: all work issued is done."""
        return True

    def synchronize(self) -> None:
        """Does nothing: all work issued is done."""

    def wait(self, _stream: Stream | None = None) -> None:
        """Does nothing: the event came before in program order."""


@contextmanager
def _on_stream(stream: Stream | None) -> Iterator[None]:
    yield


def _available(kind: str, depth: int) -> bool:
    """Whether the frame `depth` above may see the device: a library of trainers takes the first that it finds, so it finds one kind."""
    return called_by_user(depth) or (kind == "cuda" and called_by_trainer(depth))


def _devices() -> int:
    """Devices of this host: as many as it has ranks of the job."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _device_index(device: Any, kind: str) -> int:
    label = placement.simulated(device)
    return placement.current_index(kind) if label is None else label.index


def _surface(kind: str) -> dict[str, Any]:
    """What torch.<kind> offers, by name."""

    class selected:  # noqa: N801 - stands where torch.cuda.device does
        """Selects a device for the length of a context."""

        def __init__(self, device: Any) -> None:
            self.idx = _device_index(device, kind)

        def __enter__(self) -> None:
            self.previous = placement.current_index(kind)
            placement.select(kind, self.idx)

        def __exit__(self, *_error: object) -> None:
            placement.select(kind, self.previous)

    return {
        "is_available": lambda: _available(kind, 3),
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: _devices() if _available(kind, 3) else 0,
        "current_device": lambda: placement.current_index(kind),
        "set_device": lambda device: placement.select(kind, _device_index(device, kind)),
        "device": selected,
        "device_of": lambda tensor: selected(placement.placed(tensor)),
        "synchronize": lambda device=None: None,
        "Stream": Stream,
        "ExternalStream": Stream,
        "Event": Event,
        "stream": _on_stream,
        "set_stream": lambda stream: None,
        "current_stream": lambda device=None: Stream(device),
        "default_stream": lambda device=None: Stream(device),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16, torch.float32],
        "_is_in_bad_fork": lambda: False,
        **_properties(),
        **_memory(),
        **_random(),
    }


def _properties() -> dict[str, Any]:
    def get_device_properties(_device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=NAME, total_memory=memory_capacity(), major=9, minor=0, multi_processor_count=1, warp_size=128,
            is_integrated=False, is_multi_gpu_board=False, max_threads_per_multi_processor=1, gcnArchName="",
        )  # fmt: skip

    return {
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": get_device_properties,
        "get_arch_list": list,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_tf32_supported": lambda: True,
        "can_device_access_peer": lambda device, peer: True,
        "utilization": lambda device=None: 0,
    }


def _memory() -> dict[str, Any]:
    def none(_device: Any = None) -> int:
        return 0

    def stats(_device: Any = None) -> dict[str, int]:
        return {
            f"{kind}_bytes.all.{at}": 0 for kind in ("allocated", "reserved", "active") for at in ("current", "peak")
        }

    def summary(_device: Any = None, _abbreviated: bool = False) -> str:
        return f"{NAME}: memory is reported by neuronprof's memory analysis, not while the script runs"

    zeros = (
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "memory_cached",
        "max_memory_cached",
    )
    nothing = (
        "reset_peak_memory_stats",
        "reset_max_memory_allocated",
        "reset_max_memory_cached",
        "reset_accumulated_memory_stats",
    )
    return {
        **{name: lambda device=None: none(device) for name in zeros},
        **{name: lambda device=None: None for name in nothing},
        "memory_stats": stats,
        "memory_summary": summary,
        "mem_get_info": lambda device=None: (memory_capacity(), memory_capacity()),
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    }


def _random() -> dict[str, Any]:
    return {
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "seed": lambda: None,
        "seed_all": lambda: None,
        "initial_seed": lambda: torch.initial_seed(),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
    }


def _accelerator() -> dict[str, Any]:
    """torch.accelerator: for the script it is 'neuron', libraries see a machine without."""
    surface = _surface("neuron")
    same = (
        "is_available",
        "device_count",
        "synchronize",
        "set_stream",
        "current_stream",
        "empty_cache",
        "memory_allocated",
        "memory_reserved",
    )
    more = (
        "max_memory_allocated",
        "max_memory_reserved",
        "memory_stats",
        "reset_peak_memory_stats",
        "reset_accumulated_memory_stats",
    )
    return {
        **{name: surface[name] for name in same + more},
        "current_accelerator": lambda check_available=False: torch.device("neuron") if called_by_user() else None,
        "current_device_index": surface["current_device"],
        "current_device_idx": surface["current_device"],
        "set_device_index": surface["set_device"],
        "set_device_idx": surface["set_device"],
        "device_index": lambda device: surface["device"](device),
        "get_memory_info": surface["mem_get_info"],
        "get_device_capability": lambda device=None: {
            "supported_dtypes": {torch.bfloat16, torch.float16, torch.float32}
        },
    }


class CUDAGraph:
    """A recorded sequence of kernels, which cannot be replayed here."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        raise NeuronprofError("CUDA graphs are not simulated: record the script with graph capture switched off.")


class _OnDevice(type):
    """The metaclass of torch.cuda.FloatTensor and its kin: calling one makes a tensor, and isinstance asks where a tensor is."""

    def __call__(cls, *args: Any) -> torch.Tensor:
        tensor: torch.Tensor = getattr(torch, cls.__name__)(*args).to("cuda")
        return tensor

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.type() == f"torch.cuda.{cls.__name__}"


_TENSOR_TYPES = "Float Double Half BFloat16 Byte Char Short Int Long Bool"


def _patch_cuda_only(patches: Patches) -> None:
    def graphed(callables: Any, *_args: Any, **_kwargs: Any) -> Any:
        engine = engines.current()
        if engine is not None:
            engine.note("torch.cuda.make_graphed_callables left out")
        return callables

    for kind in _TENSOR_TYPES.split():
        patches.set(torch.cuda, f"{kind}Tensor", _OnDevice(f"{kind}Tensor", (), {"__module__": "torch.cuda"}))
    patches.set(torch.cuda, "_lazy_init", lambda: None)
    patches.set(torch.cuda, "CUDAGraph", CUDAGraph)
    patches.set(torch.cuda, "graph", CUDAGraph)
    patches.set(torch.cuda, "make_graphed_callables", graphed)
    for name in ("range_push", "mark", "range_start"):
        patches.set(torch.cuda.nvtx, name, lambda message="": 0)
    for name in ("range_pop", "range_end"):
        patches.set(torch.cuda.nvtx, name, lambda *_args: 0)
    for name, answer in {"is_available": True, "version": 90000}.items():
        patches.set(torch.backends.cudnn, name, _answer(answer))


def _answer(value: Any) -> Callable[[], Any]:
    return lambda: value if called_by_user() else (False if isinstance(value, bool) else None)
