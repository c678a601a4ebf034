"""Records a JAX script: what it calls under jit, step by step."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from neuronprof.capture import mainmodule
from neuronprof.capture.ending import Ending, Outcome, sigterm_raises
from neuronprof.capture.options import CaptureOptions
from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording


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


class Block:
    """Records the JAX of a `with` block, of a process in which JAX runs already."""

    def __init__(self, options: CaptureOptions) -> None:
        """Readies the listener; options as the command line has them."""
        from neuronprof.capture.jax.boundaries import Boundaries
        from neuronprof.capture.jax.calls import Listener

        self._options, self._boundaries, self._stack = options, Boundaries(options), ExitStack()
        self._listener = Listener(options.values, self._boundaries)

    def __enter__(self) -> None:
        import jax

        jax.clear_caches()  # functions that have run before would go on without asking Python
        self._stack.enter_context(self._listener.installed(self._stack.enter_context(Patches())))

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def recording(self, name: str) -> Recording:
        """The steps of the block.

        Raises:
            NeuronprofError: there is none.
        """
        from neuronprof.capture.jax.recording import Recorded

        recorded = Recorded(self._listener, self._boundaries, str(Path.cwd()), self._options)
        if not recorded.steps:
            raise NeuronprofError("No training step was found in the block: it called no function under jax.jit.")
        return recorded.recording(name, ())


def _devices(world: int) -> None:
    """Makes XLA show as many devices of the host as the job has ranks; has to happen before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if world > 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={world}".strip()
