"""Records a JAX script: what it calls under jit, step by step."""

import os
from collections.abc import Sequence

from neuronprof.capture import mainmodule
from neuronprof.capture.ending import Ending, Outcome, sigterm_raises
from neuronprof.capture.options import CaptureOptions
from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError


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
    from neuronprof.capture.jax import backends
    from neuronprof.capture.jax.boundaries import Boundaries
    from neuronprof.capture.jax.calls import Listener
    from neuronprof.capture.jax.recording import Recorded

    boundaries = Boundaries(options)
    listener = Listener(options.values, boundaries)
    ending = Ending()
    with Patches() as patches, sigterm_raises(), listener.installed(patches):
        backends.install(patches)
        mainmodule.run(program, list(argv), ending.of)
    recorded = Recorded(listener, boundaries, program.folder, options)
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
