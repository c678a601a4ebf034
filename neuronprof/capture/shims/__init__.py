"""Stand-ins for libraries that exist only on a machine with Trainium: importable by scripts while a recording runs.

Each file of this folder stands for one library. It defines MODULES: the dotted names it simulates, each with its attributes.
"""

import importlib
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

from neuronprof.capture.patching import called_by_user

LIBRARIES = ("torch_neuronx", "torch_xla", "neuronx_distributed")
_ORIGIN = "simulated by neuronprof"
_IMPORT_MACHINERY = ("importlib/__init__.py", "importlib/util.py", "pkgutil.py")


@contextmanager
def importable() -> Iterator[None]:
    """Lets scripts import the simulated libraries. Libraries in turn do not see them, nor does importlib.metadata."""
    finder = _Finder()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in LIBRARIES}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in list(sys.modules):
            if name.partition(".")[0] in LIBRARIES:
                del sys.modules[name]
        sys.modules.update(hidden)


def _modules(library: str) -> dict[str, dict[str, Any]]:
    modules: dict[str, dict[str, Any]] = importlib.import_module(f"neuronprof.capture.shims.{library}").MODULES
    return modules


class _Finder(MetaPathFinder):
    """Finds the modules of the simulated libraries, for the user's files and for one another."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a simulated module.

        Raises:
            ModuleNotFoundError: the library is simulated, but not this module of it.
        """
        library = fullname.partition(".")[0]
        if library not in LIBRARIES or not _asked_by_user():
            return None
        modules = _modules(library)
        if fullname not in modules:
            raise ModuleNotFoundError(f"{fullname} is not {_ORIGIN}", name=fullname)
        package = any(name.startswith(f"{fullname}.") for name in modules)
        return importlib.machinery.ModuleSpec(fullname, _Loader(modules[fullname]), origin=_ORIGIN, is_package=package)


def _asked_by_user() -> bool:
    depth = 2
    while _is_import_machinery(sys._getframe(depth).f_code.co_filename):
        depth += 1
    return called_by_user(depth + 1)


def _is_import_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename.endswith(_IMPORT_MACHINERY)


class _Loader(Loader):
    def __init__(self, attributes: dict[str, Any]) -> None:
        self._attributes = attributes

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module; an attribute that is not there says so."""
        name = module.__name__

        def missing(attribute: str) -> Any:
            raise AttributeError(f"{name}.{attribute} is not {_ORIGIN}")

        module.__dict__.update(self._attributes)
        module.__dict__["__file__"] = f"<{_ORIGIN}>"  # shown by `from module import missing`
        module.__dict__["__getattr__"] = missing
