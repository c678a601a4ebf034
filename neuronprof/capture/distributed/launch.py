"""Launch: the environment of one rank of a job, and functions that would start the other ranks."""

import os
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch.multiprocessing

from neuronprof.capture.patching import Patches

_PER_HOST = 64
"""Ranks of a host: 16 chips of four logical NeuronCores."""
_NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_Call = Callable[..., Any]
NOT_STARTED = "processes of other ranks, not started"


def environment(world: int | None, rank: int) -> Callable[[], None]:
    """Sets the variables that torchrun sets for one rank of a world (None: leaves them alone); returns what puts them back."""
    before = {name: os.environ.get(name) for name in _NAMES}
    if world is not None:
        host = min(world, _PER_HOST)
        values = (rank, world, rank % host, host, rank // host, rank // host, -(-world // host), 0, 0, "none")
        os.environ.update({name: str(value) for name, value in zip(_NAMES, values, strict=False)})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


def install(patches: Patches, note: Callable[[str, int], None]) -> None:
    """Calls of functions that start processes become calls of the first one's function, until patches is undone."""

    def spawn(
        _original: _Call, fn: _Call, args: tuple[Any, ...] = (), nprocs: int = 1, *_args: Any, **_options: Any
    ) -> None:
        as_first(fn, args, nprocs)
        if nprocs > 1:
            note(NOT_STARTED, nprocs - 1)

    patches.wrap(torch.multiprocessing, "spawn", spawn)
    patches.wrap(torch.multiprocessing, "start_processes", spawn)
    patches.set(torch.multiprocessing, "Process", _process(note))


def _process(note: Callable[[str, int], None]) -> type:
    """A class in the place of torch.multiprocessing.Process."""

    class Process(torch.multiprocessing.Process):
        """A process; of those that join a process group this rank's is a call, and the others are not started."""

        before = 0

        def start(self) -> None:
            """Starts what prepares data, calls this rank's function, or does nothing."""
            self.joins = joins_group(self._target, self._args)
            if not self.joins:
                super().start()
                return
            Process.before += 1
            if Process.before - 1 == int(os.environ.get("LOCAL_RANK", "0")):
                self._target(*self._args, **self._kwargs)
            else:
                note(NOT_STARTED, 1)

        def join(self, timeout: float | None = None) -> None:
            """Waits for a process that was started."""
            if not self.joins:
                super().join(timeout)

        @property
        def exitcode(self) -> int | None:
            """0 for what was called here."""
            return 0 if self.joins else super().exitcode

    return Process


def as_first(fn: _Call, args: tuple[Any, ...], processes: int) -> Any:
    """Calls fn(index, *args) as the first of so many processes of a host: all the ranks there are, unless the environment knows better."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and processes > 1:
        os.environ.update(WORLD_SIZE=str(processes), RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(processes))
    return fn(int(os.environ.get("LOCAL_RANK", "0")) % max(1, processes), *args)


def joins_group(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a function, or one that it names or is given, calls init_process_group."""
    seen: set[CodeType] = set()
    left = [target, *args]
    while left:
        function = left.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        if "init_process_group" in code.co_names:
            return True
        left.extend(function.__globals__.get(name) for name in code.co_names)
    return False
