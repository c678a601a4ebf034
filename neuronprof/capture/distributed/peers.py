"""Peers: the other ranks that this one exchanges messages with, run as processes of their own from the first message on."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from neuronprof.capture.distributed.groups import Book
from neuronprof.capture.distributed.hub import LostPeerError
from neuronprof.capture.options import CaptureOptions
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording


@dataclass(frozen=True)
class Job:
    """What to run to be one more rank: as the script was started, whatever it has changed since."""

    script: str
    argv: tuple[str, ...]
    options: CaptureOptions
    folder: str
    environment: dict[str, str]
    path: tuple[str, ...]

    @classmethod
    def now(cls, script: str, argv: Iterable[str], options: CaptureOptions) -> "Job":
        """The job of a script that is about to run."""
        return cls(script, tuple(argv), options, str(Path.cwd()), dict(os.environ), tuple(sys.path))


class Peers:
    """The other ranks as one of them sees them. book: tells which one; connection: to the hub, of a rank that it started."""

    def __init__(self, job: Job, book: Book, connection: Connection | None = None) -> None:
        self._job, self._book = job, book
        self._hub = connection
        self._process: subprocess.Popen[bytes] | None = None
        self._started: set[int] = set()

    @property
    def started(self) -> bool:
        """Whether there are any."""
        return self._hub is not None

    def start(self, ranks: Iterable[int]) -> None:
        """Lets ranks run that do not run yet."""
        for rank in ranks:
            if rank not in self._started and rank != self._book.rank:
                self._started.add(rank)
                self._say("start", rank)

    def separate(self, group: str) -> None:
        """Lets the others know that the ranks of a group run different programs."""
        self._say("separate", group)

    def is_apart(self, group: str) -> bool:
        """Whether another rank has said so."""
        self._say("apart", group)
        return bool(self._hear())

    def put(self, to: int, key: str, data: bytes | None) -> None:
        """Sends a message; data: None where there are no values."""
        self._say("put", to, key, data)

    def get(self, source: int, key: str) -> bytes | None:
        """Waits for a message.

        Raises:
            LostPeerError: it will never come.
        """
        self._say("get", source, key)
        word, rest = self._hear()
        if word == "ended":
            raise LostPeerError(
                f"Rank {self._book.rank} waits for a message from rank {source}, which ended without sending it."
            )
        if word == "stuck":
            others = ", ".join(f"rank {rank} for rank {of}" for rank, of in sorted(rest.items()))
            raise LostPeerError(f"All ranks wait for messages that nobody sends: {others}.")
        found: bytes | None = rest
        return found

    def collect(self, end: bool) -> dict[int, tuple[Recording | None, str]]:
        """What the others recorded and how they ended, by rank, once they have ended; end: they are to do so now."""
        self._say("collect", end)
        results: dict[int, tuple[Recording | None, str]] = self._hear()
        return results

    def close(self) -> None:
        """Ends them all."""
        if self._process is not None and self._hub is not None:
            self._hub.close()
            self._process.wait()

    def _say(self, *words: Any) -> None:
        if self._hub is None:
            self._hub = self._launch()
        try:
            self._hub.send(words)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NeuronprofError(_GONE) from error

    def _hear(self) -> Any:
        assert self._hub is not None
        try:
            return self._hub.recv()
        except (EOFError, ConnectionResetError) as error:
            raise NeuronprofError(_GONE) from error

    def _launch(self) -> Connection:
        """A hub in an interpreter of its own: a fork of this one would have the script's threads and locks in it."""
        job, (ours, theirs) = self._job, Pipe()
        options = replace(job.options, world_size=self._book.world)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "neuronprof.capture.peerhub", str(theirs.fileno())],
            cwd=job.folder,
            env=job.environment | {"PYTHONPATH": os.pathsep.join(p for p in job.path if p), "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is for the first rank alone, which ends the others
        )
        theirs.close()
        ours.send((self._book.rank, replace(job, options=options)))
        return ours


_GONE = (
    "The process that runs the other ranks of the script is gone; record it again, with more memory if that was short."
)
