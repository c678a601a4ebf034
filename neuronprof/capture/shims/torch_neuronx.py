"""torch_neuronx: compilation for Trainium becomes a mark on the operators, so what it returns still trains."""

from collections.abc import Callable
from typing import Any

import torch

from neuronprof.capture import regions
from neuronprof.capture.patching import called_by_user


def trace(func: Any, example_inputs: Any = None, *_: Any, **_options: Any) -> Any:
    """The module or function itself; its operators are marked as compiled."""
    return regions.mark(func, "torch_neuronx.trace")


def _unchanged(module: Any, *_args: Any, **_kwargs: Any) -> Any:
    return module


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _from_torch_neuron(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(torch.neuron, name)(*args, **kwargs)

    call.__name__ = name
    return call


class PartitionerConfig:
    """Options of the graph partitioner; nothing is partitioned."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)


_DEVICE_FUNCTIONS = (
    "synchronize",
    "current_device",
    "set_device",
    "device_count",
    "memory_stats",
    "empty_cache",
    "current_stream",
    "stream",
)

MODULES: dict[str, dict[str, Any]] = {
    "torch_neuronx": {
        "__version__": "2.13.3",
        "trace": trace,
        "DataParallel": _unchanged,
        "dynamic_batch": _unchanged,
        "async_load": _nothing,
        "lazy_load": _nothing,
        "move_trace_to_device": _nothing,
        "replace_weights": _nothing,
        "PartitionerConfig": PartitionerConfig,
        "is_available": lambda: called_by_user(),
        "get_fallback_ops": list,
        "get_executed_ops": list,
        **{name: _from_torch_neuron(name) for name in _DEVICE_FUNCTIONS},
    },
    "torch_neuronx.utils": {"get_platform_target": lambda: "trn4"},
    "torch_neuronx.experimental": {},
    "torch_neuronx.distributed": {},
    "torch_neuronx.xla_impl": {},
    "torch_neuronx.xla_impl.ops": {"nop": _unchanged, "set_unload_prior_neuron_models_mode": _nothing},
}
