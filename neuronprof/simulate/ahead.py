"""Compiles the simulator's loops ahead, in a process of its own while the script is recorded; later runs find them in numba's cache."""

import subprocess
import sys
from pathlib import Path

_LOOPS = ("arbiter", "fleet", "kernels", "throttling", "walkorder")  # the modules that have any


class Ahead:
    """The compilation that runs, if one is needed."""

    def __init__(self) -> None:
        """Starts it, unless the loops were compiled before."""
        self._process = None if _compiled() else _start()

    def wait(self) -> None:
        """Returns when it is done. Where it failed, whoever imports the loops compiles them."""
        if self._process is not None:
            self._process.wait()
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    # -P: a file beside the script must not stand in for a module of the same name.
    command = [sys.executable, "-P", "-c", "import neuronprof.simulate.cluster"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _compiled() -> bool:
    """Whether each module has an index in the cache that is newer than the module; a cache elsewhere is not found, which costs a second."""
    here = Path(__file__).parent
    return all(
        _newest(here / "__pycache__", f"{name}.*.nbi") > (here / f"{name}.py").stat().st_mtime for name in _LOOPS
    )


def _newest(folder: Path, pattern: str) -> float:
    return max((path.stat().st_mtime for path in folder.glob(pattern)), default=0.0)
