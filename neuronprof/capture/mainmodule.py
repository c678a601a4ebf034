"""Runs a file or a module as __main__, as `python file` and `python -m module` do."""

import ast
import atexit
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import thread as pools
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from neuronprof.capture.patching import Patches, called_by_user
from neuronprof.errors import NeuronprofError


@dataclass(frozen=True)
class Program:
    """What is run: name (sys.argv[0]), absolute path, import folder (sys.path[0]), spec (None for a file)."""

    name: str
    path: str
    folder: str
    spec: ModuleSpec | None = None

    def code(self) -> CodeType:
        """The compiled program.

        Raises:
            SyntaxError: the file is not Python.
        """
        if self.spec is not None:
            code: CodeType = self.spec.loader.get_code(self.spec.name)  # type: ignore[union-attr]
            return code
        return compile(Path(self.path).read_bytes(), self.path, "exec", dont_inherit=True)


def find_file(path: str) -> Program:
    """The program in a file.

    Raises:
        NeuronprofError: there is no such file, or it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        raise NeuronprofError(f"{path} is a folder: name the training script inside it.")
    if not file.exists():
        raise NeuronprofError(f"There is no script {path}: check the path (the current folder is {Path.cwd()}).")
    try:
        file.open("rb").close()
    except OSError as error:
        raise NeuronprofError(f"The script {path} cannot be read: {error.strerror}.") from error
    return Program(path, str(file.absolute()), str(file.resolve().parent))


def find_module(name: str) -> Program:
    """The program that `python -m name` runs: the module, or the __main__ of the package.

    Raises:
        NeuronprofError: there is no such module, or it is a package without __main__.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        spec = None
    finally:
        sys.path.remove(folder)
    if spec is None or spec.origin is None or not hasattr(spec.loader, "get_code"):
        raise NeuronprofError(
            f"There is no module {name} that can be run: check its name and the current folder ({folder})."
        )
    return Program(spec.origin, spec.origin, folder, spec)


def imports(program: Program) -> set[str]:
    """The packages that a program's own file imports; empty where it is not Python, which whoever runs it will tell."""
    try:
        tree = ast.parse(Path(program.path).read_bytes())
    except (SyntaxError, ValueError):
        return set()
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = (n.module or "" if isinstance(n, ast.ImportFrom) else a.name for n in found for a in n.names)
    return {name.partition(".")[0] for name in names}


def _main_module(program: Program) -> ModuleType:
    module = ModuleType("__main__")
    module.__file__ = program.path
    module.__dict__.update(__builtins__=__builtins__, __cached__=None, __spec__=program.spec)
    if program.spec is None:
        module.__package__ = None
        module.__loader__ = SourceFileLoader("__main__", program.path)
    else:
        module.__package__ = program.spec.parent
        module.__loader__ = program.spec.loader
    return module


@contextmanager
def _interpreter_state(program: Program, argv: list[str]) -> Iterator[ModuleType]:
    """sys.argv, sys.path and __main__ as the program expects them; what it imported from its folder is forgotten afterwards."""
    saved = sys.argv, sys.path[:], sys.modules["__main__"], sys.excepthook
    known = set(sys.modules)
    module = _main_module(program)
    sys.argv = [program.name, *argv]
    sys.path[:] = [program.folder, *sys.path[1:]]
    sys.modules["__main__"] = module
    try:
        yield module
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"], sys.excepthook = saved
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(program.folder) and "site-packages" not in file:
                del sys.modules[name]


class _ExitHandlers:
    """Handlers that the script gives to atexit: called at its end, since at the end of this process nothing is simulated any more."""

    def __init__(self, patches: Patches) -> None:
        self._handlers: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        patches.wrap(atexit, "register", self._register)
        patches.wrap(atexit, "unregister", self._unregister)

    def _register(self, original: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not called_by_user(3):
            return original(function, *args, **kwargs)
        self._handlers.append((function, args, kwargs))
        return function

    def _unregister(self, original: Callable[..., Any], function: Callable[..., Any]) -> None:
        self._handlers = [entry for entry in self._handlers if entry[0] != function]
        original(function)

    def call(self) -> None:
        while self._handlers:
            function, args, kwargs = self._handlers.pop()
            function(*args, **kwargs)


def _join_threads(before: set[threading.Thread]) -> None:
    """Waits, as the interpreter does at its end, for the threads that the script left running; idle ones of a pool are ended."""
    left = set(threading.enumerate()) - before - {threading.current_thread()}
    queues = [queue for thread, queue in list(pools._threads_queues.items()) if thread in left]
    if queues:
        pools._shutdown = True
    try:
        for queue in queues:
            queue.put(None)
        for thread in left:
            if not thread.daemon:
                thread.join()
    finally:
        if queues:
            pools._shutdown = False


def run(program: Program, argv: list[str], ended: Callable[[Callable[[], None]], None]) -> None:
    """Runs program as __main__ with argv.

    ended: is given each piece of work (the program, then its atexit handlers) to call, and deals with what that raises,
    while __main__ is still the program's.
    """
    with Patches() as patches, _interpreter_state(program, argv) as module:
        handlers = _ExitHandlers(patches)
        threads = set(threading.enumerate())

        def program_and_threads() -> None:
            exec(program.code(), module.__dict__)
            _join_threads(threads)

        ended(program_and_threads)
        ended(handlers.call)
