"""From script to trace: the only place that knows the order of the stages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.pipeline.options import Options

if TYPE_CHECKING:
    from neuronprof.capture.script import Outcome

__all__ = ["Options", "Recorded", "capture", "record", "recording", "region", "step"]

_DEFAULT_STEPS = 3
_BLOCK = "(block)"  # stands where the name of a script does


@dataclass(frozen=True)
class Recorded:
    """What came out: the trace (None: the script failed before its first step), its exit code, and how it ended (see capture.script)."""

    trace: Path | None
    exit_code: int
    ended_by: str


def capture(script: str | Path, argv: tuple[str, ...], options: Options) -> "Outcome":
    """Runs a training script unmodified and records its steps.

    Raises:
        NeuronprofError: no such script, or no training step in it.
    """
    from neuronprof.capture.script import CaptureOptions, record_script
    from neuronprof.pipeline import ahead

    ahead.start()
    chosen = CaptureOptions(
        values=options.values,
        steps=options.steps,
        warmup=options.warmup,
        stop=False if options.run_on else None,
        module=options.module,
        world_size=options.world_size,
        rank=options.as_rank,
    )
    return record_script(str(script), list(argv), chosen)


def record(script: str | Path, argv: tuple[str, ...] = (), options: Options | None = None) -> Recorded:
    """Runs a training script unmodified, simulates its steps, and writes the trace.

    Raises:
        NeuronprofError: what the user can mend: no such script, no training step, a chip that is not known, a layout that is
            impossible, a model that does not fit.
    """
    from neuronprof.pipeline.machine import check

    options = options or Options()
    check(options)
    outcome = capture(script, argv, options)
    if outcome.recording is None:
        return Recorded(None, outcome.exit_code, outcome.ended_by)
    from neuronprof.pipeline.written import write_trace

    return Recorded(write_trace(outcome.recording, options), outcome.exit_code, outcome.ended_by)


@contextmanager
def recording(output: str | Path = "trace.parquet", **choices: Any) -> Iterator[None]:
    """Records the block's training steps, in a script or a notebook, and writes the trace when it ends.

    What is recorded is PyTorch; or JAX, where it is imported and PyTorch is not. choices: fields of Options. Inside `neuronprof record` the
    whole script is being recorded already and the block changes nothing.

    Raises:
        NeuronprofError: as `record`; a choice that is no option.
    """
    from neuronprof.pipeline import ahead
    from neuronprof.pipeline.machine import check

    if _current() is not None:
        yield
        return
    options = Options.of(output=output, **choices)
    check(options)
    ahead.start()
    if "jax" in sys.modules and "torch" not in sys.modules:
        from neuronprof.capture.jax.frontend import Block
        from neuronprof.capture.options import CaptureOptions

        block = Block(CaptureOptions(options.values, options.steps, options.warmup, stop=False))
        with block:
            yield
        found = block.recording(_BLOCK)
    else:
        from neuronprof.capture import engine

        recorder = engine.Engine(values=options.values, notice=_say)
        with recorder:
            yield
        found = recorder.finish(steps=options.steps or _DEFAULT_STEPS, warmup=options.warmup, script=_BLOCK)
    from neuronprof.pipeline.written import write_trace

    write_trace(found, options)


def step() -> None:
    """Ends a training step by hand; without a recording it does nothing."""
    if recorder := _current():
        recorder.mark_step()


@contextmanager
def region(name: str) -> Iterator[None]:
    """Names what the block records; without a recording it does nothing."""
    recorder = _current()
    if recorder is None:
        yield
        return
    with recorder.region(name):
        yield


def _current() -> Any:
    """What records, if anything does; asks without importing PyTorch or JAX."""
    modules = (sys.modules.get(name) for name in ("neuronprof.capture.engine", "neuronprof.capture.jax.calls"))
    return next((found for module in modules if module and (found := module.current())), None)


def _say(text: str) -> None:
    pass
