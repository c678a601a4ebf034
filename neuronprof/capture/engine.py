"""Engine: the dispatch mode that executes and records every operator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuronprof.graph.ir import Recording


def current() -> "Engine | None":
    """The engine that records in this process, if one is active."""
    return None


class Engine(TorchDispatchMode):
    """Executes operators, for real or without values, and records them.

    values: 'real', 'none' or 'auto' (the argument); 'real' or 'none' (what happens now).
    stop_after: after so many complete steps, operators still execute but are not recorded; on_complete is called once then.
    script_folder: sources inside it are written relative to it.
    """

    def __init__(self, values: str = "auto", notice: Callable[[str], None] = print) -> None:
        super().__init__()
        self.values = values
        self.notice = notice
        self.stop_after: int | None = None
        self.on_complete: Callable[[], None] | None = None
        self.script_folder = ""

    def note(self, key: str, count: int = 1) -> None:
        """Counts a softening that the summary tells the user about."""

    def transfer(self, direction: Literal["h2d", "d2h"], tensor: torch.Tensor) -> None:
        """Records a copy between host and device as an operator 'neuronprof.h2d' or 'neuronprof.d2h'."""

    def mark_step(self) -> None:
        """Ends a step by hand; once called, only such marks are boundaries."""

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Names the operators issued inside."""
        yield

    @property
    def recorded_steps(self) -> int:
        """Complete steps so far."""
        return 0

    def finish(self, steps: int = 3, warmup: int = 1, script: str = "", argv: tuple[str, ...] = ()) -> Recording:
        """The recording of at most `steps` steps after `warmup` ones."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Executes one operator."""
        return func(*args, **(kwargs or {}))
