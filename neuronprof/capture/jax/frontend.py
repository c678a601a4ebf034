"""Records a JAX script: what it calls under jit, step by step."""

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from neuronprof.capture import mainmodule
from neuronprof.capture.ending import Ending, Outcome, StopRecording, sigterm_raises
from neuronprof.capture.options import CaptureOptions
from neuronprof.capture.patching import Patches
from neuronprof.capture.steps import period
from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.capture.jax.calls import Listener
    from neuronprof.capture.jax.functions import Function


def record_jax(program: mainmodule.Program, argv: Sequence[str], options: CaptureOptions) -> Outcome:
    """Runs a script that uses JAX as __main__ and records its training steps; as script.record_script.

    Raises:
        NeuronprofError: JAX is missing, or the script ran to its end without a training step.
    """
    _devices(options.world_size or 1)
    try:
        import jax  # noqa: F401
    except ImportError as error:
        raise NeuronprofError(
            f"JAX cannot be imported ({error}): install it with pip install 'neuronprof[jax]'."
        ) from error
    from neuronprof.capture.jax.calls import Listener
    from neuronprof.capture.jax.recording import Recorded

    marks: list[tuple[int, Hashable]] = []
    listener = Listener(options.values, lambda function: _mark(marks, function, listener, options))
    ending = Ending()
    with Patches() as patches, sigterm_raises():
        listener.install(patches)
        mainmodule.run(program, list(argv), ending.of)
    recorded = Recorded(listener, marks, program.folder, options)
    if not recorded.steps:
        if ending.exit_code:
            return Outcome(None, ending.exit_code, ending.ended_by)
        raise NeuronprofError(
            f"No training step was found in {program.name}: it called no function under jax.jit; record a script that trains."
        )
    return Outcome(recorded.recording(program.name, tuple(argv)), ending.exit_code, ending.ended_by)


def _devices(world: int) -> None:
    """Makes XLA show as many devices of the host as the job has ranks; has to happen before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if world > 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={world}".strip()


def _mark(
    marks: list[tuple[int, Hashable]], function: "Function", listener: "Listener", options: CaptureOptions
) -> None:
    """Notes where a step may begin, and ends the script once enough steps are complete."""
    marks.append((len(listener.calls), function))
    length = period([key for _, key in marks])
    if options.stops and (len(marks) - 1) // length >= options.warmup + options.steps_to_record:
        raise StopRecording
