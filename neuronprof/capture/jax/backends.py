"""Names of accelerators in a JAX script: all of them mean the simulated device."""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import xla_bridge

from neuronprof.capture.patching import Patches

_SIMULATED = frozenset({"neuron", "gpu", "cuda", "rocm", "tpu"})
_PLATFORMS = frozenset({"jax_platforms", "jax_platform_name"})


def install(patches: Patches) -> None:
    """Lets `jax.devices("neuron")`, `backend="gpu"` and the like name the simulated device until patches is undone."""
    patches.wrap(xla_bridge, "get_backend", _backend)
    patches.wrap(type(jax.config), "update", _update)
    patches.set(jax, "default_backend", lambda: "neuron")


def _backend(original: Callable[..., Any], platform: Any = None) -> Any:
    return original(None if platform in _SIMULATED else platform)


def _update(original: Callable[..., Any], config: Any, name: str, value: Any) -> None:
    if name not in _PLATFORMS:  # XLA runs on the CPU here, whatever the script asks for
        original(config, name, value)
