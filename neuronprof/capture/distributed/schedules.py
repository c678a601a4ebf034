"""Pipeline schedules: a call of a schedule's step is one pass over the batch, whatever micro-batches it runs the stage's module on."""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from neuronprof.capture.patching import Patches

_MODULE = "torch.distributed.pipelining.schedules"


def install(patches: Patches, passes: Callable[[Callable[[], Any]], Any]) -> None:
    """Hands every call of a schedule's step to passes, until patches is undone; the module is not imported for that."""

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return passes(lambda: original(*args, **kwargs))

    def imported(module: ModuleType) -> None:
        for name in ("PipelineScheduleSingle", "PipelineScheduleMulti"):
            patches.wrap(getattr(module, name), "step", step)

    if _MODULE in sys.modules:
        imported(sys.modules[_MODULE])
        return
    finder = _Finder(imported)
    sys.meta_path.insert(0, finder)
    patches.on_exit(lambda: sys.meta_path.remove(finder))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the others do, and tells when it has been imported."""

    def __init__(self, imported: Callable[[ModuleType], None]) -> None:
        self._imported = imported
        self._finding = False

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that tells."""
        if fullname != _MODULE or self._finding:
            return None
        self._finding = True
        try:
            spec = find_spec(fullname)
        finally:
            self._finding = False
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._imported(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
