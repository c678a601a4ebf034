"""Shows an error of the script as Python alone would have shown it: without the frames of the recorder."""

import dis
import sys
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from neuronprof.capture.patching import is_users

_PACKAGE = str(Path(__file__).parents[1])


def _recorder(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _called_by_recorder(frame: FrameType) -> bool:
    """Frames of torch that only the recorder's way of executing an operator adds, which Python's own report would not have."""
    return frame.f_code.co_filename.endswith(("torch/_ops.py", "torch/overrides.py", "torch/utils/_stats.py"))


def cleaned(trace: TracebackType | None) -> TracebackType | None:
    """The same traceback without frames of this package, and without what they called inside torch to execute an operator."""
    kept: list[TracebackType] = []
    inside = False
    entry: TracebackType | None = trace
    while entry is not None:
        frame = entry.tb_frame
        inside = _recorder(frame) or (inside and _called_by_recorder(frame))
        if not inside:
            kept.append(entry)
        entry = entry.tb_next
    result: TracebackType | None = None
    for entry in reversed(kept):
        if result is not None and _hooked_call(entry.tb_frame, result.tb_frame):
            offset, line = _plain_call(entry.tb_frame.f_code)
            result = TracebackType(result.tb_next, entry.tb_frame, offset, line)
        else:
            result = TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result


def _hooked_call(frame: FrameType, called: FrameType) -> bool:
    """Whether a module's call took the long way through `inner` only because the recorder listens to all modules."""
    module: Any = frame.f_locals.get("self")
    return (
        frame.f_code.co_name == "_call_impl"
        and called.f_code.co_name == "inner"
        and called.f_code.co_filename == frame.f_code.co_filename
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    )


@cache
def _plain_call(code: CodeType) -> tuple[int, int]:
    """Byte offset and line of `return forward_call(*args, **kwargs)`, the way of a call without hooks and the first such call."""
    line = 0
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno or line if instruction.positions else line
        if instruction.opname == "CALL_FUNCTION_EX":
            return instruction.offset, line
    return 0, code.co_firstlineno


def _clean_chain(error: BaseException | None, seen: set[int]) -> None:
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = cleaned(error.__traceback__)
        _clean_chain(error.__cause__, seen)
        error = error.__context__


def users_line(error: BaseException) -> str:
    """'train.py:12', the innermost line of the user's files that an error passed through; '' if there is none."""
    found, entry = "", error.__traceback__
    while entry is not None:
        if is_users(entry.tb_frame.f_code.co_filename):
            found = f"{entry.tb_frame.f_code.co_filename}:{entry.tb_lineno}"
        entry = entry.tb_next
    return found


def report(error: BaseException) -> None:
    """Prints error on stderr through sys.excepthook, so that a hook which the script installed is honoured."""
    _clean_chain(error, set())
    sys.stdout.flush()
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()
