"""A profiler for AWS Trainium4, a machine that one cannot buy yet."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuronprof import analyze
    from neuronprof.api import Trace, load, record, recording, region, step

__version__ = "0.1.0"

__all__ = ["Trace", "analyze", "load", "record", "recording", "region", "step"]


def __getattr__(name: str) -> Any:
    """Loads the public functions on first use, so that importing the package costs nothing."""
    if name == "analyze":  # a package that can be called
        return importlib.import_module("neuronprof.analyze")
    if name not in __all__:
        raise AttributeError(f"module 'neuronprof' has no attribute '{name}'")
    from neuronprof import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
