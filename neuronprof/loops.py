"""Inner loops that numba compiles: each when it is called first, which is once on a machine: numba keeps what it made.

A first run has them compiled ahead, in another process while the script is captured (pipeline/ahead.py); a loop that is called before its
turn waits for it there.
"""

import atexit
import subprocess
from collections.abc import Callable
from threading import Lock
from typing import Any

from numba import njit

# Of every loop, and of the functions that only loops call: plain @njit(**OPTIONS).
OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False}
known: "list[Loop]" = []
_elsewhere: "list[subprocess.Popen[str]]" = []  # the process that compiles ahead, while it does
_one_at_a_time = Lock()
_done: set[str] = set()  # what it has compiled so far


class Loop:
    """A function that is compiled for one signature."""

    def __init__(self, function: Callable[..., Any], signature: str, options: dict[str, Any]) -> None:
        self.name = f"{function.__module__}.{function.__name__}"
        self._signature = signature
        self._compiled = njit(**options)(function)
        known.append(self)

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        if not self._compiled.signatures:
            with _one_at_a_time:
                _await(self.name)
                self.compile()
        return self._compiled(*arguments)

    def compile(self) -> None:
        """Takes it from numba's cache, or compiles it and keeps it there."""
        if self._compiled.signatures:
            return
        self._compiled.compile(self._signature)
        self._compiled.disable_compile()  # other arguments are converted, or refused


def loop(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Loop]:
    """Makes a Loop of a function. signature: as numba has them; options: beyond OPTIONS."""
    return lambda function: Loop(function, signature, OPTIONS | {"cache": True} | options)


def expect(process: "subprocess.Popen[str]") -> None:
    """Lets loops wait for a process that compiles them and prints the name of each that is done on a line; it ends with this one."""
    _elsewhere.append(process)
    atexit.register(_leave)


def expected() -> bool:
    """Whether there is such a process."""
    return bool(_elsewhere)


def _await(name: str) -> None:
    """Returns when the other process has compiled this loop, or will not."""
    while _elsewhere and name not in _done:
        line = _elsewhere[0].stdout.readline() if _elsewhere[0].stdout else ""
        _done.add(line.strip())
        if not line:
            _leave()


def _leave() -> None:
    """Ends the other process; what it has compiled is kept."""
    while _elsewhere:
        with _elsewhere.pop() as process:
            process.terminate()
