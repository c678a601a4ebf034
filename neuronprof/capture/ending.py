"""How a script ends: by itself, because enough is recorded, by an error of its own, or by a signal."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from neuronprof.capture import tracebacks
from neuronprof.capture.distributed.hub import LostPeerError
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording


@dataclass(frozen=True)
class Outcome:
    """How the run of a script ended.

    recording: None where the script failed before its first step. exit_code: what the script's own process would have
    returned (0 where the recorder ended it). ended_by: 'end', 'exit', 'stop', 'error', 'interrupt' or 'terminated'.
    """

    recording: Recording | None
    exit_code: int
    ended_by: str


class StopRecording(BaseException):
    """Ends the script after the last step to record; not an Exception, so that a script's `except Exception` does not keep it."""


class _Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds the script, so that the steps recorded so far are kept; a handler of the script's own takes precedence."""

    def handler(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Ending:
    """Deals with what the script raises, as the interpreter would, and remembers how it ended."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.ended_by = "end"

    def of(self, work: Callable[[], None]) -> None:
        """Calls work and keeps the way in which it ended, if it did not simply return."""
        try:
            work()
        except StopRecording:
            self.exit_code, self.ended_by = 0, "stop"
        except SystemExit as error:
            self.exit_code, self.ended_by = _exit_code(error), "exit"
        except KeyboardInterrupt as error:
            tracebacks.report(error)
            self.exit_code, self.ended_by = 130, "interrupt"
        except _Terminated:
            self.exit_code, self.ended_by = 143, "terminated"
        except NeuronprofError:
            raise
        except LostPeerError as error:
            sys.stdout.flush()
            print(f"neuronprof: {tracebacks.users_line(error)}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            self.exit_code, self.ended_by = 1, "error"
        except BaseException as error:
            tracebacks.report(error)
            self.exit_code, self.ended_by = 1, "error"


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stdout.flush()
    print(error.code, file=sys.stderr, flush=True)  # noqa: T201
    return 1
