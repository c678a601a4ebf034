"""The process in which other ranks of a script run: `python -m neuronprof.capture.peerhub FILE_DESCRIPTOR`."""

import sys
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection

from neuronprof.capture.distributed.hub import Hub
from neuronprof.capture.distributed.peers import Job
from neuronprof.capture.script import record_rank
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording


def main() -> None:
    """Runs a hub for the rank at the other end of a connection, which says first which rank it is and what the job is."""
    connection = Connection(int(sys.argv[1]))
    rank, job = connection.recv()
    sys.path[:] = job.path
    _import_early()
    Hub(lambda number, theirs: become(job, number, theirs), {rank: connection}).serve()


def become(job: Job, rank: int, connection: Connection) -> None:
    """Runs one rank of a job in a process that was forked for it, and delivers what it recorded."""
    warnings.simplefilter("ignore")  # the first rank shows the same ones
    result: tuple[Recording | None, str] = (None, "error")
    try:
        outcome = record_rank(job, replace(job.options, rank=rank), connection)
        result = outcome.recording, outcome.ended_by
    except NeuronprofError as error:
        print(f"neuronprof: rank {rank}: {error}", file=sys.stderr)  # noqa: T201
    connection.send(("deliver", result))
    sys.stdout.flush()
    sys.stderr.flush()


def _import_early() -> None:
    """What every rank needs, once for all of them."""
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    from neuronprof.capture import engine, shims  # noqa: F401


if __name__ == "__main__":
    main()
