"""Scripts that start or join a group of processes: one rank runs here, and what it says to the others is recorded."""

import torch.distributed

from neuronprof.capture.distributed import launch
from neuronprof.capture.engine import Engine
from neuronprof.capture.patching import Patches
from neuronprof.errors import NeuronprofError

LARGEST = 131_072
"""Ranks of the largest job: 32,768 chips of four."""


def install(patches: Patches, engine: Engine, world: int | None = None, rank: int = 0) -> None:
    """Makes this process one rank of a job, until patches is undone. world: its ranks (None: what the script or its launcher says).

    Raises:
        NeuronprofError: no world has so many ranks, or this one has no such rank.
    """
    if world is not None and not (1 <= world <= LARGEST and 0 <= rank < world):
        raise NeuronprofError(
            f"A job has 1 to {LARGEST} ranks, numbered from 0: rank {rank} of {world} is none of them."
        )
    patches.on_exit(launch.environment(world, rank))
    launch.install(patches, engine.note)
    if torch.distributed.is_available():
        from neuronprof.capture.distributed import attention, ddp, schedules, sharded
        from neuronprof.capture.distributed.ranks import Ranks

        attention.install(patches)
        schedules.install(patches, engine.tape.scheduled)
        ddp.install(patches)
        sharded.install(patches, engine.collectives.waits.on)
        job = None if world is None else (world, rank)
        Ranks(job, engine.collectives.book, engine.joined, engine.note).install(patches)
        engine.collectives.waits.install(patches)
