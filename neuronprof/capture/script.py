"""Records the training steps of an unmodified script."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from neuronprof.capture import mainmodule
from neuronprof.capture.ending import Ending, Outcome, StopRecording, sigterm_raises
from neuronprof.capture.options import CaptureOptions
from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from neuronprof.capture.distributed.peers import Job, Peers
    from neuronprof.capture.engine import Engine


_JAX = {"jax", "flax", "optax", "haiku", "equinox"}


def record_script(script: str, argv: list[str], options: CaptureOptions) -> Outcome:
    """Runs script as __main__ with argv and records its training steps, on as many ranks as exchange messages.

    Errors of the script are printed on stderr as Python prints them; the steps before them are in the recording.

    Raises:
        NeuronprofError: PyTorch is missing, the script cannot be found, or it ran to its end without a training step.
    """
    program = _program(script, options)  # a wrong name is told before PyTorch is imported, which takes seconds
    if mainmodule.imports(program) & _JAX and "torch" not in mainmodule.imports(program):
        from neuronprof.capture.jax.frontend import record_jax

        return record_jax(program, argv, options)
    _require_torch()
    from neuronprof.capture.distributed.peers import Job

    return record_rank(Job.now(script, argv, options), options)


def record_rank(job: "Job", options: CaptureOptions, hub: "Connection | None" = None) -> Outcome:
    """Runs a script as one rank; as record_script. hub: where a rank that another one asked for finds the others."""
    program = _program(job.script, options)
    from neuronprof.capture.distributed.peers import Peers
    from neuronprof.capture.engine import Engine

    engine = Engine(options.values, _notice if hub is None else _silent)
    engine.script_folder = program.folder
    engine.stop_after = options.warmup + options.steps_to_record
    engine.on_complete = _on_complete(options, _notice if hub is None else _silent)
    peers = engine.collectives.p2p.peers = Peers(job, engine.collectives.book, hub)
    ending = Ending()
    try:
        with _simulated_machine(engine, options), sigterm_raises():
            mainmodule.run(program, list(job.argv), ending.of)
        if options.world_size is not None and options.world_size > engine.collectives.book.world:
            engine.note(f"a world of {options.world_size} ranks that the script did not join, recorded as one rank")
        if engine.collectives.book.world > 1 and engine.collectives.book.rank == 0 and not peers.started:
            engine.note("what only rank 0 does, as printing a loss, counts on every rank (--as-rank 1 leaves it out)")
        recording = _finished(engine, program.name, list(job.argv), options, ending)
        if hub is None and peers.started:
            recording = _with_peers(recording, engine, peers, ending)
    finally:
        peers.close()
    return Outcome(recording, ending.exit_code, ending.ended_by)


def _with_peers(recording: Recording | None, engine: "Engine", peers: "Peers", ending: Ending) -> Recording | None:
    """The recording of all ranks that ran; None where one of them recorded nothing."""
    from neuronprof.capture.distributed import stages

    results = peers.collect(end=ending.ended_by not in ("end", "exit", "stop"))
    if ending.exit_code == 0 and any(ended_by == "error" for _, ended_by in results.values()):
        ending.exit_code, ending.ended_by = 1, "error"
    recordings = {engine.collectives.book.rank: recording} | {rank: found for rank, (found, _) in results.items()}
    whole = {rank: found for rank, found in recordings.items() if found is not None}
    return stages.joined(whole, engine.note) if len(whole) == len(recordings) else None


def _program(script: str, options: CaptureOptions) -> mainmodule.Program:
    return mainmodule.find_module(script) if options.module else mainmodule.find_file(script)


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


def _silent(_text: str) -> None:
    """What the first rank says needs no other one to say it again."""


def _on_complete(options: CaptureOptions, notice: Callable[[str], None]) -> Callable[[], None]:
    def stop() -> NoReturn:
        raise StopRecording

    def run_on() -> None:
        steps = options.steps_to_record
        notice(f"recorded {steps} step{'s' * (steps != 1)}; the script runs on unrecorded (Ctrl-C ends it)")

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


def _finished(
    engine: "Engine", path: str, argv: list[str], options: CaptureOptions, ending: Ending
) -> Recording | None:
    try:
        return engine.finish(options.steps_to_record, options.warmup, path, tuple(argv))
    except NeuronprofError:
        if ending.exit_code:
            return None
        raise
