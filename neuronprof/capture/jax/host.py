"""What passes between the host and the device: arrays of numpy that a script hands over, and values that it reads."""

import sys
from types import FrameType
from typing import Any

from neuronprof.capture.jax.functions import Function
from neuronprof.capture.jax.hlo import contiguous
from neuronprof.capture.jax.opnames import Place
from neuronprof.capture.jax.translate import Operator, Translated
from neuronprof.capture.patching import is_users
from neuronprof.graph.ir import Signature, Tensor
from neuronprof.terms import Phase

UP, DOWN = "neuronprof.h2d", "neuronprof.d2h"
READ = "aten._local_scalar_dense.default"  # one number, for which the host waits


def upload(array: Any, sharding: Any) -> Function:
    """A batch, or whatever else numpy made, on its way to the device. sharding: over the devices, None for one."""
    return _moved(UP, array, sharding)


def download(array: Any) -> Function:
    """A value that the script reads: one number, or a whole array."""
    return _moved(READ if array.size == 1 else DOWN, array, array.sharding)


def _moved(name: str, array: Any, sharding: Any) -> Function:
    shape = tuple(sharding.shard_shape(array.shape) if sharding is not None else array.shape)
    tensor = Tensor(str(array.dtype), shape, contiguous(shape))
    return Function(name, (), (), moved=(tensor, _line()))


def translated(function: Function) -> Translated:
    """The one operator of an upload, which makes its array, or of a download, which takes it."""
    assert function.moved is not None
    tensor, source = function.moved
    up, down = ([0], []) if function.name == UP else ([], [0])
    signature = Signature(function.name, (tensor,) * len(down), (tensor,) * len(up))
    operator = Operator(signature, Place(Phase.OTHER, "", source), tuple(down), tuple(up))
    return Translated([operator], [tensor.nbytes], parameters=down, results=up)


def _line() -> str:
    """file:line of the innermost frame that is the user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
