"""Streams: which of the device's collective queues a collective goes to, told by who issues it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

INLINE, AHEAD, BEHIND = 0, 1, 2
"""What the next operators wait for; weights gathered ahead of their use; gradients reduced behind backward."""
_streams = [INLINE]
_AUTOGRAD = str(Path("torch", "autograd"))
_OWN = str(Path(__file__).parents[1])


@contextmanager
def on(stream: int) -> Iterator[None]:
    """Collectives inside go to a stream."""
    _streams.append(stream)
    try:
        yield
    finally:
        _streams.pop()


def current() -> int:
    """The stream of a collective issued now. What autograd issues itself, without any Python, is the reducer of DDP."""
    if _streams[-1] == INLINE and torch._C._current_graph_task_id() != -1 and _issued_by_autograd():
        return BEHIND
    return _streams[-1]


def _issued_by_autograd() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return frame is not None and str(Path(frame.f_code.co_filename).parent).endswith(_AUTOGRAD)
