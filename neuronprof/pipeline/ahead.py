"""Compiles inner loops ahead, in a process of its own while the script is captured; later runs find them in numba's cache."""

import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

from neuronprof import loops

# The modules that have loops, in the order in which a recording calls them.
_MODULES = (
    "simulate.arbiter",
    "simulate.fleet",
    "simulate.walkorder",
    "simulate.kernels",
    "analyze.sweep",
    "analyze.replay",
)


def start() -> None:
    """Starts the process, unless the loops were compiled before."""
    if not loops.expected() and not all(map(_kept, _MODULES)):
        # -P: a file beside the script must not stand in for a module of the same name.
        command = [sys.executable, "-P", "-m", __name__]
        quiet = subprocess.DEVNULL
        loops.expect(subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, text=True))


def _kept(module: str) -> bool:
    """Whether numba's cache has an index newer than the module beside it; one that is elsewhere is not found, which costs a second."""
    found = util.find_spec(f"neuronprof.{module}")
    if found is None or found.origin is None:
        return False
    source = Path(found.origin)
    indices = (source.parent / "__pycache__").glob(f"{source.stem}.*.nbi")
    return max((path.stat().st_mtime for path in indices), default=0.0) > source.stat().st_mtime


def _main() -> None:
    for module in _MODULES:
        before = len(loops.known)
        import_module(f"neuronprof.{module}")
        for loop in loops.known[before:]:
            loop.compile()
            sys.stdout.write(f"{loop.name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _main()
