"""Records the training steps of an unmodified script."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from neuronprof.capture import mainmodule, tracebacks
from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording

if TYPE_CHECKING:
    from neuronprof.capture.engine import Engine

DEFAULT_STEPS = 3
DEFAULT_WARMUP = 1


@dataclass(frozen=True)
class CaptureOptions:
    """What the command line says about recording.

    values: 'auto', 'real' or 'none'. steps: how many to record (None: the default, and the script runs on to its own end).
    warmup: steps before the first recorded one. stop: end the script after the last recorded step (None: only where steps
    is given). module: the script is the name of a module, as in `python -m`. world_size, rank: ranks of the job and which of
    them is recorded (None: as the script or the environment of its launcher says).
    """

    values: str = "auto"
    steps: int | None = None
    warmup: int = DEFAULT_WARMUP
    stop: bool | None = None
    module: bool = False
    world_size: int | None = None
    rank: int = 0

    @property
    def steps_to_record(self) -> int:
        """The number of steps in the recording, if the script has as many."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def stops(self) -> bool:
        """Whether the script is ended after its last recorded step."""
        return self.steps is not None if self.stop is None else self.stop


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


def record_script(script: str, argv: list[str], options: CaptureOptions) -> Outcome:
    """Runs script as __main__ with argv and records its training steps.

    Errors of the script are printed on stderr as Python prints them; the steps before them are in the recording.

    Raises:
        NeuronprofError: PyTorch is missing, the script cannot be found, or it ran to its end without a training step.
    """
    program = mainmodule.find_module(script) if options.module else mainmodule.find_file(script)
    _require_torch()
    from neuronprof.capture.engine import Engine

    engine = Engine(options.values, _notice)
    engine.script_folder = program.folder
    engine.stop_after = options.warmup + options.steps_to_record
    engine.on_complete = _on_complete(options)
    ending = _Ending()
    with _simulated_machine(engine, options), _sigterm_raises():
        mainmodule.run(program, argv, ending.of)
    recording = _finished(engine, program.name, argv, options, ending)
    return Outcome(recording, ending.exit_code, ending.ended_by)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise NeuronprofError(
            f"PyTorch cannot be imported ({error}): install it with pip install 'neuronprof[torch]'."
        ) from error


def _notice(text: str) -> None:
    sys.stdout.flush()
    print(f"neuronprof: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _on_complete(options: CaptureOptions) -> Callable[[], None]:
    def stop() -> NoReturn:
        raise StopRecording

    def run_on() -> None:
        steps = options.steps_to_record
        _notice(f"recorded {steps} step{'s' * (steps != 1)}; the script runs on unrecorded (Ctrl-C ends it)")

    return stop if options.stops else run_on


@contextmanager
def _simulated_machine(engine: "Engine", options: CaptureOptions) -> Iterator[None]:
    """Everything that makes this process look like a machine with Trainium4, undone at the end."""
    from neuronprof.capture import accelerators, devices, flex, mixedprecision, processes, shims, soften, threads

    with ExitStack() as stack:
        patches = stack.enter_context(Patches())
        for part in (devices, accelerators, mixedprecision, soften, flex, threads):
            part.install(patches)
        processes.install(patches, engine, options.world_size, options.rank)
        stack.enter_context(shims.importable())
        stack.enter_context(engine)
        yield


@contextmanager
def _sigterm_raises() -> Iterator[None]:
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


class _Ending:
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


def _finished(
    engine: "Engine", path: str, argv: list[str], options: CaptureOptions, ending: _Ending
) -> Recording | None:
    try:
        return engine.finish(options.steps_to_record, options.warmup, path, tuple(argv))
    except NeuronprofError:
        if ending.exit_code:
            return None
        raise
